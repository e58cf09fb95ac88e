"""Curves of a training in a plain file, one JSON line per logged step."""

import json
import math
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from slimexp.file import integrity

_LONGEST = 2**20  # bytes of a row
EPOCH = "epoch"  # Lightning adds it: a count of its loop, which runs once per stage, or once more when resumed


class Curves(pl.loggers.Logger):
    """Writes every logged step as one JSON line: ``{"step": optimizer step, metric: value, ...}``.

    A resumed run logs some steps again. Its first line drops those an earlier process wrote from that step
    on, so that the file equals the one of a run that was never stopped. Values that are not finite become null.

    Args:
        path: The file; it and its folder are created at the first line.
    """

    def __init__(self, *, path: str | Path) -> None:
        super().__init__()
        self.path = Path(path)
        self._opened = False

    @property
    def name(self) -> str:
        return "curves"

    @property
    def version(self) -> int:
        return 0

    @property
    def save_dir(self) -> str:
        return str(self.path.parent)

    @pl.utilities.rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """The record holds the configuration."""

    @pl.utilities.rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        if not self._opened:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            drop_from(self.path, step or 0)
            self._opened = True
        values = {name: float(value) for name, value in metrics.items() if name != EPOCH}
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step, **finite}) + "\n")


def drop_from(path: Path, step: float) -> str | None:
    """Keep the rows of ``path`` before ``step``; half a row of a killed process is dropped too.

    Returns:
        A message on the first line that is no row, where there is one; such lines are dropped.
    """
    if not path.exists():
        return None
    rows, fault = [], None
    with path.open("rb") as file:
        for number, line in enumerate(iter(lambda: file.readline(_LONGEST), b""), start=1):
            if (logged := _step(line)) is not None:
                rows += [line.decode()] if logged < step else []
            elif line.endswith(b"\n") or len(line) == _LONGEST:
                fault = fault or f"line {number} is no row of it"
    integrity.write(path, "".join(rows))
    return fault


def _step(line: bytes) -> float | None:
    """The step of a whole row; ``None`` for anything else."""
    try:
        # decoded strictly: json.loads takes UTF-16, and halves of characters, of bytes
        row = json.loads(line.decode(), parse_constant=float) if line.endswith(b"\n") else None
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict) or not {type(value) for value in row.values()} <= {int, float, type(None)}:
        return None
    is_row = "step" in row and all(value is None or integrity.is_finite(value) for value in row.values())
    return (row["step"] or 0) if is_row else None
