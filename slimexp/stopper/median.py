"""The median rule: a trial stops that is worse than the median of the others."""

import statistics
from collections.abc import Sequence

from slimexp.stopper.base import Stopper


class Median(Stopper):
    """Stops a trial worse than the median of the others (Golovin et al. 2017, "Google Vizier", section 3.2.2)."""

    def hopeless(self, grade: float, others: Sequence[float]) -> bool:
        return bool(others) and not grade <= statistics.median(others)  # NaN is worse
