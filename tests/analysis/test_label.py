"""Labels: settings that distinguish points, those that were chosen before their numbers, and no others."""

from collections.abc import Callable
from typing import Any

import pytest

from slimexp.analysis.label import labels
from slimexp.record.record import Record

pytestmark = pytest.mark.fast

Make = Callable[..., Record]


def test_labels_hold_what_differs_and_nothing_else(make: Callable[..., Record]) -> None:
    records = [
        make("prune", {"cer": 0.02, "disk_mb": 1.0}, {"prune": {"sparsity": sparsity, "steps": 10}}, key=str(sparsity))
        for sparsity in (0.5, 0.75)
    ]
    nested = [
        make(
            "distill",
            {"cer": 0.02},
            {"distill": {"losses": {"kl": {"temperature": {"start": start}}}}},
            key=f"d{start}",
        )
        for start in (1.0, 5.0)
    ]
    assert labels([*records, *nested], {}) == [
        "prune(sparsity=0.5)",
        "prune(sparsity=0.75)",
        "distill(temperature.start=1)",
        "distill(temperature.start=5)",
    ]


def test_settings_that_alone_distinguish_points_are_not_cut_from_their_labels(make_record: Make) -> None:
    def made(key: str, **settings: int) -> Record:
        stage = dict.fromkeys(("a", "b", "c", "d", "e"), 0) | settings
        return make_record(key=key, config={"pipeline": {"prune": stage}})

    alone = dict.fromkeys(("a", "b", "c", "d"), 1)
    found = labels([made("1"), made("2", e=1), made("3", **alone)], {})
    assert found == [
        "prune(a=0, b=0, c=0, d=0, e=0)",
        "prune(a=0, b=0, c=0, d=0, e=1)",
        "prune(a=1, b=1, c=1, d=1, +1)",
    ]


def test_what_was_chosen_stands_before_its_numbers(make_record: Make) -> None:
    def made(key: str, quantizer: str, rounding: str | None, **numbers: int) -> Record:
        parts: dict[str, Any] = {"quantizer": {"_target_": f"q.{quantizer}", "rate": len(quantizer)}, "rounding": None}
        if rounding is not None:
            parts["rounding"] = {"_target_": f"r.{rounding}"}
        return make_record(key=key, config={"pipeline": {"prune": numbers | parts}})

    numbers = dict.fromkeys(("a", "b", "c"), 0)
    found = labels(
        [made("1", "MinMax", "Gptq", **numbers), made("2", "Hqq", None, **numbers | {"a": 1, "b": 1, "c": 1})], {}
    )
    assert found == ["prune(MinMax, Gptq, a=0, b=0, +1)", "prune(Hqq, a=1, b=1, c=1)"]


def test_records_that_settings_do_not_distinguish_are_labelled_by_their_run(make_record: Make) -> None:
    records = [make_record("a", name="first"), make_record("b", name="second\n"), make_record("c", stage="quantize")]
    first, second, other = labels(records, {})
    assert (first, other) == ("prune [first]", "quantize")
    assert second.startswith("prune [second") and second.isprintable()
