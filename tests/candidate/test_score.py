"""Losses of choices: alone and as a whole, of the model that a pipeline would make."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from slimexp.calibration.divergence import Divergence
from slimexp.candidate.choice import STREAM, Candidate, Change, Place, choices
from slimexp.candidate.kept_file import KeptFile
from slimexp.candidate.precision import FLOAT, Precision
from slimexp.candidate.score import Added, Scorer, own_rows
from slimexp.config.build import build
from slimexp.config.composition import compose
from slimexp.cut.remove import remove

SHAPE = {"num_hidden_layers": 3, "intermediate_size": 64, "initializer_range": 0.3}  # else all answers are alike
PIPELINE = ["+technique@pipeline.cut=distill", "+cut@pipeline.cut.cut=keep", "+technique@pipeline.quantize=quantize",
            "pipeline.cut.cut.calibration_batches=1", "pipeline.quantize.group_size=16",
            "pipeline.quantize.activation_bits=null"]  # fmt: skip


@pytest.fixture
def scorer(tiny: Callable[..., Any], corpus: Callable[..., Any]) -> Scorer:
    text, cfg = corpus("causal_lm"), compose(PIPELINE)
    rows = text.splits["train"][:6]
    return Scorer(
        tiny("causal_lm", **SHAPE), text, rows, cut=cfg.pipeline.cut.cut, quantize=cfg.pipeline.quantize, seed=0
    )


def state(scorer: Scorer) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in scorer.family.model.state_dict().items()}


def test_one_removed_block_costs_what_the_model_without_it_does(scorer: Scorer) -> None:
    before = state(scorer)
    alone = scorer.alone(Change(Place("decoder", 1), "removed", 0))
    assert alone == pytest.approx(scorer.of(remove(scorer.family, {"decoder": [0, 2]}, {})), rel=1e-3)
    assert alone > 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in scorer.family.model.state_dict().items())


def test_bits_of_one_block_cost_what_the_rounded_model_does(scorer: Scorer) -> None:
    before = state(scorer)
    costs = [scorer.alone(Change(Place("decoder", 0), "bits", bits)) for bits in (8, 4, 2)]
    assert 0 <= costs[0] < costs[1] < costs[2]
    assert all(torch.equal(tensor, before[name]) for name, tensor in scorer.family.model.state_dict().items())
    bits = {Place("decoder", 0): 4, Place("decoder", 1): FLOAT, Place("decoder", 2): FLOAT}
    assert scorer.whole(Candidate(heads=2, ffn=64, hidden=32, bits=bits)) == pytest.approx(costs[1], rel=1e-3)


def test_a_group_size_of_one_block_costs_what_the_rounded_model_does(scorer: Scorer) -> None:
    place, rest = Place("decoder", 0), {Place("decoder", index): Precision(FLOAT) for index in (1, 2)}
    costs = [scorer.alone(Change(place, "bits", 3, size)) for size in (8, 0, 32)]
    assert 0 < costs[0] < costs[1] < costs[2], "fewer share a scale"
    for size, cost in zip((8, 32), (costs[0], costs[2]), strict=True):
        candidate = Candidate.of({"heads": 2, "ffn": 64, "hidden": 32}, {}).rounded({place: Precision(3, size), **rest})
        assert scorer.whole(candidate) == pytest.approx(cost, rel=1e-3)


def test_fewer_channels_cost_what_the_narrow_model_does(scorer: Scorer) -> None:
    alone = scorer.alone(Change(STREAM, "hidden", 16))
    whole = Candidate(heads=2, ffn=64, hidden=16, bits={Place("decoder", i): FLOAT for i in range(3)})
    assert alone == pytest.approx(scorer.whole(whole), rel=1e-3)
    assert alone > 0


def test_fewer_units_in_all_blocks_cost_more_than_in_one(scorer: Scorer) -> None:
    one = scorer.alone(Change(Place("decoder", 0), "ffn", 16))
    whole = scorer.whole(Candidate(heads=2, ffn=16, hidden=32, bits={Place("decoder", i): FLOAT for i in range(3)}))
    assert 0 < one < whole


@pytest.mark.parametrize("hidden", [32, 16])
def test_a_candidate_is_what_the_pipeline_cuts(scorer: Scorer, hidden: int) -> None:
    bits = {Place("decoder", 0): FLOAT, Place("decoder", 2): FLOAT}
    mine = scorer.realized(Candidate(heads=1, ffn=32, hidden=hidden, bits=bits))
    settings = ["decoder_layers=[0,2]", "heads=1", "ffn=32", f"hidden={hidden}"]
    cfg = compose([*PIPELINE, *(f"pipeline.cut.cut.{word}" for word in settings)]).pipeline.cut
    stage = build(cfg, steps=0)
    stage.prepare(scorer.family, scorer.corpus, None)
    theirs = stage.family.model.state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in mine.model.state_dict().items())


def test_unlike_heads_and_neurons_are_what_the_pipeline_cuts(scorer: Scorer) -> None:
    places = [Place("decoder", 0), Place("decoder", 2)]
    alike = Candidate(heads=2, ffn=64, hidden=32, bits=dict.fromkeys(places, FLOAT))
    unlike = alike.keeping("heads", dict(zip(places, (1, 2), strict=True)))
    unlike = unlike.keeping("ffn", dict(zip(places, (64, 32), strict=True)))
    mine = scorer.realized(unlike).model
    assert mine.config.slimexp_widths == {"heads": {"decoder": [1, 2]}, "ffn": {"decoder": [64, 32]}}
    settings = ["decoder_layers=[0,2]", "heads={decoder:[1,2]}", "ffn={decoder:[64,32]}"]
    stage = build(compose([*PIPELINE, *(f"pipeline.cut.cut.{word}" for word in settings)]).pipeline.cut, steps=0)
    stage.prepare(scorer.family, scorer.corpus, None)
    theirs = stage.family.model.state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in mine.state_dict().items())


@pytest.fixture
def mapped(scorer: Scorer) -> Scorer:
    scorer._ranks = {"heads": 8, "ffn": 16}
    return scorer


@pytest.mark.parametrize(("kind", "rank"), [("heads", 8), ("ffn", 4)])
def test_a_map_alone_costs_what_the_model_with_it_does(mapped: Scorer, kind: str, rank: int) -> None:
    before = state(mapped)
    alone = mapped.alone(Change(Place("decoder", 1), kind, -rank))
    places = [Place("decoder", index) for index in range(3)]
    alike = Candidate(heads=2, ffn=64, hidden=32, bits=dict.fromkeys(places, FLOAT))
    whole = {place: alike.widths[kind] for place in places} | {places[1]: -rank}
    assert alone == pytest.approx(mapped.whole(alike.keeping(kind, whole)), rel=1e-3)
    none = mapped.alone(Change(Place("decoder", 1), kind, 0))
    assert 0 < alone < none
    assert all(torch.equal(tensor, before[name]) for name, tensor in mapped.family.model.state_dict().items())


@pytest.mark.parametrize("hidden", [32, 16])
def test_maps_are_what_the_pipeline_cuts(mapped: Scorer, hidden: int) -> None:
    places = [Place("decoder", 0), Place("decoder", 2)]
    alike = Candidate(heads=2, ffn=64, hidden=hidden, bits=dict.fromkeys(places, FLOAT))
    unlike = alike.keeping("heads", dict(zip(places, (1, -4), strict=True)))
    mine = mapped.realized(unlike.keeping("ffn", dict.fromkeys(places, -16))).model
    settings = ["decoder_layers=[0,2]", "heads={decoder:[1,0]}", "attention_rank={decoder:[0,4]}"]
    settings += ["ffn={decoder:[0,0]}", "ffn_rank={decoder:[16,16]}", f"hidden={hidden}"]
    stage = build(compose([*PIPELINE, *(f"pipeline.cut.cut.{word}" for word in settings)]).pipeline.cut, steps=0)
    stage.prepare(mapped.family, mapped.corpus, None)
    theirs = stage.family.model.state_dict()
    assert mine.config.slimexp_widths == stage.family.model.config.slimexp_widths
    assert mine.state_dict().keys() == theirs.keys()
    for name, tensor in mine.state_dict().items():
        torch.testing.assert_close(tensor, theirs[name], atol=1e-6, rtol=1e-5, msg=name)


def test_heads_that_a_stack_shares_cost_each_block_its_share(
    tiny: Callable[..., Any], corpus: Callable[..., Any]
) -> None:
    text = corpus("seq2seq")
    family = tiny("seq2seq", initializer_factor=8.0)
    scorer = Scorer(family, text, text.splits["train"][:4], cut=None, quantize=None, seed=0)
    costs = [scorer.alone(Change(Place("encoder", index), "heads", 2)) for index in range(2)]
    assert costs[0] == costs[1] > 0


def test_scores_are_taken_once(scorer: Scorer, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    options = choices(
        scorer.family.model.config,
        remove=True,
        heads=[],
        ffn=[0.5],
        hidden=[],
        bits=[FLOAT, 4],
        multiple=16,
        uniform=True,
    )
    kept = KeptFile(tmp_path / "scores.json", {}, "x")
    scores = scorer.score(options, kept)
    assert set(scores) == set(options.changes())
    calls: list[Change] = []
    monkeypatch.setattr(scorer, "alone", lambda change: calls.append(change) or 1.0)
    assert scorer.score(options, KeptFile(tmp_path / "scores.json", {}, "x")) == scores
    wider = choices(
        scorer.family.model.config,
        remove=True,
        heads=[],
        ffn=[0.5],
        hidden=[],
        bits=[FLOAT, 4, 3],
        multiple=16,
        uniform=True,
    )
    scorer.score(wider, KeptFile(tmp_path / "scores.json", {}, "x"))
    assert {(change.kind, change.value) for change in calls} == {("bits", 3)}
    calls.clear()
    scorer.score(replace(options, group_sizes=[16, 8]), KeptFile(tmp_path / "scores.json", {}, "x"))
    assert {(change.kind, change.value, change.group_size) for change in calls} == {("bits", 4, 8)}


@pytest.mark.fast
def test_scores_of_single_changes_add_up() -> None:
    place = Place("decoder", 0)
    single = {Change(place, "removed", 0): 3.0, Change(place, "ffn", 8): 1.0, Change(place, "bits", 4): 0.5}
    added = Added({**single, Change(STREAM, "hidden", 8): 2.0, Change(place, "bits", 4, 32): 0.7})
    assert added.removed(place) == 3.0
    assert added.block(place, {"ffn": 8, "hidden": 8}, Precision(4)) == 1.5
    assert added.block(place, {"ffn": 8, "hidden": 8}, Precision(4, 32)) == 1.7
    assert added.block(place, {"ffn": 16, "hidden": 16}, Precision(FLOAT)) == 0.0
    assert (added.base({"hidden": 8}), added.base({"hidden": 16}), added.base({})) == (2.0, 0.0, 0.0)


def test_rows_to_score_on_are_not_graded(corpus: Callable[..., Any]) -> None:
    text = corpus("causal_lm")
    held_out = text.splits["validation"]
    rows = own_rows(text, held_out[:2], 1, seed=0)
    assert {row.source for row in rows}.isdisjoint({row.source for row in held_out[:2]})
    with pytest.raises(ValueError, match=r"search\.rows=99 .* grade fewer rows"):
        own_rows(text, held_out[:2], 99, seed=0)


def test_the_dense_model_is_what_scores_are_of(scorer: Scorer) -> None:
    assert scorer.of(scorer.family) == pytest.approx(0.0, abs=1e-9)
    assert isinstance(scorer._divergence, Divergence)
