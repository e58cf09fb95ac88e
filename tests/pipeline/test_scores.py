"""What a run keeps question by question: beside the record, for other runs, and to compare its stages with dense."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from slimexp.analysis.section import load
from slimexp.analysis.table import table
from slimexp.data import rows
from slimexp.measure.task import Task
from slimexp.model.base import Family
from slimexp.record import record

Make = Callable[..., Any]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Number of rows of each time that a model was asked."""
    counts: list[int] = []
    results = Task.results

    def counted(self: Task, names: Any, subject: Any, corpus: Any) -> Any:
        counts.append(len(self.graded(corpus)))
        assert isinstance(subject.family, Family)
        return results(self, names, subject, corpus)

    monkeypatch.setattr(Task, "results", counted)
    return counts


def test_a_stage_is_compared_row_by_row_and_the_same_weights_are_not_asked_again(
    pipeline: Make, overrides: Make, asked: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = overrides("prune", "pipeline.prune.steps=0", "pipeline.prune.sparsity=0.5", task="causal_lm")
    run = pipeline(arguments)
    metrics = run.run()
    assert len(asked) == 2
    assert "  minus dense, on the same rows: perplexity " in (said := capsys.readouterr().out)
    assert "tested before" not in said
    dense, pruned = record.read(Path(run.cfg.runs))
    for name in ("bits_per_byte", "perplexity", "token_accuracy"):
        low, difference, high = (metrics[f"{name}_difference{end}"] for end in ("_low", "", "_high"))
        assert low <= difference <= high and difference == pytest.approx(metrics[name] - dense.metrics[name])
        assert f"{name}_difference" not in dense.metrics
    assert pruned.directions["bits_per_byte_difference"] == "min"
    for row in (dense, pruned):
        scores = rows.read(Path(run.cfg.runs) / row.scores["task"])
        assert scores.figures["bits_per_byte"] == row.metrics["bits_per_byte"]
    assert "minus dense" in table(load(Path(run.cfg.runs))[0])

    other = pipeline([*arguments, "name=other", "pipeline.prune.sparsity=0.25"])  # the same first stage
    other.run()
    assert len(asked) == 3
    assert capsys.readouterr().out.count("task: these weights were tested before, reused from ") == 1
    assert Path(other.cfg.runs, "other") != Path(run.cfg.runs, "run")
    pipeline([*arguments, "name=anew", "resume=false"]).run()
    assert len(asked) == 5
