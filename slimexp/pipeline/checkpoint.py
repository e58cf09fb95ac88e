"""Checkpoints that survive a kill at any moment, and resume to the very run that was interrupted."""

import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from slimexp.file import integrity
from slimexp.file.integrity import Damaged
from slimexp.host import process_group
from slimexp.pipeline.background_writer import BackgroundWriter
from slimexp.pipeline.strategy import GATHERED, FullyShard


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

    A large one is written by a thread, see ``BackgroundWriter``, and only one at a time. Lightning logs a step after
    its callbacks: the checkpoint gets its name when a later batch starts, once it and the curves up to it are on the
    disk. So a kill in between costs a checkpoint, not a row.

    Args:
        path: Where the checkpoint is written, over the one before it.
        key: Key of the stage, by which ``check`` recognises its checkpoint.
        curves: File that the stage's curves are written to.
        every_seconds: Shortest time between two checkpoints, in seconds.
        every_steps: Smallest number of optimizer steps between two checkpoints.
        share: Largest share of the time that training may stand still for checkpoints; ``None`` for no limit.
    """

    def __init__(
        self, *, path: Path, key: str, curves: Path, every_seconds: float, every_steps: int, share: float | None = None
    ) -> None:
        self.path = path
        self.key = key
        self.curves = curves
        self.every_seconds = every_seconds
        self.every_steps = every_steps
        self.share = share
        self._partial = path.with_suffix(".partial")
        self._writer: BackgroundWriter | None = None
        self._unpublished = False
        self._is_logged = False
        self._cost_s = 0.0
        self.kept_step = 0  # of the checkpoint that is on the disk
        self._last_step = 0
        self._last_time = time.monotonic()

    def state_dict(self) -> dict[str, Any]:
        return {"key": self.key, "curves": self.curves.stat().st_size if self.curves.exists() else 0}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._last_step, self._last_time = trainer.global_step, time.monotonic()
        self.kept_step = trainer.global_step

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._is_logged = True
        if self._unpublished and (self._writer is None or self._writer.is_done):
            self._publish()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return  # half of an accumulated gradient is in no checkpoint
        if self._is_due(trainer.global_step) and trainer.global_step < trainer.max_steps:
            self._save(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keep the last step of a training that a Timer, EarlyStopping or the like ends, while it is on its device."""
        if 0 < trainer.global_step < trainer.max_steps:
            self._save(trainer)
        if self._unpublished:
            self._publish()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Keep a checkpoint whose step was logged; the exception is raised, whatever becomes of the checkpoint."""
        if not self._unpublished:
            return
        with suppress(Exception):
            if self._is_logged:
                self._publish()
            elif self._writer is not None:
                self._writer.finish()
        self._unpublished = False
        self._remove_partial()

    def _is_due(self, step: int) -> bool:
        """Whether the last checkpoint is long enough ago; clocks differ, so that the first process's counts."""
        if process_group.size() > 1 and step % max(1, self.every_steps):
            return False  # a step for which the processes do not wait for each other
        least = max(self.every_seconds, self._cost_s / self.share if self.share else 0.0)
        is_time = not self._unpublished and time.monotonic() - self._last_time >= least
        return step - self._last_step >= self.every_steps and process_group.broadcast_object(is_time)

    def _save(self, trainer: pl.Trainer) -> None:
        began = time.monotonic()
        own = trainer.strategy.checkpoint_io
        gathered = GATHERED if isinstance(trainer.strategy, FullyShard) else ()
        writer = self._writer = self._writer or BackgroundWriter(own, own=gathered)
        with self._removed_on_failure():
            if self._unpublished:
                writer.finish()
            self._remove_partial()
            trainer.strategy.checkpoint_io = writer  # for this checkpoint alone: others look for theirs at once
            try:
                trainer.save_checkpoint(self._partial)
            finally:
                trainer.strategy.checkpoint_io = own
        self._unpublished, self._is_logged = True, False
        self._last_step, self._last_time = trainer.global_step, time.monotonic()
        self._cost_s = self._last_time - began

    def _publish(self) -> None:
        began = time.monotonic()
        self._unpublished = False
        if not process_group.is_first():
            return
        with self._removed_on_failure():
            if self._writer is not None:
                self._writer.finish()
            if self.curves.exists():
                integrity.sync(self.curves)
            integrity.publish(self._partial, self.path)
        self.kept_step = self._last_step
        copied = 0.0 if self._writer is None else self._writer.copy_seconds
        self._cost_s += copied + time.monotonic() - began

    @contextmanager
    def _removed_on_failure(self) -> Iterator[None]:
        """Remove a checkpoint that was not written to its end, which needs its place on a full disk above all."""
        try:
            yield
        except BaseException:
            self._remove_partial()
            raise

    def _remove_partial(self) -> None:
        if process_group.is_first():
            integrity.remove(self._partial)


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
