"""Weights of which every device holds a shard (FSDP2), as wholes and back."""

from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor


def whole(tensor: Tensor) -> Tensor:
    """``tensor``, gathered where it is sharded: all processes must call this together."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def whole_copy(tensor: Tensor, *, keep: bool) -> Tensor:
    """``tensor`` gathered, on the CPU, in memory of its own; all processes must call this together.

    Args:
        tensor: A tensor, sharded or not.
        keep: Whether this process keeps the values; without, it gets an empty tensor.
    """
    full, held = whole(tensor.detach()), tensor.to_local() if isinstance(tensor, DTensor) else tensor
    if not keep:
        return full.new_empty(0, device="cpu")
    copied = full.cpu()
    return copied.clone() if copied.untyped_storage().data_ptr() == held.untyped_storage().data_ptr() else copied


def placed(tensor: Tensor, like: Tensor) -> Tensor:
    """``tensor``, which is the same in all processes, where ``like`` is: on its device, and as its shard.

    Args:
        tensor: A whole tensor of the shape of ``like``, on any device.
        like: A tensor, sharded or not.
    """
    if isinstance(tensor, DTensor) or not isinstance(like, DTensor):
        return tensor.to(like.device)
    return distribute_tensor(tensor.detach().to(like.device), like.device_mesh, like.placements)


def whole_parameter(parameter: nn.Parameter, *, keep: bool) -> nn.Parameter:
    """A parameter of its own, on the CPU; all processes must call this together.

    Args:
        parameter: A parameter, sharded or not.
        keep: Whether this process keeps the values; without, it gets an outline on the meta device.
    """
    full = whole(parameter.detach())
    return nn.Parameter(full.cpu() if keep else full.to("meta"), requires_grad=parameter.requires_grad)
