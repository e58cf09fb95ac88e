"""Figures that follow from the metrics of a record."""

from collections.abc import Callable

import pytest

from slimexp.record.figures import figures, unshrunk
from slimexp.record.record import Record

pytestmark = pytest.mark.fast

Make = Callable[..., Record]


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
