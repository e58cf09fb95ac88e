"""Every schedule of conf/ goes from its start to its end, one way only, whatever the progress."""

import math
from typing import Any

import pytest
from omegaconf import OmegaConf

from slimexp.config.build import build
from slimexp.config.composition import CONF_DIR
from slimexp.schedule import Cubic, Exponential, Schedule, Step

NAMES = sorted(path.stem for path in (CONF_DIR / "schedule").glob("*.yaml"))
NODES = {name: OmegaConf.load(CONF_DIR / "schedule" / f"{name}.yaml") for name in NAMES}
CURVES = [name for name in NAMES if name != "constant"]
ENDS = [(5.0, 1.0), (0.1, 0.7), (1e-3, 10.0), (2.0, 2.0)]
GRID = [i / 100 for i in range(101)]

pytestmark = pytest.mark.fast


def schedule(name: str, start: float, end: float) -> Schedule:
    values: dict[str, Any] = {"start": start, "end": end}
    if name == "constant":
        values = {"value": start}
    if name == "step":
        values = {"values": [start, (start + end) / 2, end], "milestones": [0.3, 0.8]}
    return build(OmegaConf.merge(NODES[name], values))


@pytest.mark.parametrize("name", CURVES)
@pytest.mark.parametrize(("start", "end"), ENDS)
def test_runs_from_start_to_end(name: str, start: float, end: float) -> None:
    curve = schedule(name, start, end)
    assert curve(0.0) == start
    assert curve(1.0) == pytest.approx(end, rel=1e-12)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("start", "end"), ENDS)
def test_is_monotone_and_stays_between_its_ends(name: str, start: float, end: float) -> None:
    values = [schedule(name, start, end)(progress) for progress in GRID]
    falling = start > end
    assert values == sorted(values, reverse=falling)
    assert min(values) >= min(start, end) - 1e-12
    assert max(values) <= max(start, end) + 1e-12


@pytest.mark.parametrize("name", NAMES)
def test_progress_outside_of_training_is_clamped(name: str) -> None:
    curve = schedule(name, 5.0, 1.0)
    assert curve(-0.5) == curve(0.0)
    assert curve(1.5) == curve(1.0)


@pytest.mark.parametrize("name", CURVES)
def test_a_share_that_ends_at_one_ends_there_exactly(name: str) -> None:
    """Pruning asks for the whole of its target at the end."""
    kind: Any = type(schedule(name, 0.5, 1.0))
    if name == "step":
        kind = lambda start, end: Step(values=[start, end], milestones=[0.5])  # noqa: E731
    assert all(kind(start=i / 997, end=1.0)(1.0) == 1.0 for i in range(1, 998))


def test_constant_is_constant() -> None:
    assert {schedule("constant", 3.0, 3.0)(progress) for progress in GRID} == {3.0}


def test_linear_halves_at_half() -> None:
    assert schedule("linear", 5.0, 1.0)(0.5) == 3.0
    assert schedule("linear", 5.0, 1.0)(0.25) == 4.0


def test_cosine_is_flat_at_both_ends_and_halves_at_half() -> None:
    curve = schedule("cosine", 1.0, 0.0)
    assert curve(0.5) == pytest.approx(0.5)
    assert 1 - curve(0.01) < 0.001 > curve(0.99)


def test_cubic_is_the_formula_of_the_paper() -> None:
    """Zhu & Gupta 2017, eq. 1: s_t = s_f + (s_i - s_f) (1 - (t - t_0) / (n Δt))^3, from t_0 to t_0 + n Δt."""
    initial, final, first, count, every = 0.1, 0.8, 20, 12, 5
    curve = Cubic(start=initial, end=final)
    for step in range(first, first + count * every + 1, every):
        paper = final + (initial - final) * (1 - (step - first) / (count * every)) ** 3
        assert curve((step - first) / (count * every)) == pytest.approx(paper, abs=1e-12)


def test_exponential_has_a_constant_ratio() -> None:
    curve = Exponential(start=8.0, end=0.5)
    ratios = [curve((i + 1) / 10) / curve(i / 10) for i in range(10)]
    assert ratios == [pytest.approx((0.5 / 8.0) ** 0.1)] * 10


@pytest.mark.parametrize("end", [3.0, math.nextafter(3.0, 4.0)])
def test_exponential_between_equal_ends(end: float) -> None:
    assert Exponential(start=3.0, end=end)(0.5) == pytest.approx(3.0)


@pytest.mark.parametrize(("start", "end"), [(0.0, 1.0), (1.0, 0.0), (-1.0, 1.0)])
def test_exponential_needs_positive_ends(start: float, end: float) -> None:
    with pytest.raises(ValueError, match=r"needs start > 0 and end > 0, got"):
        Exponential(start=start, end=end)


def test_a_step_holds_each_value_from_its_milestone_on() -> None:
    curve = Step(values=[5.0, 3.0, 3.0, 1.0], milestones=[0.2, 0.5, 0.75])
    values = [curve(progress) for progress in (0.0, 0.19, 0.2, 0.5, 0.74, 0.75, 1.0)]
    assert values == pytest.approx([5.0, 5.0, 3.0, 3.0, 3.0, 1.0, 1.0], rel=1e-12)
    assert {Step(values=[2.0], milestones=[])(progress) for progress in GRID} == {2.0}


@pytest.mark.parametrize(
    ("values", "milestones", "message"),
    [
        ([1.0, 5.0, 1.0], [0.3, 0.6], r"values must rise or fall throughout, got \[1.0, 5.0, 1.0\]"),
        ([], [], "values must rise or fall throughout"),
        ([5.0, 1.0], [], r"2 values need 1 milestones, one between each two, got \[\]"),
        ([5.0, 3.0, 1.0], [0.6, 0.3], r"milestones must be ascending shares of the training in \(0, 1\)"),
        ([5.0, 1.0], [1.0], "milestones must be ascending"),
        ([5.0, 1.0], [0.0], "milestones must be ascending"),
    ],
)
def test_steps_that_cannot_be(values: list[float], milestones: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Step(values=values, milestones=milestones)
