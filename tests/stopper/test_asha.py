"""Asynchronous successive halving keeps the best share of those seen."""

from typing import Any

import pytest

from slimexp.stopper.asha import Asha

pytestmark = pytest.mark.fast


def asha(**changes: Any) -> Asha:
    settings = {"stage": None, "rungs": [0.5], "least": 1, "among": "", "rows": 4, "folder": "rungs", "keep": 0.5}
    return Asha(**settings | changes)


@pytest.mark.parametrize(
    ("grade", "others", "hopeless"),
    [
        (5.0, [], False),  # the first of a rung
        (2.0, [1.0], True),
        (1.0, [2.0], False),
        (2.0, [1.0, 3.0, 4.0], False),  # second of four
        (3.0, [1.0, 2.0, 4.0], True),
        (1.0, [1.0, 1.0, 1.0], False),  # none is better
        (float("nan"), [1.0, 2.0, 3.0], True),
    ],
)
def test_the_better_half_goes_on(grade: float, others: list[float], hopeless: bool) -> None:
    assert asha().hopeless(grade, others) is hopeless


@pytest.mark.parametrize("keep", [0.25, 0.5, 0.75])
def test_its_share_goes_on(keep: float) -> None:
    grades = [float(i) for i in range(20)]
    kept = [g for g in grades if not asha(keep=keep).hopeless(g, [o for o in grades if o != g])]
    assert kept == grades[: round(20 * keep)]


@pytest.mark.parametrize("keep", [0.0, 1.0])
def test_a_wrong_share_is_refused(keep: float) -> None:
    with pytest.raises(ValueError, match=rf"keep must be in \(0, 1\), got {keep}"):
        asha(keep=keep)
