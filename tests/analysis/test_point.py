"""Points: seeds put together, figures that follow from others, and how sure each figure is."""

import math
from collections.abc import Callable
from typing import Any

import pytest

from slimexp.analysis.point import Point, points, spreads
from slimexp.record.record import Record

pytestmark = pytest.mark.fast

Make = Callable[..., Record]


@pytest.fixture
def seeded(make_record: Make) -> Callable[..., Record]:
    """A record of a seed; what is not named is equal."""

    def make(seed: int, *, sparsity: float = 0.5, **changes: Any) -> Record:
        config = {"seed": seed, "pipeline": {"prune": {"sparsity": sparsity, "seed": seed}}}
        return make_record(**{"key": f"{seed}-{sparsity}", "seed": seed, "config": config, **changes})

    return make


def test_seeds_are_one_point_with_mean_range_and_error(seeded: Make) -> None:
    records = [
        seeded(seed, metrics={"cer": 0.02 + 0.01 * seed, "disk_mb": 8.0}, time=f"2026-{seed}") for seed in range(3)
    ]
    again = seeded(2, key="redone with other code", metrics={"cer": 0.05, "disk_mb": 8.0}, time="2026-3")
    (point,) = points([*records, again], {})
    assert (point.seeds, point.time) == ((0, 1, 2), "2026-3")
    cer = point.figures["cer"]
    assert (cer.mean, cer.low, cer.high, cer.seeds) == (pytest.approx(0.1 / 3), 0.02, 0.05, 3)
    assert cer.error == pytest.approx(math.sqrt(0.0007 / 3 / 3))  # s^2 = 0.0007 / 3
    assert point.figures["disk_mb"].error == 0


def test_figures_of_layers_stand_apart_in_the_order_of_the_model(seeded: Make) -> None:
    records = [seeded(seed, metrics={"cer": 0.02, "nats/second.q": 1.0, "nats/first.q": 2.0 + seed}) for seed in (0, 2)]
    (point,) = points(records, {})
    assert not any("/" in name for name in point.figures)
    assert [(layer, spread.mean, spread.low, spread.high) for layer, spread in point.layers["nats"].items()] == [
        ("second.q", 1.0, 1.0, 1.0),
        ("first.q", 3.0, 2.0, 4.0),
    ]


def test_settings_distinguish_points_and_the_type_of_a_number_does_not(seeded: Make) -> None:
    found = points([seeded(0, sparsity=1), seeded(1, sparsity=1.0), seeded(0, sparsity=0.5)], {})
    assert [(point.label, point.seeds) for point in found] == [
        ("prune(sparsity=1)", (0, 1)),
        ("prune(sparsity=0.5)", (0,)),
    ]


@pytest.mark.parametrize(
    ("ratio", "slower"),
    [
        ({"latency_ratio": 1.2}, True),
        ({"latency_ratio": 1.2, "latency_ratio_low": 0.9}, False),
        ({"latency_ratio": 1.2, "latency_ratio_low": 1.1}, True),
        ({"latency_ratio": 0.8}, False),
        ({}, False),
    ],
)
def test_slower_than_dense_beyond_the_noise(seeded: Make, ratio: dict[str, float], slower: bool) -> None:
    (point,) = points([seeded(0, metrics={"cer": 0.02, **ratio})], {})
    assert point.slower is slower


@pytest.mark.parametrize(
    ("metric", "row", "error"),
    [
        ("cer", {"cer": 0.3, "cer_stderr": 0.01}, 0.01),
        ("arc_acc", {"arc_acc": 0.3, "arc_acc_stderr": 0.01, "arc_acc_norm_stderr": 0.02}, 0.01),
        ("gsm8k_em_strict-match", {"gsm8k_em_strict-match": 0.3, "gsm8k_em_stderr_strict-match": 0.02}, 0.02),
        ("arc_acc", {"arc_acc": 1.0, "arc_acc_stderr": 0.0}, None),  # all rows right: no spread to learn from
        ("latency_ratio", {"latency_ratio": 1.0, "latency_ratio_low": 0.9, "latency_ratio_high": 1.1}, 0.1 / 1.96),
        ("latency_p50_ms", {"latency_p50_ms": 3.0}, None),
        ("disk_mb", {"disk_mb": 3.0}, 0.0),
        ("kept", {"kept": 1.0, "kept_stderr": 0.1}, 0.1),
    ],
)
def test_one_seed_has_the_error_that_its_measure_gives(metric: str, row: dict[str, float], error: float | None) -> None:
    found = spreads([row], dense=False)[metric].error
    assert found == (None if error is None else pytest.approx(error, rel=1e-4))


def test_the_dense_model_is_once_itself() -> None:
    found = spreads([{"kept": 1.0, "kept_stderr": 0.1, "latency_ratio": 1.0, "cer": 0.1}], dense=True)
    assert [found[name].error for name in ("kept", "latency_ratio", "cer")] == [0, 0, None]


def test_what_is_absent_is_not_known(seeded: Make) -> None:
    point: Point = points([seeded(0)], {})[0]
    assert math.isnan(point.value("energy")) and math.isnan(point.error("energy")) and math.isnan(point.error("cer"))
