"""No logger: the record and the curves are still written."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from slimexp.logger.base import Tracker


class Silent(Tracker):
    """Tracks nothing."""

    def start(self, *, name: str, config: Mapping[str, Any]) -> None:
        pass

    def summary(self, stage: str, metrics: Mapping[str, float]) -> None:
        pass

    def artifact(self, stage: str, folder: str | Path) -> None:
        pass

    def finish(self) -> None:
        pass
