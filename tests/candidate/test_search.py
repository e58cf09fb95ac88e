"""A search from end to end, on a model that is trained in milliseconds."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from slimexp import artifact
from slimexp.candidate.choice import Candidate, Place
from slimexp.candidate.found import Found, unlike_first
from slimexp.candidate.precision import FLOAT
from slimexp.candidate.report import answer, write
from slimexp.candidate.score import Scorer
from slimexp.candidate.search import Search
from slimexp.candidate.solve import Limit, Program, Undecided
from slimexp.config.check import check
from slimexp.config.composition import compose
from slimexp.record import record
from slimexp.search import lines
from tests.candidate.conftest import QUICK, prepared


def test_a_budget_becomes_a_model(
    line: list[str], trained: list[Sequence[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    search = prepared(line, "budget.parameters=24000")
    [found] = search.run()
    [(candidate, figures)] = found.promoted.items()
    assert figures["params_live"] <= 24_000
    assert figures["params_live"] == pytest.approx(found.costs[candidate]["parameters"][1], abs=0.5)
    assert len(trained) == 3
    assert sum("measure.task.split=validation" in words for words in trained) == 2
    assert "measure.task.split=validation" not in trained[-1]
    stage = "pipeline.distill"  # of search_llama, 6 steps of warmup
    assert {f"{stage}.steps=1", f"{stage}.lr_scheduler.num_warmup_steps=1"} <= set(trained[0]) - set(trained[-1])
    content = json.loads((Path(search.folder) / "search.json").read_text()) if write(search, [found], seconds=1) else {}
    assert [row["lost"] for row in content["budgets"][0]["candidates"]].count(None) == 1
    rows = record.read(Path(search.cfg.runs) / record.FILE)
    assert {row.stage for row in rows} >= {"dense", "distill"}

    monkeypatch.setattr(Scorer, "alone", lambda *_: pytest.fail("a score is taken again"))
    monkeypatch.setattr(artifact, "save", lambda *_, **__: pytest.fail("the stages are tried again"))
    [again, larger] = prepared(line, "budget.parameters=[24000,27000]", "search.promoted=0").run()
    assert next(iter(again.losses.items())) == next(iter(found.losses.items()))
    assert min(larger.losses.values()) <= min(found.losses.values())
    assert len(trained) == 3


def test_a_budget_that_is_met_on_paper_alone_ends_no_other(
    line: list[str], trained: list[Sequence[str]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = Search._costs

    def heavier(search: Search, candidate: Candidate, name: str, *rest: Any) -> tuple[float, float]:
        composed, measured = real(search, candidate, name, *rest)
        return composed, measured if measured > 24_000 else 1e9

    monkeypatch.setattr(Search, "_costs", heavier)
    [found] = prepared(line, "budget.parameters=[24000,27000]", "search.promoted=0").run()
    assert found.limits == {"parameters": 27_000}
    assert "left out: no candidate keeps budget.parameters=24000 as it is measured" in capsys.readouterr().out
    with pytest.raises(ValueError, match="as it is measured, though it was aimed lower: raise the budget"):
        prepared(line, "budget.parameters=24000", "search.promoted=0").run()


def test_a_budget_that_the_solver_has_no_time_for_ends_no_other(
    line: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = Program.solve

    def slow(program: Program, limits: Sequence[Limit], **how: int) -> Any:
        if limits[0].most < 25_000:
            raise Undecided("time limit reached")
        return real(program, limits, **how)

    monkeypatch.setattr(Program, "solve", slow)
    [found] = prepared(line, "budget.parameters=[24000,27000]", "search.promoted=0").run()
    assert found.limits == {"parameters": 27_000}
    assert "left out: the solver found no shape that meets the budget, and cannot" in capsys.readouterr().out
    with pytest.raises(Undecided):
        prepared(line, "budget.parameters=24000", "search.promoted=0").run()


def test_another_budget_leaves_what_was_found_before(line: list[str], trained: list[Sequence[str]]) -> None:
    first = prepared(line, "budget.parameters=24000")
    write(first, first.run(), seconds=1)
    again = prepared(line, "budget.parameters=[27000,24000]", "search.promoted=0")
    write(again, again.run(), seconds=1)
    budgets = json.loads((Path(again.folder) / "search.json").read_text())["budgets"]
    assert [one["limits"]["parameters"] for one in budgets] == [27_000, 24_000]
    assert any("promoted" in row for row in budgets[1]["candidates"])  # a look without training takes nothing away
    path = Path(again.folder) / "search.json"
    odd = {"blocks": {"decoder": 3}, "budgets": [{"limits": {}}, 3, {"limits": {}, "candidates": [1]}]}
    for damage in ("", "[]", json.dumps(odd)):
        path.write_text(damage)
        write(again, [], seconds=1)
        assert json.loads(path.read_text())["budgets"] == []


def test_a_bert_without_heads_to_choose_is_searched(
    tiny_folder: Callable[..., Path], table: Path, tmp_path: Path, trained: list[Sequence[str]]
) -> None:
    """A BERT cannot lose heads or channels, and loses blocks and neurons."""
    search = prepared(
        [
            "+experiment=search_llama", "model=pretrained", f"model.path={tiny_folder('classification')}",
            "data=files", f"data.path={table}", "data.task=classification", "data.columns.source=text",
            "data.columns.label=label", f"runs={tmp_path / 'runs'}", "logger=none", "trainer=fast", *QUICK,
            "model.max_length=16", "search.hidden=[]", "budget.parameters=1e9", "search.promoted=0",
        ]
    )  # fmt: skip
    [found] = search.run()
    assert found.losses


def test_a_search_that_was_stopped_takes_no_whole_score_again(
    line: list[str], trained: list[Sequence[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    more = ["budget.parameters=24000", "search.promoted=0"]
    [before] = prepared(line, *more).run()
    monkeypatch.setattr(Scorer, "whole", lambda *_: pytest.fail("a whole score is taken again"))
    [after] = prepared(line, *more).run()
    assert after.losses == before.losses and not trained


def test_blocks_may_do_without_attention_and_neurons(line: list[str], trained: list[Sequence[str]]) -> None:
    more = ["search.uniform=false", "search.heads=[0]", "search.ffn=[0.5,0]", "search.hidden=[]", "search.steps=6"]
    search = prepared(line, *more, "budget.parameters=19500", "search.trials=1", "search.remove=false")
    [found] = search.run()
    [(candidate, figures)] = found.promoted.items()
    assert any(0 in units.values() for units in candidate.unlike.values())
    assert figures["params_live"] <= 19_500
    assert figures["params_live"] == pytest.approx(found.costs[candidate]["parameters"][1], abs=0.5)


def test_a_map_is_chosen_where_it_loses_least(line: list[str], trained: list[Sequence[str]]) -> None:
    """At a budget that not all blocks can keep their attention at, a map is nearer to it than nothing."""
    words = ["search.uniform=false", "search.heads=[0]", "search.ffn=[]", "search.hidden=[]", "search.bits=[16]"]
    words += ["search.remove=false", "search.trials=1", "budget.parameters=33500"]
    [without] = prepared(line, *words, "search.promoted=0").run()
    [found] = prepared(line, *words, "search.attention_rank=[16]", "search.ffn_rank=[16]", "name=maps").run()
    [(candidate, figures)] = found.promoted.items()
    assert "~16" in str(candidate) and found.losses[candidate] < min(without.losses.values())
    assert figures["params_live"] == pytest.approx(found.costs[candidate]["parameters"][1], abs=0.5)


def test_heads_and_neurons_are_chosen_block_by_block(line: list[str], trained: list[Sequence[str]]) -> None:
    words = ["search.uniform=false", "search.heads=[0.5]", "search.ffn=[0.5]", "search.hidden=[]", "search.bits=[16]"]
    search = prepared(line, "budget.parameters=32000", "search.promoted=0", "search.remove=false", *words)
    [found] = search.run()
    assert trained == [] and any("heads" in one.unlike for one in found.losses)
    for one, costs in found.costs.items():
        assert costs["parameters"][0] == pytest.approx(costs["parameters"][1], abs=0.5), one


def test_a_quick_look_trains_nothing(line: list[str], trained: list[Sequence[str]]) -> None:
    search = prepared(line, "budget.disk_mb=[0.05,0.08]", "search.promoted=0")
    found = search.run()
    assert trained == []
    for one in found:
        [composed, measured] = one.costs[next(iter(one.losses))]["disk_mb"]
        assert composed == pytest.approx(measured, abs=0.003)
        assert measured <= one.limits["disk_mb"]
    assert [text for text in lines(search, found) if "nats per token from dense" in text]


def test_an_encoder_decoder_has_one_width_of_weights(
    tiny_folder: Callable[..., Path], table: Path, tmp_path: Path, trained: list[Sequence[str]]
) -> None:
    folder = tiny_folder("seq2seq", initializer_factor=8.0, d_ff=64)
    words = [
        "+experiment=search_t5", "model=pretrained", f"model.path={folder}", "model.max_length=16",
        "data=files", f"data.path={table}", "data.task=seq2seq", f"runs={tmp_path / 'runs'}", "logger=none",
        "trainer=fast", *QUICK, "search.promoted=0",
    ]  # fmt: skip
    search = prepared(words, "budget.parameters=40000")
    [found] = search.run()
    for candidate in found.losses:
        assert len({bits for bits in candidate.bits.values() if bits != FLOAT}) <= 1
        depth = candidate.layers(search.choices.stacks)
        assert depth["encoder"][0] == depth["decoder"][0] == 0
        assert len(depth["decoder"]) <= len(depth["encoder"])
        check(compose([*words[: -len(QUICK) - 1], *search._overrides(candidate)]))


def test_bytes_and_milliseconds_are_measured_of_whole_models(line: list[str], trained: list[Sequence[str]]) -> None:
    quick = [
        "search.pairs=6",
        "search.remove=false",
        "search.bits=[8]",
        "search.ffn=[0.5]",
        "measure=[size,task,latency]",
    ]
    quick += ["measure.latency.tokens=4", "measure.latency.new_tokens=1", "measure.latency.warmup=1"]
    [found] = prepared(line, *quick, "budget.disk_mb=1", "budget.latency_ms=10000", "search.trials=1").run()
    [(candidate, figures)] = found.promoted.items()
    composed, measured = found.costs[candidate]["disk_mb"]
    assert composed == pytest.approx(measured, abs=0.003)
    assert figures["disk_mb"] == pytest.approx(measured, abs=0.003)
    assert found.costs[candidate]["latency_ms"][1] > 0


def test_group_sizes_are_chosen_block_by_block(line: list[str], trained: list[Sequence[str]]) -> None:
    words = ["search.remove=false", "search.ffn=[]", "search.hidden=[]", "search.bits=[8,4]", "budget.disk_mb=0.0625"]
    before = prepared(line, *words, "search.promoted=0")
    before.run()
    words += ["search.group_size=[8,32]", "search.trials=1"]
    search = prepared(line, *words)
    assert set(search.scores.numbers) == set(before.scores.numbers), "scores of the stage's own size stay"
    [found] = search.run()
    [(candidate, figures)] = found.promoted.items()
    assert candidate.group_sizes and "group_size" in str(candidate)
    composed, measured = found.costs[candidate]["disk_mb"]
    assert composed == pytest.approx(measured, abs=0.003)
    assert figures["disk_mb"] == pytest.approx(measured, abs=0.003) and measured <= 0.0625


@pytest.mark.fast
def test_unlike_models_are_trained_first() -> None:
    places = [Place("decoder", index) for index in range(3)]
    shapes = [(8, places[:2]), (8, places[1:]), (8, places), (4, places)]
    losses = {
        Candidate(heads=None, ffn=ffn, hidden=None, bits=dict.fromkeys(kept, 4)): float(number)
        for number, (ffn, kept) in enumerate(shapes)
    }
    assert [losses[candidate] for candidate in unlike_first(losses)] == [0.0, 2.0, 3.0, 1.0]


@pytest.mark.fast
def test_a_budget_ends_with_a_model_that_was_measured_to_fit_and_chosen_on_validation_text() -> None:
    places = [Place("decoder", index) for index in range(3)]
    over, like_it, unlike = (
        Candidate(heads=None, ffn=ffn, hidden=None, bits=dict.fromkeys(kept, 4))
        for ffn, kept in ((8, places[:2]), (8, places[1:]), (4, places))
    )
    costs = {over: {"disk_mb": (0.9, 1.2)}, unlike: {"disk_mb": (0.9, 0.9)}}
    losses = {like_it: 2.0, unlike: 3.0}
    found = Found({"disk_mb": 1.0}, losses=losses, over={over: 1.0}, costs=costs)
    assert answer(found, "acc", "max") == unlike, "the one before it was not measured"
    work: Any = SimpleNamespace(
        parts=SimpleNamespace(corpus=SimpleNamespace(headline="acc", direction="max")),
        settings=SimpleNamespace(promoted=0),
    )
    assert list(lines(work, [found]))[1].startswith(f"  {unlike}: disk_mb 0.9, 3 nats per token")
    found.trained = {like_it: {"acc": 0.5}, unlike: {"acc": 0.6}}
    found.promoted = {like_it: {"acc": 0.9}, unlike: {"acc": 0.8}}
    assert answer(found, "acc", "max") == unlike and answer(found, "acc", "min") == like_it
    found.trained = {}
    assert answer(found, "acc", "max") == like_it


@pytest.mark.fast
def test_the_file_says_which_training_failed(tmp_path: Path) -> None:
    one = Candidate(heads=None, ffn=8, hidden=None, bits={Place("decoder", 0): 4})
    found = Found({"disk_mb": 1.0}, {one: 2.0}, added={one: 1.0}, composed={one: {}}, failed={one: "short"})
    work: Any = SimpleNamespace(
        folder=tmp_path,
        parts=SimpleNamespace(corpus=SimpleNamespace(headline="cer", direction="min")),
        choices=SimpleNamespace(stacks={"decoder": 1}),
    )
    write(work, [found], seconds=1.0)
    [row] = json.loads((tmp_path / "search.json").read_text())["budgets"][0]["candidates"]
    assert (row["failed"], row["lost"]) == ("short", "its short training failed")
