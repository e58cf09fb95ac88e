"""A Weights & Biases mirror of a command: curves, final measures and references to models.

The record is the truth; this mirrors it. A tracker never prompts, never blocks for long and never stops a
run: without an account, a network or a working W&B the run goes on, and one line says what became of it.
"""

import re
from argparse import Namespace
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from slimexp.logger.base import Tracker
from slimexp.logger.curves import EPOCH
from slimexp.logger.wandb_run import WandbRun, wandb_module


class Wandb(WandbRun, Tracker):
    """One Weights & Biases run per command; keys are prefixed by the stage. Arguments are those of ``WandbRun``."""

    def loggers(self, stage: str, curves: str | Path) -> list[pl.loggers.Logger]:
        loggers = super().loggers(stage, curves)
        if self.guarded("log", lambda: _define_axis(self.run, stage)):
            loggers.append(_StageLogger(self.run, stage, log=self._log))
        return loggers

    def summary(self, stage: str, metrics: Mapping[str, float]) -> None:
        values = {f"{stage}/{name}": value for name, value in metrics.items()}
        self.guarded("write the summary", lambda: self.run.summary.update(values))

    def artifact(self, stage: str, folder: str | Path) -> None:
        def reference() -> None:
            name = re.sub(r"[^\w.-]+", "_", f"{self.name}-{stage}")  # what W&B allows in a name
            artifact = wandb_module().Artifact(name, type="model", metadata={"stage": stage})
            artifact.add_reference(Path(folder).resolve().as_uri())
            self.run.log_artifact(artifact)

        self.guarded("refer to the artifact", reference)

    def _log(self, row: Mapping[str, float]) -> None:
        self.guarded("log", lambda: self.run.log(dict(row)))


def _define_axis(run: Any, stage: str) -> bool:
    """Draw the metrics of ``stage`` over its own optimizer steps."""
    run.define_metric(f"{stage}/step", hidden=True)
    run.define_metric(f"{stage}/*", step_metric=f"{stage}/step")
    return True


class _StageLogger(pl.loggers.WandbLogger):
    """Writes ``<stage>/<metric>`` over ``<stage>/step`` into a run that is open already."""

    def __init__(self, run: Any, stage: str, *, log: Callable[[dict[str, float]], None]) -> None:
        super().__init__(experiment=run, log_model=False)
        self._stage = stage
        self._log = log

    @pl.utilities.rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace) -> None:
        """The run's configuration is there already; a stage's module must not write over it."""

    @pl.utilities.rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        row = metrics if step is None else {**metrics, "step": step}
        self._log({f"{self._stage}/{name}": value for name, value in row.items() if name != EPOCH})
