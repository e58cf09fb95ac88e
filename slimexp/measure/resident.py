"""Bytes that a model holds in memory."""

from collections.abc import Iterator

from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

MB = 1e6


def resident_bytes(model: nn.Module) -> int:
    """Bytes of the storages behind the parameters and buffers of ``model``, shared ones once."""
    storages = [tensor.untyped_storage() for tensor in plain_tensors(model)]
    return sum({(storage.device, storage.data_ptr()): storage.nbytes() for storage in storages}.values())


def plain_tensors(model: nn.Module) -> Iterator[Tensor]:
    """Parameters and buffers of ``model``; of a (quantized) tensor subclass the plain tensors inside."""
    for tensor in (*model.parameters(), *model.buffers()):
        yield from _plain(tensor)


def _plain(tensor: Tensor) -> Iterator[Tensor]:
    if not is_traceable_wrapper_subclass(tensor):
        yield tensor
        return
    names, _ = tensor.__tensor_flatten__()
    for name in names:
        yield from _plain(getattr(tensor, name))
