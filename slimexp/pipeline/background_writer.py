"""Large checkpoints are copied to host memory, and written to the disk by a thread while training goes on."""

import copy
from collections.abc import Collection, Mapping
from pathlib import Path
from threading import Thread
from typing import Any

import torch
from pytorch_lightning.plugins.io import CheckpointIO, TorchCheckpointIO
from torch import Tensor

from slimexp.file import integrity
from slimexp.host import memory

SMALL = 2**26  # bytes that are on the disk as soon as a thread has started, and are written at once
_MEMORY = 0.8  # share of the free host memory that the copy may take; a larger state is written from where it is


class BackgroundWriter(TorchCheckpointIO):
    """Writes a checkpoint of Lightning's, one at a time.

    Args:
        direct: What writes a checkpoint that is small, or too large to be copied.
        own: Keys of the parts of a checkpoint that nothing else refers to, which are written from where they are.
    """

    def __init__(self, direct: CheckpointIO, *, own: Collection[str] = ()) -> None:
        self._direct = direct
        self._own = own
        self._thread: Thread | None = None
        self._error: BaseException | None = None
        self._copied: tuple[torch.cuda.Event, torch.cuda.Event] | None = None

    @property
    def is_done(self) -> bool:
        """Whether the last checkpoint is written, or could not be."""
        return self._thread is None or not self._thread.is_alive()

    @property
    def copy_seconds(self) -> float:
        """What the copy of the last checkpoint took of the GPU's time; the call took the rest."""
        if self._copied is None:
            return 0.0
        begin, end = self._copied
        end.synchronize()
        return begin.elapsed_time(end) / 1e3

    def finish(self) -> None:
        """Wait until the last checkpoint is written.

        Raises:
            Exception: What kept the thread from writing it.
        """
        if self._thread is not None:
            self._thread.join()
        self._thread = None
        if error := self._error:
            self._error = None
            raise error

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Take the state as it is now; it is whole on the disk after ``finish``."""
        self.finish()
        self._copied = None
        shared = {key: part for key, part in checkpoint.items() if key not in self._own}
        if nbytes(checkpoint) < SMALL or nbytes(shared) > _MEMORY * memory.available():
            self._direct.save_checkpoint(checkpoint, path, storage_options)
            return
        begin = _event()
        state = {**checkpoint, **snapshot(shared)}
        if begin is not None and (end := _event()) is not None:
            self._copied = begin, end
        self._thread = Thread(target=self._write, args=(state, Path(path)), name="checkpoint")
        self._thread.start()

    def _write(self, state: dict[str, Any], path: Path) -> None:
        try:
            if self._copied is not None:
                self._copied[1].synchronize()
            torch.save(state, path)
            integrity.sync(path)
        except BaseException as error:  # raised where it is waited for
            self._error = error


def snapshot(state: Any) -> Any:
    """A copy of nested containers, tensors on the CPU, that nothing training does will change.

    Tensors of a GPU are on their way to pinned memory when this returns. Tied tensors stay tied.
    """
    tensors: dict[tuple[Any, ...], Tensor] = {}

    def copied(value: Any) -> Any:
        if isinstance(value, Tensor):
            known = (value.device, value.dtype, value.data_ptr(), tuple(value.shape), value.stride())
            if known not in tensors or not value.numel():
                tensors[known] = _on_host(value.detach())
            return tensors[known]
        if isinstance(value, dict):
            result = copy.copy(value)  # a state_dict has an attribute of its own
            result.update((key, copied(item)) for key, item in value.items())
            return result
        if isinstance(value, list):
            return [copied(item) for item in value]
        if type(value) is tuple:
            return tuple(map(copied, value))
        return copy.deepcopy(value)

    return copied(state)


def nbytes(state: Any) -> int:
    """Bytes of the tensors in nested containers."""
    if isinstance(state, Tensor):
        return state.nbytes
    if isinstance(state, Mapping):
        return sum(map(nbytes, state.values()))
    return sum(map(nbytes, state)) if isinstance(state, list | tuple) else 0


def _on_host(tensor: Tensor) -> Tensor:
    if tensor.device.type == "cpu":
        return tensor.clone()
    pinned = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.device.type == "cuda")
    return pinned.copy_(tensor, non_blocking=True)


def _event() -> torch.cuda.Event | None:
    """A mark in the work that the GPU was given; ``None`` where none was started."""
    if not torch.cuda.is_initialized():
        return None
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event
