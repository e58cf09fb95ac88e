"""What became of an export: for its report file, and for the record of the run that made the model."""

import json
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from slimexp.format.base import Facts
from slimexp.format.verification import Agreement
from slimexp.record import record
from slimexp.record.exported import DIRECTIONS
from slimexp.record.record import Record

_ABOVE = 3  # folders between an artifact and the runs folder that may hold it: RUNS/NAME/STAGE-KEY/artifact


@dataclass(frozen=True, kw_only=True)
class Report:
    """A finished export.

    Attributes:
        format: Name of the format.
        artifact: Key of the stage that made the model.
        disk_mb: Size of all files in MB.
        seconds: Seconds that writing and comparing took.
        facts: What the format says of it.
        agreement: How the engine's answers compare with PyTorch's.
        as_run: The same of the engine as its users run it, where that rounds more.
        speed: Figures of ``speed.speed``, of the engine as its users run it; empty where it was not timed.
    """

    format: str
    artifact: str
    disk_mb: float
    seconds: float
    facts: Facts
    agreement: Agreement
    as_run: Agreement | None
    speed: Mapping[str, float]

    def to_json(self) -> str:
        """The report as the text of a file."""
        return json.dumps(asdict(self), indent=2) + "\n"

    def figures(self) -> dict[str, float]:
        """Numbers by their names in records."""
        gaps = {"logit_gap": self.agreement.relative}
        if self.as_run is not None:
            gaps["logit_gap_as_run"] = self.as_run.relative
        return {"disk_mb": self.disk_mb, **gaps, **self.speed}

    def __str__(self) -> str:
        lines = [f"{self.disk_mb:.2f} MB, {self.agreement}"]
        if self.as_run is not None:
            lines.append(f"as it is run: {self.as_run}")
        if "forward_ratio" in self.speed:
            lines.append(self._compared("forward pass", "forward_ms", "forward_ratio", "ms", of="time"))
        if "tokens_ratio" in self.speed:
            lines.append(self._compared("greedy decoding", "tokens_per_s", "tokens_ratio", "tokens/s", of="speed"))
        return "\n".join(lines)

    def _compared(self, what: str, name: str, ratio: str, unit: str, *, of: str) -> str:
        """The ratio over pairs in turns, and the medians, whose ratio may be another where times spread."""
        here, there = self.speed[name], self.speed[f"{name}_pytorch"]
        low, high = self.speed[f"{ratio}_low"], self.speed[f"{ratio}_high"]
        beside = f"{self.speed[ratio]:.2f}x PyTorch's {of} ({low:.2f} to {high:.2f}, pairs in turns)"
        return f"{what}: {beside}; medians {here:.3g} and {there:.3g} {unit}"


def add_to_record(artifact: Path, report: Report) -> Path | None:
    """Add figures of an export to the record of the stage that made the model, in a line that readers merge with it.

    Args:
        artifact: Folder of the model.
        report: The export; the name of its format is put before each figure.

    Returns:
        The file of records; ``None`` where none is of this artifact.

    Raises:
        OSError: The file cannot be written.
    """
    place = artifact.resolve()
    figures = report.figures()
    for runs in place.parents[: _ABOVE + 1]:
        path = runs / record.FILE
        if path.is_file() and (row := _of(path, place, report.artifact)):
            metrics = {f"{report.format}_{name}": value for name, value in figures.items()}
            directions = {f"{report.format}_{name}": way for name, way in DIRECTIONS.items() if name in figures}
            now = datetime.now(UTC).isoformat(timespec="seconds")
            record.append(path, replace(row, time=now, metrics=metrics, directions=directions))
            return path
    return None


def _of(path: Path, artifact: Path, key: str) -> Record | None:
    """The newest record in a file of the model in ``artifact``.

    Runs of one dense model have a copy of it each, and readers merge their records to that of the newest: where the
    folder is of none, the key of the stage tells.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # lines that cannot be read are a matter of reports
        rows = record.read(path)[::-1]
    made = (row for row in rows if (path.parent / row.artifact).resolve() == artifact)
    return next(made, None) or next((row for row in rows if row.key == key), None)
