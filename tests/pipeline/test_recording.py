"""Records of every command are made in one place."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
from omegaconf import OmegaConf

from slimexp.data.base import Direction
from slimexp.measure.base import Measure, Subject
from slimexp.pipeline.recording import Recorder, line
from slimexp.record import record

Make = Callable[..., Any]


class Count(Measure):
    directions: ClassVar[Mapping[str, Direction]] = {"count": "max"}

    def measure(self, subject: Subject, baseline: Subject, corpus: Any) -> dict[str, float]:
        return {}


@pytest.fixture
def recorder(corpus: Make, tmp_path: Path) -> Recorder:
    cfg = OmegaConf.create({"name": "a", "seed": 3, "runs": str(tmp_path / "runs"), "logger": {"api_key": "hidden"}})
    return Recorder(cfg, overrides=["logger.api_key=hidden"], corpus=corpus("seq2seq"), measures={"count": Count()})


def build(recorder: Recorder, **changes: Any) -> record.Record:
    fields: dict[str, Any] = {
        "stage": "prune", "technique": "Prune", "key": "k", "parent": "p", "kernel": "dense",
        "metrics": {"count": 2.0, "other": 1.0}, "baseline": {}, "baseline_key": None, "seconds": {"measure": 1.0},
        "reused": False, "artifact": recorder.runs / "a" / "artifact", "curves": None,
    }  # fmt: skip
    return recorder.record(**fields | changes)


def test_what_all_records_of_a_command_have_in_common(recorder: Recorder) -> None:
    row = build(recorder)
    assert (row.name, row.seed, row.headline, row.direction) == (
        "a", 3, recorder.corpus.headline, recorder.corpus.direction
    )  # fmt: skip
    assert row.directions == {"count": "max"}
    assert row.trivial == recorder.corpus.trivial(recorder.corpus.splits["test"])
    assert row.versions["torch"] and "hidden" not in row.to_json()


def test_paths_are_relative_to_the_runs_folder(recorder: Recorder, tmp_path: Path) -> None:
    row = build(recorder, artifact=tmp_path / "elsewhere", curves=recorder.runs / "a" / "curves.jsonl")
    assert (row.artifact, row.curves) == ("../elsewhere", "a/curves.jsonl")
    assert build(recorder).curves is None
    record.append(recorder.path, row)
    assert record.read(recorder.runs) == [record.Record.from_json(row.to_json())]


def test_a_line_says_what_became_of_a_stage(recorder: Recorder) -> None:
    name = recorder.corpus.headline
    row = build(
        recorder,
        metrics={name: 0.5, "disk_mb": 2.0},
        baseline={name: 0.25, "disk_mb": 4.0},
        baseline_key="d",
        seconds={"train": 7.0, "measure": 2.0},
        curves=recorder.runs / "curves.jsonl",
    )
    shown = line(replace(row, trivial=0.75), recorder.runs)
    assert shown.startswith(f"prune: {name} 0.5000 (50% of the dense gain kept), ")
    assert f"2.00 MB (0.50x dense), 7 s training, 2 s measuring -> {recorder.runs / 'a' / 'artifact'}" in shown
