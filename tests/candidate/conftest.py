"""Searches of a model that is trained in milliseconds."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from slimexp.candidate import search as module
from slimexp.candidate.search import Search
from slimexp.config.check import check
from slimexp.config.composition import compose
from slimexp.config.schema import Search as Schema
from slimexp.pipeline import preflight
from slimexp.pipeline.pipeline import Pipeline

QUICK = [
    "pipeline.distill.steps=4", "pipeline.distill.batch_size=2", "pipeline.quantize.group_size=16",
    "search.rows=2", "search.graded=2", "search.solutions=3", "search.steps=2", "search.trials=2", "search.heads=[]",
    "measure.task.limit=2",
]  # fmt: skip


@pytest.fixture
def line(tiny_folder: Callable[..., Path], table: Path, tmp_path: Path) -> list[str]:
    folder = tiny_folder("causal_lm", num_hidden_layers=3, intermediate_size=64, initializer_range=0.3)
    return [
        "+experiment=search_llama", "model=pretrained", f"model.path={folder}", "model.max_length=16",
        "data=files", f"data.path={table}", "data.task=causal_lm", "data.columns.source=text",
        f"runs={tmp_path / 'runs'}", "logger=none", "trainer=fast", *QUICK,
    ]  # fmt: skip


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[Sequence[str]]:
    """Trainings run in this process; grows by their command lines."""
    lines: list[Sequence[str]] = []

    def run(pool: Any, jobs: Mapping[int, Sequence[str]], folder: Path, what: str) -> dict[int, dict[str, float]]:
        figures = {}
        for number, words in jobs.items():
            lines.append(words)
            cfg = compose(words)
            check(cfg)
            figures[number] = Pipeline(cfg, overrides=list(words)).run()
        return figures

    monkeypatch.setattr(module.trial, "run", run)
    return lines


def prepared(line: Sequence[str], *more: str) -> Search:
    words = [*line, *more]
    cfg = compose(words, "search")
    check(cfg, schema=Schema)
    return Search(cfg, preflight.training(cfg.copy()), words)
