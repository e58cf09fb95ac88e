"""Records of stages, and sections to draw, for the tests of this room."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from slimexp.analysis.comparison import Comparisons
from slimexp.analysis.plot import draw
from slimexp.analysis.point import Point, spreads
from slimexp.analysis.section import Section
from slimexp.record.record import Record

SPELLING = {"_target_": "slimexp.data.spelling.Spelling", "rate": 0.08}
DENSE = {"cer": 0.015, "disk_mb": 16.0}


def make_stage(
    stage: str,
    metrics: dict[str, float],
    pipeline: dict[str, Any] | None = None,
    *,
    parent: str | None = None,
    seed: int = 0,
    data: dict[str, Any] | None = None,
    **changes: Any,
) -> Record:
    """A record whose key is its content."""
    pipeline = pipeline if pipeline is not None else {stage: {}}
    fields: dict[str, Any] = {
        "time": "2026-01-01T00:00:00+00:00",
        "name": "run",
        "stage": stage,
        "key": f"{stage}-{parent}-{seed}-{pipeline}-{data}",
        "parent": parent,
        "technique": "dense" if stage == "dense" else stage.title(),
        "seed": seed,
        "overrides": [],
        "config": {
            "data": {**(data or SPELLING), "seed": seed},
            "model": {"_target_": "slimexp.model.loading.Pretrained", "path": "zoo:t5"},
            "pipeline": pipeline,
            "seed": seed,
        },
        "git": None,
        "versions": {},
        "hardware": {},
        "kernel": "float32 matmul",
        "headline": "cer",
        "direction": "min",
        "metrics": metrics,
        "directions": {"decode_tokens_per_s": "max"},
        "baseline": DENSE,
        "baseline_key": f"dense-None-{seed}-{{}}-{data}",
        "trivial": 0.077,
        "seconds": {},
        "reused": False,
        "artifact": "",
        "curves": None,
    }
    return Record(**{**fields, **changes})


@pytest.fixture(scope="session")
def make() -> Callable[..., Record]:
    """Stage and metrics (and pipeline and changes) -> a record whose key is its content."""
    return make_stage


def named_point(label: str, rows: Sequence[dict[str, float]], *, chain: tuple[str, ...] = ("prune",)) -> Point:
    dense = label == "dense"
    return Point(label, chain, dense, tuple(range(len(rows))), spreads(rows, dense=dense), {}, ("run",), (), (), "2026")


def unpaired(points: list[Point]) -> Comparisons:
    """How points without rows compare, of which the first dense one is the dense model of all."""
    home = next((index for index, point in enumerate(points) if point.dense), None)
    dense = [home] * len(points)
    return Comparisons(points, better=lambda _: "min", dense=dense, rows=lambda *_: (), headline="cer", guess=0.08)


def section_of(points: list[Point], front: list[int], probabilities: list[float | None], **changes: Any) -> Section:
    one = Section(
        title="spelling",
        headline="cer",
        quality="kept",
        untrained=False,
        direction="min",
        x="disk_mb",
        y="cer",
        directions=("min", "min"),
        z=None,
        z_direction=None,
        guess=0.08,
        trivial=0.08,
        points=points,
        front=front,
        probabilities=probabilities,
        corner=None,
        volume=None,
        hypervolume=None,
        hypervolume_history=[],
        published=[],
        environments=[],
        comparisons=unpaired(points),
    )
    return replace(one, **changes)


@pytest.fixture(scope="session")
def make_point() -> Callable[..., Point]:
    """Label and figures of each seed (and chain) -> a point."""
    return named_point


@pytest.fixture(scope="session")
def make_section() -> Callable[..., Section]:
    """Points, front and probabilities (and changes) -> a section of size and error rate."""
    return section_of


@pytest.fixture
def usual() -> Section:
    """A dense model, two points on the front that cannot be separated, and one that is slower and dominated."""
    rows = {
        "dense": {"cer": 0.02, "disk_mb": 16.0, "latency_ratio": 1.0, "cer_stderr": 0.001},
        "best": {"cer": 0.02, "disk_mb": 4.0, "cer_stderr": 0.001},
        "near": {"cer": 0.0205, "disk_mb": 5.0, "cer_stderr": 0.001},
        "slow": {"cer": 0.03, "disk_mb": 8.0, "cer_stderr": 0.001, "latency_ratio": 1.5},
    }
    points = [named_point(label, [figures]) for label, figures in rows.items()]
    return section_of(points, [0, 1], [0.4, 0.0, 0.6, 1.0])


@pytest.fixture(scope="session")
def drawn() -> Callable[[Section], Axes]:
    """Section -> the axes that it was drawn on."""

    def draw_alone(section: Section) -> Axes:
        axes = Figure(figsize=(10, 5)).subplots()
        draw(section, axes)
        return axes

    return draw_alone
