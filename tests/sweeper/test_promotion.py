"""The few points that are promoted: which, under what, and once."""

from collections.abc import Callable
from typing import Any

import pytest

from slimexp.sweeper.promotion import Promotion
from slimexp.sweeper.sweep import Sweep

Make = Callable[..., Sweep]
Ran = Callable[[], list[str]]


@pytest.mark.fast
@pytest.mark.parametrize(
    ("most", "chosen"),
    [(0, []), (1, [0]), (2, [0, 9]), (3, [0, 4, 9]), (4, [0, 3, 6, 9]), (10, list(range(10))), (99, list(range(10)))],
)
def test_points_are_spread_over_the_front(most: int, chosen: list[int]) -> None:
    assert Promotion(most).chosen(range(10)) == chosen


@pytest.mark.fast
@pytest.mark.parametrize(
    ("settings", "message"), [({"most": -1}, "most must be >= 0, got -1"), ({"seeds": (1, 1)}, "must be distinct")]
)
def test_wrong_promotions_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Promotion(**settings)


def test_the_front_is_run_again_in_earnest_and_once(make: Make, ran: Ran) -> None:
    command = ("x=2,3", "y=1,2")
    earnest = Promotion(2, ("z=full",), (0, 1))
    sweep = make(*command, promotion=earnest)
    assert [trial.params for trial in sweep.run()] == [{"x": "2", "y": "1"}]
    assert sorted(ran()[4:]) == ["x=2 y=1 z=full seed=0", "x=2 y=1 z=full seed=1"]
    (result,) = sweep.promoted.values()
    assert result["metrics"]["cer"] == 0.5 and result["error"] is None  # a mean over its seeds
    again = make(*command, promotion=earnest)
    again.run()
    assert len(ran()) == 6 and [one["metrics"] for one in again.promoted.values()] == [result["metrics"]]
    make(*command, promotion=Promotion(2, ("z=fuller",))).run()
    assert ran()[6:] == ["x=2 y=1 z=fuller"]


def test_a_promotion_that_fails_is_said_and_tried_again(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = Promotion(1, ("x=wrong",))
    for _ in range(2):
        sweep = make("x=2,3", promotion=wrong)
        assert len(sweep.run()) == 1
        assert "promoted: ValueError: x is wrong (all in" in capsys.readouterr().out
        assert sweep.promoted[0]["error"] is not None
