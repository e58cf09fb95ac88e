"""The median rule stops what is worse than the median of the others."""

import pytest

from slimexp.stopper.median import Median


@pytest.mark.fast
def test_the_median_stops_what_is_worse_than_it() -> None:
    median = Median(stage=None, rungs=[0.5], least=1, among="", rows=4, folder="rungs")
    assert not median.hopeless(9.0, [])
    assert not median.hopeless(2.0, [1.0, 2.0, 3.0])
    assert median.hopeless(2.1, [1.0, 2.0, 3.0])
    assert median.hopeless(float("nan"), [1.0])
