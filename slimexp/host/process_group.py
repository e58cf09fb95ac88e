"""The processes that train one model together, one a device: who is the first, and what all of them agree on.

A process on its own is the first of one, and every function here is then free. Values and small tensors travel by gloo,
whatever the devices, so that a process may wait for another for as long as that takes; gradients are the strategy's.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from threading import Thread
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")

PATIENCE = timedelta(days=7)  # the first process may round a large model meanwhile; one that dies is noticed elsewhere
CONNECTING = timedelta(minutes=10)
COLLECTIVE = timedelta(minutes=30)  # of a step: beyond it a process hangs
ABORTING_S = 5.0
MESSAGE = 2**25  # numbers of gradients that travel together: 128 MiB of float32, a second copy of which is made

_control: dist.ProcessGroup | None = None
_alone = 0


class OtherProcessFailed(RuntimeError):
    """The first process failed; it is the one that says why."""


def size() -> int:
    """Number of processes; 1 within ``alone``."""
    return dist.get_world_size() if _together() else 1


def rank() -> int:
    """Number of this process, from 0 on; 0 within ``alone``."""
    return dist.get_rank() if _together() else 0


def is_first() -> bool:
    """Whether this process is the one that writes, prints and measures."""
    return rank() == 0


def broadcast_object(value: T) -> T:
    """The first process's ``value``, in all of them."""
    if not _together():
        return value
    values: list[Any] = [value]
    dist.broadcast_object_list(values, src=0, group=_control, device=torch.device("cpu"))
    return cast(T, values[0])


def all_gather(value: T) -> list[T]:
    """Every process's ``value``, by its number."""
    if not _together():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value, group=_control)
    return values


def by_first(work: Callable[[], T]) -> T:
    """Do ``work`` in the first process while the others wait; returns its result in all of them.

    Raises:
        OtherProcessFailed: In the others, where it failed; the first raises the error itself.
    """
    if not _together():
        return work()
    if dist.get_rank() != 0:
        succeeded, result = broadcast_object((True, cast(T, None)))
        if not succeeded:
            raise OtherProcessFailed("the first process failed")
        return result
    try:
        with alone():
            result = work()
    except BaseException:
        broadcast_object((False, None))
        raise
    return broadcast_object((True, result))[1]


def all_reduce(tensor: Tensor) -> Tensor:
    """The sum of ``tensor`` over all processes, without gradient."""
    total = tensor.detach().clone()
    if _together():
        dist.all_reduce(total)
    return total


@torch.no_grad()
def average(tensors: Iterable[Tensor]) -> None:
    """Overwrite ``tensors``, on the device that is trained on, with their means over all processes."""
    if not _together():
        return
    for some in _by_size(tensors):
        flat = torch.cat([tensor.flatten() for tensor in some])  # one message in place of hundreds
        dist.all_reduce(flat)
        flat /= dist.get_world_size()
        means = flat.split([tensor.numel() for tensor in some])
        torch._foreach_copy_(some, [mean.view_as(tensor) for mean, tensor in zip(means, some, strict=True)])


@torch.no_grad()
def broadcast(tensors: Iterable[Tensor]) -> None:
    """Overwrite ``tensors`` with the first process's; they are on the device that is trained on, or on the CPU."""
    if not _together():
        return
    for tensor in tensors:
        whole = tensor.contiguous()
        dist.broadcast(whole, src=0, group=_control if whole.device.type == "cpu" else None)
        if whole is not tensor:
            tensor.copy_(whole)


@contextmanager
def alone() -> Iterator[None]:
    """This process works by itself within the context: it is the first of one, and waits for no other."""
    global _alone
    _alone += 1
    try:
        yield
    finally:
        _alone -= 1


@contextmanager
def joined(backend: str, store: dist.Store | None = None) -> Iterator[None]:
    """The processes that ``RANK`` and ``WORLD_SIZE`` of the environment count are one group within the context.

    An exception leaves the group without the others: they may be in a collective, which an orderly end would wait for.

    Args:
        backend: That of gradients: ``nccl`` or ``gloo``.
        store: Where the processes meet; ``None``: as the environment says, which ``torchrun`` sets.
    """
    global _control
    meeting: dict[str, Any] = {"init_method": "env://"}
    if store is not None:
        meeting = {"store": store, "rank": int(os.environ["RANK"]), "world_size": int(os.environ["WORLD_SIZE"])}
    device = torch.device("cuda", torch.cuda.current_device()) if backend == "nccl" else None
    dist.init_process_group(backend, timeout=COLLECTIVE, device_id=device, **meeting)
    try:
        _control = dist.new_group(backend="gloo", timeout=PATIENCE)
        yield
    except BaseException:
        _control = None
        abort = Thread(target=dist.distributed_c10d._abort_process_group, daemon=True)
        abort.start()
        abort.join(ABORTING_S)  # that of gloo waits too where a message is under way
        raise
    _control = None
    dist.destroy_process_group()


def _by_size(tensors: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Tensors of one type, as many at a time as hold ``MESSAGE`` numbers; a larger one by itself."""
    held: dict[torch.dtype, tuple[list[Tensor], int]] = {}  # with their numbers of entries
    for tensor in tensors:
        some, numbers = held.get(tensor.dtype, ([], 0))
        if some and numbers + tensor.numel() > MESSAGE:
            yield some
            some, numbers = [], 0
        some.append(tensor)
        held[tensor.dtype] = some, numbers + tensor.numel()
    yield from (some for some, _ in held.values())


def _together() -> bool:
    return _control is not None and not _alone
