"""Asynchronous successive halving (ASHA): a trial stops that is not among the best share."""

import math
from collections.abc import Sequence
from typing import Any

from slimexp.stopper.base import Stopper


class Asha(Stopper):
    """Successive halving, asynchronous (Li et al. 2020, in the variant that stops instead of pausing).

    Args:
        keep: Share of the trials graded at a rung that go on, in (0, 1); the first of a rung always does.
        stage: See ``Stopper``.
        rungs: See ``Stopper``.
        least: See ``Stopper``.
        among: See ``Stopper``.
        rows: See ``Stopper``.
        folder: See ``Stopper``.
    """

    def __init__(
        self,
        *,
        keep: float,
        stage: str | None,
        rungs: Sequence[float],
        least: int,
        among: Any,
        rows: int,
        folder: str,
    ) -> None:
        super().__init__(stage=stage, rungs=rungs, least=least, among=among, rows=rows, folder=folder)
        if not 0 < keep < 1:
            raise ValueError(f"keep must be in (0, 1), got {keep}")
        self.keep = keep

    def hopeless(self, grade: float, others: Sequence[float]) -> bool:
        better = sum(not grade <= other for other in others)  # all others are better than NaN
        return better >= math.ceil(self.keep * (len(others) + 1))
