"""The arms of the search's benchmark: they fit the same bytes, train alike, and scores are taken once."""

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmarks import search_arms
from benchmarks.run import Run
from benchmarks.search_arms import Figure, Row
from benchmarks.simple_shapes import Simple
from slimexp.candidate import search as candidate_search
from slimexp.candidate.choice import Candidate, Change
from slimexp.candidate.score import Scorer
from slimexp.config.check import check
from slimexp.config.composition import compose
from slimexp.pipeline.pipeline import Pipeline


@pytest.fixture
def arguments(tiny_folder: Callable[..., Path], table: Path, tmp_path: Path) -> argparse.Namespace:
    shape = {"num_hidden_layers": 4, "hidden_size": 64, "intermediate_size": 256, "initializer_range": 0.3}
    overrides = [
        "model=pretrained", f"model.path={tiny_folder('causal_lm', **shape)}", "model.max_length=16",
        "data=files", f"data.path={table}", "data.task=causal_lm", "data.columns.source=text",
    ]  # fmt: skip
    return argparse.Namespace(
        experiment="search_llama", shares=[0.8, 0.6], steps=3, rows=2, bits=[16], jobs=1, toy=True,
        runs=tmp_path / "runs", overrides=overrides,
    )  # fmt: skip


def test_simple_shapes_fit_the_bytes(arguments: argparse.Namespace) -> None:
    simple = Simple.of(search_arms.words_of(0, arguments), 16)
    assert len(simple.depth(simple.mb).bits) == 4
    deep, all_wide = simple.depth(0.7 * simple.mb), simple.uniform(0.7 * simple.mb)
    assert 0 < len(deep.bits) < 4 and deep.ffn == 256
    assert set(deep.bits).isdisjoint(simple.blocks[: 4 - len(deep.bits)])
    assert len({wide.heads for wide in all_wide}) == len(all_wide) > 0
    assert all(len(wide.bits) == 4 and (wide.ffn or 0) < 256 for wide in all_wide)
    with pytest.raises(ValueError, match="raise --shares"):
        simple.depth(0.001)
    with pytest.raises(ValueError, match="raise --shares"):
        simple.uniform(0.001)


def test_simple_shapes_have_whole_groups_of_the_quantizer(arguments: argparse.Namespace) -> None:
    words = [*search_arms.words_of(0, arguments), "pipeline.quantize.group_size=32"]
    assert Simple.of(words, 8).choices.widths["ffn"] == list(range(256, 0, -32))


def test_all_arms_are_trained_and_graded(arguments: argparse.Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[Change] = []
    score = Scorer.alone

    def alone(scorer: Scorer, change: Change) -> float:
        taken.append(change)
        return score(scorer, change)

    def run(pool: Any, jobs: Mapping[int, Sequence[str]], folder: Path, what: str) -> dict[int, dict[str, float]]:
        return {number: trained(words) for number, words in jobs.items()}

    def trained(words: Sequence[str]) -> dict[str, float]:
        cfg = compose(words)
        check(cfg)
        return Pipeline(cfg, overrides=list(words)).run()

    def train_all(runs: Sequence[Run], *_: Any, **__: Any) -> list[str]:
        return [run.train_here() for run in runs]

    uniform = Simple.uniform

    def slow(simple: Simple, most: float) -> list[Candidate]:
        time.sleep(0.2)
        return uniform(simple, most)

    monkeypatch.setattr(Simple, "uniform", slow)
    monkeypatch.setattr(Scorer, "alone", alone)
    monkeypatch.setattr(candidate_search.trial, "run", run)
    monkeypatch.setattr(search_arms, "train_all", train_all)
    rows, _ = search_arms.train(0, arguments)
    assert len(taken) == len(set(taken)) > 0, "one set of scores for all budgets and searches"
    assert [(row.share, row.arm) for row in rows] == [(s, arm) for s in (0.8, 0.6) for arm in search_arms.ARMS]
    for row in rows:
        assert row.of_dense <= row.share
        assert row.once is not None and row.kept is not None
        assert (row.apart is None) == (row.arm == "search")
    assert search_arms.table(rows).count("\n") == 9
    seconds = {row.arm: row.choosing for row in rows}
    assert seconds["uniform"] >= 0.4 and len(set(seconds.values())) == 4, "each arm has its own time"


@pytest.mark.fast
def test_what_is_better_than_the_search_on_its_rows_is_named() -> None:
    row = Row(
        seed=0, share=0.8, arm="search", shape="", mb=1.0, of_dense=0.79, once=None, kept=Figure(1.2, 1.1, 1.3),
        apart=None, worse=False, choosing=3.0, training=2.0,
    )  # fmt: skip
    rows = [
        row,
        *(row._replace(arm=arm, apart=Figure(0.1, 0.05, 0.2), worse=arm == "depth") for arm in search_arms.ARMS[1:]),
    ]
    assert search_arms.missed(rows) == ["seed 0, 80% of the bytes: worse than depth on its rows"]
    assert (
        "| 80% | 0 | uniform | 1.00 | 0.790x |  | 1.2 [1.1, 1.3] | +0.1 [+0.05, +0.2] | 3 | 2 |"
        in search_arms.table(rows)
    )
    assert next(search_arms.orders(rows)).startswith("80% of the bytes, means: search 1.2, one_shot 1.2")
    assert next(search_arms.orders([row._replace(kept=None)])).startswith("80% of the bytes, means: search unknown")
