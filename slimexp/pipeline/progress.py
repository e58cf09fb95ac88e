"""Progress of a training: a bar on a terminal, a few plain lines in a file or a pipe."""

import sys
from typing import Any

import pytorch_lightning as pl


class Progress(pl.callbacks.TQDMProgressBar):
    """Shows a bar on a terminal, and prints a line at every tenth of the steps to a file or a pipe.

    Args:
        refresh_rate: Number of batches between two updates of the bar; 0 for no bar.

    Raises:
        ValueError: ``refresh_rate`` is negative.
    """

    def __init__(self, *, refresh_rate: int) -> None:
        if refresh_rate < 0:
            raise ValueError(f"refresh_rate must be >= 0, got {refresh_rate}")
        super().__init__(refresh_rate=refresh_rate)

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

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        step, last = trainer.global_step, trainer.max_steps
        stepped = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        if not sys.stdout.isatty() and stepped and 10 * step // last > 10 * (step - 1) // last:
            shown = [f"{name} {value:.4g}" for name, value in self.get_metrics(trainer, pl_module).items()]
            print(", ".join([f"  step {step} of {last}", *shown]))
