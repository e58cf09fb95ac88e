"""A Trackio mirror of a command, on this machine: curves, final measures and places of models.

Trackio keeps runs in a folder of its own and shows them with ``trackio show``, without an account or a network; with
``space_id`` it sends them to a Space of Hugging Face instead. The record is the truth; this mirrors it.
"""

import contextlib
import io
from argparse import Namespace
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytorch_lightning as pl

from slimexp.host.extra import require
from slimexp.logger.base import Tracker
from slimexp.logger.curves import EPOCH
from slimexp.logger.guarded import Guarded, say


class Trackio(Guarded, Tracker):
    """One Trackio run per command; keys are prefixed by the stage.

    Args:
        project: Trackio's project.
        group: Name of a set of runs that are shown together; ``None`` for none.
        space_id: Space of Hugging Face that gets the runs; ``None`` for this machine, in ``TRACKIO_DIR``.

    Raises:
        ValueError: The package ``trackio`` is not installed.
    """

    label = "Trackio"

    def __init__(self, *, project: str, group: str | None, space_id: str | None) -> None:
        trackio_module()
        self.project, self.group, self.space_id = project, group, space_id

    def start(self, *, name: str, config: Mapping[str, Any]) -> None:
        if getattr(pl.utilities.rank_zero_only, "rank", 0) != 0:
            return
        self.run = self.guarded("start", lambda: self._init(name, dict(config)))
        if self.run is not None:
            where = f"in the Space {self.space_id}" if self.space_id else "on this machine"
            say(self.label, f'run {self.run.name} {where}; `trackio show --project "{self.project}"` shows it')

    def loggers(self, stage: str, curves: str | Path) -> list[pl.loggers.Logger]:
        loggers = super().loggers(stage, curves)
        return loggers if self.run is None else [*loggers, _StageLogger(self.project, stage, log=self._log)]

    def summary(self, stage: str, metrics: Mapping[str, float]) -> None:
        self._log({f"{stage}/final/{name}": float(value) for name, value in metrics.items()}, None)

    def artifact(self, stage: str, folder: str | Path) -> None:
        self._log({f"{stage}/artifact": str(Path(folder).resolve())}, None)

    def finish(self) -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            self.guarded("finish", trackio_module().finish)  # the run's own would be called once more at the end
        self.run = None

    def _init(self, name: str, config: dict[str, Any]) -> Any:
        with contextlib.redirect_stdout(io.StringIO()):  # the output of a command is its own
            return trackio_module().init(
                project=self.project, name=name, group=self.group, space_id=self.space_id, config=config,
                embed=False, auto_log_gpu=False, auto_log_cpu=False,
            )  # fmt: skip

    def _log(self, row: Mapping[str, float | str], step: int | None) -> None:
        self.guarded("log", lambda: self.run.log(dict(row), step=step))


class _StageLogger(pl.loggers.Logger):
    """Writes ``<stage>/<metric>`` at the stage's own optimizer steps into a run that is open already."""

    def __init__(self, project: str, stage: str, *, log: Callable[[dict[str, float], int | None], None]) -> None:
        super().__init__()
        self._project, self._stage, self._log = project, stage, log

    @property
    def name(self) -> str:
        return self._project

    @property
    def version(self) -> str:
        return self._stage

    @pl.utilities.rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """The run's configuration is there already; a stage's module must not write over it."""

    @pl.utilities.rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self._log({f"{self._stage}/{name}": float(value) for name, value in metrics.items() if name != EPOCH}, step)


def trackio_module() -> ModuleType:
    """The library ``trackio``, imported late (0.6 s)."""
    return require("trackio", extra="trackio", by="logger=trackio")
