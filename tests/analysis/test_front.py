"""The front: what stands on it, and the hypervolume that it dominates."""

from collections.abc import Callable

import numpy as np
import pytest

from slimexp.analysis.front import corner, volume
from slimexp.analysis.point import Point
from slimexp.analysis.section import Section, sections
from slimexp.record.record import Record

pytestmark = pytest.mark.fast

DENSE = {"cer": 0.015, "disk_mb": 16.0}


def only(records: list[Record], **axes: str) -> Section:
    (section,) = sections(records, **axes)
    return section


def test_what_is_no_better_than_no_model_is_on_no_front(make: Callable[..., Record]) -> None:
    section = only([make("prune", {"cer": 0.077, "disk_mb": 1.0}), make("quantize", {"cer": 0.07, "disk_mb": 4.0})])
    assert [section.points[index].label for index in section.front] == ["dense", "quantize"]


def test_hypervolume_is_the_share_of_size_and_quality(make: Callable[..., Record]) -> None:
    half = make("quantize", {"cer": 0.015, "disk_mb": 4.0})
    assert only([half]).hypervolume == pytest.approx(0.75)
    assert only([make("prune", {"cer": 0.2, "disk_mb": 1.0})]).hypervolume == 0
    assert only([make("prune", {"wer": 0.2}, baseline={})]).hypervolume is None


def test_hypervolume_grows_as_points_finish(make: Callable[..., Record]) -> None:
    """Whatever their order in the section, which is by size."""
    sizes = {"c": (4.0, 0.0305), "a": (8.0, 0.015), "b": (16.0, 0.01), "d": (2.0, 0.0305), "e": (3.0, 0.1)}
    records = [
        make("prune", {"cer": cer, "disk_mb": disk}, {"prune": {"x": name}}, time=f"2026-01-0{day}T00:00:00+00:00")
        for day, (name, (disk, cer)) in enumerate(sizes.items(), start=1)
    ]
    section = only([*records, make("dense", DENSE, {}, time="2026-02-01T00:00:00+00:00")])
    assert [section.points[index].label for index in section.finished] == [f"prune(x={name})" for name in sizes]
    kept = (0.077 - 0.0305) / (0.077 - 0.015)
    first, second = 0.75 * kept, 0.75 * kept + 0.5 * (1 - kept)
    assert section.hypervolume_history == pytest.approx(
        [first, second, second, second + 0.125 * kept, second + 0.125 * kept]
    )
    assert section.hypervolume_history[-1] == section.hypervolume
    assert only([make("prune", {"wer": 0.2}, baseline={})]).hypervolume_history == []


def test_a_front_of_three(make: Callable[..., Record]) -> None:
    dense = {**DENSE, "latency_ratio": 1.0}
    rows = {"small": (4.0, 0.03, 1.2), "fast": (8.0, 0.03, 0.5), "good": (8.0, 0.02, 0.9), "beaten": (9.0, 0.03, 0.9)}
    records = [
        make("prune", {"cer": cer, "disk_mb": disk, "latency_ratio": ratio}, {"prune": {"x": name}}, baseline=dense)
        for name, (disk, cer, ratio) in rows.items()
    ]

    def front(section: Section) -> list[str]:
        return [section.points[index].label for index in section.front]

    assert front(only(records)) == ["dense", "prune(x=small)", "prune(x=good)"]
    section = only(records, z="latency_ratio")
    assert front(section) == ["dense", "prune(x=small)", "prune(x=fast)", "prune(x=good)"]
    assert section.axes == {"disk_mb": "min", "cer": "min", "latency_ratio": "min"}
    assert section.corner == [16.0, 0.077, 1.0]
    fast, good, both = 0.5 * (1 - 0.03 / 0.077) * 0.5, 0.5 * (1 - 0.02 / 0.077) * 0.1, 0.5 * (1 - 0.03 / 0.077) * 0.1
    assert section.volume == pytest.approx(fast + good - both)
    with pytest.raises(ValueError, match="different metrics, got disk_mb, cer, cer"):
        sections(records, z="cer")
    with pytest.raises(ValueError, match="no record has the metric 'energy'"):
        sections(records, z="energy")


def test_the_corner_is_the_worst_dense_model_and_the_trivial_guess(make_point: Callable[..., Point]) -> None:
    first, second = (make_point("dense", [{"cer": 0.02, "disk_mb": size}]) for size in (16.0, 20.0))
    axes = {"disk_mb": "min", "cer": "min"}
    assert corner([first, second], axes, "cer", 0.08) == [20.0, 0.08]  # type: ignore[arg-type]
    assert corner([make_point("prune", [{"cer": 0.02, "disk_mb": 4.0}])], axes, "cer", 0.08) is None  # type: ignore[arg-type]


def test_a_volume_that_no_float_holds_is_none() -> None:
    assert volume(np.array([[1e300, -1e300]]), [1e-300, 1e-300], ["max", "min"]) is None
    assert volume(np.array([[0.5, 0.5]]), [1.0, 1.0], ["min", "min"]) == 0.25
