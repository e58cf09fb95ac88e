"""Checkpoints that survive a kill at any moment, and resume to the very run that was interrupted."""

import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from slimexp.file import integrity
from slimexp.file.integrity import Damaged
from slimexp.host import process_group


@dataclass(frozen=True)
class Position:
    """How far the training of a checkpoint was.

    Attributes:
        step: Number of optimizer steps done.
        curves_bytes: Size of the file of curves when the checkpoint was written; more rows may have followed.
    """

    step: int
    curves_bytes: int


class Checkpoint(pl.Callback):
    """Writes the checkpoint of a stage between optimizer steps, under another name first.

    Lightning logs a step after its callbacks: the checkpoint gets its name when the next batch starts, once the curves
    up to it are on the disk. So a kill in between costs a checkpoint, not a row.

    Args:
        path: Where the checkpoint is written, over the one before it.
        key: Key of the stage, by which ``check`` recognises its checkpoint.
        curves: File that the stage's curves are written to.
        every_seconds: Shortest time between two checkpoints, in seconds.
        every_steps: Smallest number of optimizer steps between two checkpoints.
    """

    def __init__(self, *, path: Path, key: str, curves: Path, every_seconds: float, every_steps: int) -> None:
        self.path = path
        self.key = key
        self.curves = curves
        self.every_seconds = every_seconds
        self.every_steps = every_steps
        self._partial = path.with_suffix(".partial")
        self._unpublished = False
        self._last_step = 0
        self._last_time = time.monotonic()

    def state_dict(self) -> dict[str, Any]:
        return {"key": self.key, "curves": self.curves.stat().st_size if self.curves.exists() else 0}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._last_step, self._last_time = trainer.global_step, time.monotonic()

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self._unpublished:
            self._publish()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return  # half of an accumulated gradient is in no checkpoint
        step = trainer.global_step
        if step - self._last_step < self.every_steps or step >= trainer.max_steps or not self._is_time(step):
            return
        self._save(trainer)

    def _is_time(self, step: int) -> bool:
        """Whether the last checkpoint is long enough ago; clocks differ, so that the first process's counts."""
        if process_group.size() > 1 and step % max(1, self.every_steps):
            return False  # a step for which the processes do not wait for each other
        return process_group.agreed(time.monotonic() - self._last_time >= self.every_seconds)

    def write(self, trainer: pl.Trainer) -> None:
        """Write the checkpoint now, after the last step was logged."""
        self._save(trainer)
        self._publish()

    def _save(self, trainer: pl.Trainer) -> None:
        if process_group.is_first():
            integrity.remove(self._partial)
        with self._removed_on_failure():
            trainer.save_checkpoint(self._partial)
        self._unpublished = True
        self._last_step, self._last_time = trainer.global_step, time.monotonic()

    def _publish(self) -> None:
        self._unpublished = False
        if not process_group.is_first():
            return
        with self._removed_on_failure():
            if self.curves.exists():
                integrity.sync(self.curves)
            integrity.publish(self._partial, self.path)

    @contextmanager
    def _removed_on_failure(self) -> Iterator[None]:
        """Remove a checkpoint that was not written to its end, which needs its place on a full disk above all."""
        try:
            yield
        except BaseException:
            if process_group.is_first():
                integrity.remove(self._partial)
            raise


def check(path: Path, key: str) -> Position:
    """Read a checkpoint to its end and compare each of its parts with that part's checksum (CRC-32).

    Args:
        path: The file of the checkpoint.
        key: Key of the stage that it must be of.

    Returns:
        How far its training was.

    Raises:
        Damaged: The file cannot be read, or it is a checkpoint of another stage.
    """
    if not path.is_file():
        raise Damaged("it is no file")
    try:
        with zipfile.ZipFile(path) as file:
            part = file.testzip()
        content = None if part else torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # zipfile, struct, zlib, pickle and torch raise their own on damaged bytes
        reason = " ".join(str(error).split())[:80]
        raise Damaged(f"{path.stat().st_size} bytes that cannot be read: {reason or type(error).__name__}") from error
    if content is None:
        raise Damaged(f"its part {part} has other content than was written")
    return _position(content, key)


def _position(content: Any, key: str) -> Position:
    try:
        state, step = content["callbacks"][Checkpoint.__qualname__], content["global_step"]
        stored_key, position = state["key"], Position(int(step), int(state["curves"]))
    except (KeyError, TypeError, IndexError, ValueError) as error:
        raise Damaged("it is no checkpoint of a stage") from error
    if stored_key != key:
        raise Damaged(f"it is of another stage, {stored_key}")
    if position.step < 1 or position.curves_bytes < 0:  # no checkpoint is written before the first step
        raise Damaged(f"its step is {position.step}")
    return position
