"""Trackers, which show a run while it goes on.

The record is the truth; trackers mirror it. None prompts, blocks for long or stops a run.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from slimexp.logger.curves import Curves


class Tracker(ABC):
    """Shows the progress of a command. Opened once per command, closed once."""

    @abstractmethod
    def start(self, *, name: str, config: Mapping[str, Any]) -> None:
        """Start tracking.

        Args:
            name: Name of the run.
            config: Configuration, as ``secret.written`` gives it.
        """

    def loggers(self, stage: str, curves: str | Path) -> list[pl.loggers.Logger]:
        """Lightning loggers of one stage, the first of which writes its curves to the file ``curves``."""
        return [Curves(path=curves)]

    @abstractmethod
    def summary(self, stage: str, metrics: Mapping[str, float]) -> None:
        """Show the final measures of a stage."""

    @abstractmethod
    def artifact(self, stage: str, folder: str | Path) -> None:
        """Point to a stage's model folder."""

    @abstractmethod
    def finish(self) -> None:
        """Stop tracking; harmless when called twice or before ``start``.

        Called while an exception is on its way (in a ``finally``), the run is marked as failed.
        """
