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
        "reused": False, "artifact": recorder.runs / "a" / "artifact", "curves": None, "scores": {},
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


def test_a_line_on_a_language_model_leads_with_perplexity(make_record: Make, likelihoods: Make, tmp_path: Path) -> None:
    kept = {"headline": "bits_per_byte", "trivial": 4.5, "seconds": {"train": 1.0, "measure": 2.0}}
    same = make_record(metrics=likelihoods(74.0), baseline=likelihoods(34.0), **kept)
    assert line(same, tmp_path).startswith("prune: perplexity 74.0000 (2.176x dense), ")
    other = make_record(metrics=likelihoods(74.0), baseline=likelihoods(34.0, tokens_per_byte=0.4), **kept)
    assert line(other, tmp_path).startswith("prune: bits_per_byte 1.8628 (0.915x dense), ")
    dense = make_record("dense", metrics=likelihoods(34.0), baseline=likelihoods(34.0), **kept)
    assert line(dense, tmp_path).startswith("prune: perplexity 34.0000, ")


def test_a_line_names_no_share_of_the_gain_of_an_untrained_model(make_record: Make, tmp_path: Path) -> None:
    dense = {"macro_f1": 0.36, "macro_f1_stderr": 0.02}
    task = {"headline": "macro_f1", "direction": "max", "trivial": 1 / 3, "baseline": dense}
    seconds = {"train": 1.0, "measure": 2.0}
    shown = line(make_record(metrics={"macro_f1": 0.9}, seconds=seconds, **task), tmp_path)
    assert shown.startswith("prune: macro_f1 0.9000 (dense is untrained: 0.3600 is no better than guessing, 0.3333), ")
    shown = line(make_record("dense", metrics=dense, seconds=seconds, **task), tmp_path)
    assert shown.startswith("prune: macro_f1 0.3600, no better than guessing (0.3333): untrained, ")


def test_a_line_says_what_a_stage_scored_in_other_tests(recorder: Recorder) -> None:
    """Of a difference alone nobody can tell how good a model is, and the dense one has none."""
    tests = {f"quiz_{number}_acc": 0.5 for number in range(8)}
    row = build(
        recorder,
        metrics={"quiz_acc": 0.25, "quiz_acc_difference": -0.5, "other": 1.0},
        scores={"task": "a.npz", "quiz": "b.npz"},
    )
    shown = line(
        replace(row, directions={"quiz_acc": "max", "quiz_acc_difference": "max", "other": "min"}), recorder.runs
    )
    assert "prune: quiz_acc 0.2500, 1 s measuring" in shown
    many = replace(row, metrics=tests, directions=dict.fromkeys(tests, "max"))
    assert "quiz_5_acc 0.5000, 2 figures more in its record, " in line(many, recorder.runs)


def test_a_line_says_how_a_stage_differs_from_dense(recorder: Recorder) -> None:
    name = recorder.corpus.headline
    paired = {f"{name}_difference": 0.25, f"{name}_difference_low": 0.125, f"{name}_difference_high": 0.5}
    row = build(recorder, metrics={name: 0.5, "other": 1.0, **paired}, scores={"task": "scores/a/task-1.npz"})
    assert line(row, recorder.runs).endswith(f"\n  minus dense, on the same rows: {name} +0.25 [+0.125, +0.5]")
    assert row.scores == {"task": "scores/a/task-1.npz"} == record.Record.from_json(row.to_json()).scores
    undecided = build(recorder, metrics=row.metrics | {f"{name}_difference_low": -0.125})
    assert line(undecided, recorder.runs).endswith("+0.25 [-0.125, +0.5] not separable")
    with pytest.raises(ValueError, match=r"scores\.task must be a path within the runs folder"):
        build(recorder, scores={"task": "../elsewhere.npz"}).to_json()
