"""Figures that follow from others: retention, ratios to the dense model, sparsity, bits per weight."""

from collections.abc import Callable

import pytest

from slimexp.record.figures import figures, retention, unshrunk
from slimexp.record.record import Record

pytestmark = pytest.mark.fast

Make = Callable[..., Record]


def test_retention_is_corrected_for_the_trivial_guess(make_record: Make) -> None:
    assert retention(make_record(metrics={"cer": 0.015})) == pytest.approx(1)
    assert retention(make_record(metrics={"cer": 0.077})) == pytest.approx(0)
    assert retention(make_record(metrics={"cer": 0.046})) == pytest.approx(0.5)
    accuracy = {"headline": "accuracy", "direction": "max", "baseline": {"accuracy": 0.9}, "trivial": 0.5}
    assert retention(make_record(metrics={"accuracy": 0.8}, **accuracy)) == pytest.approx(0.75)
    assert retention(make_record(metrics={})) is None
    assert retention(make_record(baseline={})) is None
    assert retention(make_record(baseline={"cer": 0.077})) is None
    assert retention(make_record(baseline={"cer": 0.08})) is None
    assert retention(make_record(metrics={"accuracy": 0.8}, **accuracy | {"baseline": {"accuracy": 0.4}})) is None


def test_derived_figures(make_record: Make) -> None:
    metrics = {"cer": 0.046, "cer_stderr": 0.0031, "disk_mb": 4.0, "params_live": 4e6, "params_nonzero": 1e6}
    record = make_record(metrics={**metrics, "weights_mb": 2.0}, baseline={"cer": 0.015, "disk_mb": 16.0})
    found = figures(record)
    assert {name: found[name] for name in found if name not in record.metrics} == pytest.approx(
        {"kept": 0.5, "kept_stderr": 0.05, "size_ratio": 0.25, "sparsity": 0.75, "bits_per_weight": 4.0}
    )


@pytest.mark.parametrize(
    ("sparsity", "size_ratio", "expected"), [(0.5, 1.0, True), (0.5, 0.6, False), (0.0, 1.0, False)]
)
def test_zeros_that_are_stored_make_nothing_smaller(sparsity: float, size_ratio: float, expected: bool) -> None:
    assert unshrunk({"sparsity": sparsity, "size_ratio": size_ratio}) is expected
    assert not unshrunk({"cer": 0.1})


def test_figures_of_layers_and_ratios_to_next_to_nothing_are_none(make_record: Make) -> None:
    record = make_record(metrics={"cer": 0.02, "disk_mb": 1e60, "bits/layer": 4.0}, baseline={"disk_mb": 1e-60})
    assert figures(record) == {"cer": 0.02, "disk_mb": 1e60}
