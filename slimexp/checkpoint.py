"""Checkpoints that survive a kill at any moment, and resume to the very run that was interrupted."""

import os
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl


class Checkpoint(pl.Callback):
    """Writes ``path`` at optimizer steps, aside first and then renamed.

    Args:
        path: The one checkpoint of the stage.
        every_seconds: Least time between two checkpoints.
        every_steps: Least optimizer steps between two checkpoints.
    """

    def __init__(self, *, path: Path, every_seconds: float, every_steps: int) -> None:
        self.path = path
        self.every_seconds = every_seconds
        self.every_steps = every_steps
        self._last_step = 0
        self._last_time = time.monotonic()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._last_step, self._last_time = trainer.global_step, time.monotonic()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return  # half of an accumulated gradient is in no checkpoint
        step = trainer.global_step
        due = step - self._last_step >= self.every_steps and time.monotonic() - self._last_time >= self.every_seconds
        if not due or step >= trainer.max_steps:
            return
        self.write(trainer)

    def write(self, trainer: pl.Trainer) -> None:
        """Write the checkpoint now."""
        partial = self.path.with_suffix(f".{os.getpid()}.partial")
        try:
            trainer.save_checkpoint(partial)
            os.replace(partial, self.path)
        finally:
            partial.unlink(missing_ok=True)
        self._last_step, self._last_time = trainer.global_step, time.monotonic()
