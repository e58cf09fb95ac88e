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


@dataclass(frozen=True)
class Held:
    """What a checkpoint says of itself.

    Attributes:
        step: Optimizer steps that were done.
        curves: Bytes that the curves had by then, at least.
    """

    step: int
    curves: int


class Checkpoint(pl.Callback):
    """Writes ``path`` at optimizer steps, aside first and then renamed.

    Lightning logs a step after its callbacks: the checkpoint gets its name when the next batch starts, once the curves
    up to it are on the disk. So a kill in between costs a checkpoint, not a row.

    Args:
        path: The one checkpoint of the stage.
        key: Key of the stage, which only its own checkpoint names.
        curves: File that the stage's curves are written to.
        every_seconds: Least time between two checkpoints.
        every_steps: Least optimizer steps between two checkpoints.
    """

    def __init__(self, *, path: Path, key: str, curves: Path, every_seconds: float, every_steps: int) -> None:
        self.path = path
        self.key = key
        self.curves = curves
        self.every_seconds = every_seconds
        self.every_steps = every_steps
        self._partial = path.with_suffix(".partial")
        self._waits = False
        self._last_step = 0
        self._last_time = time.monotonic()

    def state_dict(self) -> dict[str, Any]:
        return {"key": self.key, "curves": self.curves.stat().st_size if self.curves.exists() else 0}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._last_step, self._last_time = trainer.global_step, time.monotonic()

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self._waits:
            self._publish()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return  # half of an accumulated gradient is in no checkpoint
        step = trainer.global_step
        due = step - self._last_step >= self.every_steps and time.monotonic() - self._last_time >= self.every_seconds
        if not due or step >= trainer.max_steps:
            return
        self._save(trainer)

    def write(self, trainer: pl.Trainer) -> None:
        """Write the checkpoint now, after the last step was logged."""
        self._save(trainer)
        self._publish()

    def _save(self, trainer: pl.Trainer) -> None:
        integrity.remove(self._partial)
        with self._gone_if_it_fails():
            trainer.save_checkpoint(self._partial)
        self._waits = True
        self._last_step, self._last_time = trainer.global_step, time.monotonic()

    def _publish(self) -> None:
        self._waits = False
        with self._gone_if_it_fails():
            if self.curves.exists():
                integrity.sync(self.curves)
            integrity.publish(self._partial, self.path)

    @contextmanager
    def _gone_if_it_fails(self) -> Iterator[None]:
        """On a full disk above all, half a checkpoint is of no use."""
        try:
            yield
        except BaseException:
            integrity.remove(self._partial)
            raise


def check(path: Path, key: str) -> Held:
    """Read all of a checkpoint, by the checksum (CRC-32) of each of its parts, before anything is made of it.

    Raises:
        Damaged: It cannot be read, or is of another stage than the one of ``key``.
    """
    if not path.is_file():
        raise Damaged("it is no file")
    try:
        with zipfile.ZipFile(path) as file:
            part = file.testzip()
        held = None if part else torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # of zipfile, struct, zlib, pickle and torch, and of what they meet in foreign bytes
        why = " ".join(str(error).split())[:80]
        raise Damaged(f"{path.stat().st_size} bytes that cannot be read: {why or type(error).__name__}") from error
    if held is None:
        raise Damaged(f"its part {part} has other content than was written")
    return _held(held, key)


def _held(content: Any, key: str) -> Held:
    try:
        state, step = content["callbacks"][Checkpoint.__qualname__], content["global_step"]
        found, held = state["key"], Held(int(step), int(state["curves"]))
    except (KeyError, TypeError, IndexError, ValueError) as error:
        raise Damaged("it is no checkpoint of a stage") from error
    if found != key:
        raise Damaged(f"it is of another stage, {found}")
    if held.step < 1 or held.curves < 0:  # the first is written after a step
        raise Damaged(f"its step is {held.step}")
    return held
