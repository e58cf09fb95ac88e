"""Progress of a training: a bar on a terminal, a few plain lines in a file or a pipe."""

import sys
import time
from typing import Any

import pytorch_lightning as pl

from slimexp.host.progress import EVERY_S, Work, reporter


class Progress(pl.callbacks.TQDMProgressBar):
    """Shows a bar on a terminal; prints a line to a file or a pipe at every tenth of the steps, and every ten seconds.

    Args:
        refresh_rate: Number of batches between two updates of the bar; 0 for no bar.

    Raises:
        ValueError: ``refresh_rate`` is negative.
    """

    def __init__(self, *, refresh_rate: int) -> None:
        if refresh_rate < 0:
            raise ValueError(f"refresh_rate must be >= 0, got {refresh_rate}")
        super().__init__(refresh_rate=refresh_rate)
        self._work: Work | None = None
        self._ended = time.monotonic()  # the last batch

    @property
    def is_enabled(self) -> bool:
        return super().is_enabled and sys.stdout.isatty()

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        """Metrics that the technique shows, without the version number that Lightning adds."""
        metrics = super().get_metrics(trainer, pl_module)
        return {name: value for name, value in metrics.items() if name != "v_num"}

    def on_train_epoch_start(self, trainer: pl.Trainer, *arguments: Any) -> None:
        super().on_train_epoch_start(trainer, *arguments)
        self.train_progress_bar.set_description("training")  # to Lightning, a stage is one epoch
        # batches of an earlier run took none of this one's time
        self.train_progress_bar.initial = trainer.global_step * trainer.accumulate_grad_batches

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        # the first step waits for workers that read text, and for compilers; a terminal has the bar for the others
        self._work = reporter.begin("waiting for the first step")

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        step, last = trainer.global_step, trainer.max_steps
        now = time.monotonic()
        took, self._ended = now - self._ended, now
        if self._work is not None and self._work.total is None:
            self._end()
            if not sys.stdout.isatty():
                self._work = reporter.begin("step", last, first_s=EVERY_S)
                self._work.before = self._work.done = step - 1  # of an earlier run, and the first of this one
        if self._work is None or sys.stdout.isatty():
            return
        self._work.done = step if step == last else step - 1  # the first step was done when the work began
        stepped = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        tenth = 10 * step // last > 10 * (step - 1) // last
        if stepped and (tenth or reporter.silent_s() + took >= 0.9 * EVERY_S):  # before the reporter, who knows no loss
            shown = [f"{name} {value:.4g}" for name, value in self.get_metrics(trainer, pl_module).items()]
            print(", ".join([f"  step {step} of {last}", *shown]) + reporter.times(self._work), flush=True)
            reporter.spoke()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_end(trainer, pl_module)
        if not sys.stdout.isatty():
            reporter.spoke()  # the last step's line says how long it took
        self._end()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        super().on_exception(trainer, pl_module, exception)
        self._end()

    def _end(self) -> None:
        if self._work is not None:
            reporter.end(self._work)
            self._work = None
