"""Weights of which every device holds a shard (FSDP2), as wholes and back."""

from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor


def whole(tensor: Tensor) -> Tensor:
    """``tensor``, gathered where it is sharded: all processes must call this together."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def as_sharded(tensor: Tensor, like: Tensor | None) -> Tensor:
    """The shard of ``tensor``, which is the same in all processes, that this one holds of ``like``, if that is sharded.

    Args:
        tensor: A whole tensor, on any device.
        like: A tensor of the same shape.
    """
    if not isinstance(like, DTensor) or isinstance(tensor, DTensor):
        return tensor
    on_device = tensor.detach().to(like.device_mesh.device_type)
    return distribute_tensor(on_device, like.device_mesh, like.placements)


def whole_parameter(parameter: nn.Parameter, *, keep: bool) -> nn.Parameter:
    """A parameter of its own, on the CPU; all processes must call this together.

    Args:
        parameter: A parameter, sharded or not.
        keep: Whether this process keeps the values; without, it gets an outline on the meta device.
    """
    full = whole(parameter.detach())
    return nn.Parameter(full.cpu() if keep else full.to("meta"), requires_grad=parameter.requires_grad)
