"""Pareto geometry against a second library."""

import pytest

from benchmarks.geometry import compare


@pytest.mark.fast
def test_fronts_and_hypervolumes_are_those_of_a_second_library() -> None:
    found = compare(1000)
    assert found.fronts_differ == 0
    assert found.volume_differs < 1e-12
    assert min(found.tied, found.infinite, found.unbounded, 1000 - found.unbounded) >= 50  # none of it in vain
