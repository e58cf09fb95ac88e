"""Experts of a mixture go, and plain transformers loads what is left."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from slimexp import artifact
from slimexp.architecture.base import EXPERTS
from slimexp.architecture.model_type import size
from slimexp.cut.shape import lattice
from slimexp.technique import prune_structured
from tests.cut.test_expert_use import DEEPSEEK, MIXTURES

Make = Callable[..., Any]
NAME = "prune_structured"
QUARTER = f"budget@pipeline.{NAME}.budget=experts"
QUICK = {"rows": 2, "importance.rows": 3}


@pytest.fixture
def stage(technique: Make, corpus: Make) -> Make:
    """A stage that has removed experts of a random model."""

    def make(family: Any, *overrides: str, **values: Any) -> Any:
        made = technique(NAME, QUARTER, *overrides, **QUICK | values)
        made.prepare(family, corpus("causal_lm"), None)
        return made

    return make


@pytest.mark.parametrize(("kind", "way"), [*((kind, "reap") for kind in MIXTURES), ("deepseek_v3", "merge")])
def test_a_share_of_the_experts_goes_and_plain_transformers_loads_the_rest(
    tiny: Make, stage: Make, tmp_path: Path, kind: str, way: str
) -> None:
    family = tiny("causal_lm", model_type=kind, **MIXTURES[kind])
    whole = size(family.model.config, EXPERTS)
    made = stage(family, experts=way, **{"budget.share": 0.7})
    left = {6: 4, 8: 4}[whole]  # of 8 experts in two groups, 6 would be too many
    figures = made.finish()
    assert figures["experts_kept"] == left == size(made.model.config, EXPERTS)
    assert figures["experts_unseen"] >= 0
    shares = [share for name, share in figures.items() if name.startswith("expert_tokens/model.layers.1.experts.")]
    assert len(shares) == whole and sum(shares) == pytest.approx(2)
    artifact.save(made.family, tmp_path / "a", dtype=torch.float32, stages=[])
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "a").eval()
    assert size(plain.config, EXPERTS) == left
    batch = made.family.encode([("one", "two!", 0)])["input_ids"]
    with torch.no_grad():
        torch.testing.assert_close(plain(batch).logits, made.model.eval()(batch).logits)


@pytest.mark.parametrize("way", ["reap", "frequency"])
def test_the_experts_that_go_are_the_least_by_what_was_asked_for(
    tiny: Make, stage: Make, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    kept: dict[str, torch.Tensor] = {}
    remove, rank, use = prune_structured.remove, prune_structured.rank, {}

    def ranked(*arguments: Any, **values: Any) -> Any:
        ranking = rank(*arguments, **values)
        use.update(ranking.experts)
        return ranking

    def removed(family: Any, layers: Any, retained: Any) -> Any:
        kept.update(retained[EXPERTS])
        return remove(family, layers, retained)

    monkeypatch.setattr(prune_structured, "rank", ranked)
    monkeypatch.setattr(prune_structured, "remove", removed)
    stage(tiny("causal_lm", model_type="qwen3_moe", **MIXTURES["qwen3_moe"]), experts=way, **{"budget.share": 0.5})
    for name, one in use.items():
        scores = one.saliency if way == "reap" else one.tokens
        assert float(scores[kept[name]].min()) >= float(scores.sort(descending=True).values[2])


def test_experts_go_beside_other_axes_where_a_budget_counts_all(tiny: Make, technique: Make, corpus: Make) -> None:
    family = tiny("causal_lm", model_type="qwen3_moe", **MIXTURES["qwen3_moe"])
    made = technique(NAME, axes="[experts,hidden]", multiple=8, candidates=2, **QUICK, **{"budget.share": 0.6})
    made.prepare(family, corpus("causal_lm"), None)
    assert made.finish()["parameters"] <= 0.6


def test_an_expert_that_no_token_sees_is_named(tiny: Make, stage: Make, capsys: pytest.CaptureFixture[str]) -> None:
    family = tiny("causal_lm", model_type="mixtral", **MIXTURES["mixtral"])
    gate = family.blocks()["decoder"][1].mlp.gate
    gate.register_forward_hook(lambda _, __, out: (*out[:-1], out[-1].clamp(max=3)))  # no token for the last two
    figures = stage(family).finish()
    assert figures["experts_unseen"] >= 2 and figures["expert_tokens/model.layers.1.experts.5"] == 0
    assert "experts saw none of" in (said := capsys.readouterr().out) and "more rows (importance.rows" in said


def test_fewer_experts_than_a_token_needs_are_refused_before_anything_is_loaded(tiny: Make, technique: Make) -> None:
    family = tiny("causal_lm", model_type="mixtral", **MIXTURES["mixtral"] | {"num_experts_per_tok": 4})
    made = technique(NAME, QUARTER, **QUICK, **{"budget.share": 0.5})
    made.validate(family.model.config, [])
    with pytest.raises(
        ValueError,
        match=r"0\.5 of the experts cannot be met by cutting experts; .* 0\.6667: .*"
        r"experts 4 \(experts must be at least num_experts_per_tok=4, which the router picks .*raise",
    ):
        made.inspect(family)  # fmt: skip


def test_refusals(tiny: Make, technique: Make) -> None:
    llama, mixtral = (tiny("causal_lm", **values).model.config for values in
                      ({}, {"model_type": "mixtral", **MIXTURES["mixtral"]}))  # fmt: skip
    with pytest.raises(ValueError, match="type llama that can be cut are layers, heads, ffn, hidden; got 'experts'"):
        technique(NAME, QUARTER).validate(llama, [])
    with pytest.raises(ValueError, match="counts experts alone, and axes hold hidden too: set axes=null"):
        technique(NAME, QUARTER, axes="[experts,hidden]").validate(mixtral, [])
    with pytest.raises(ValueError, match=r"experts must be one of reap, frequency.*, got 'best'"):
        technique(NAME, experts="best")
    dense = tiny("causal_lm", model_type="deepseek_v3", **DEEPSEEK | {"first_k_dense_replace": 2}).model.config
    with pytest.raises(ValueError, match="got 'experts': none of its blocks is a mixture"):
        technique(NAME, QUARTER).validate(dense, [])


@pytest.mark.fast
def test_the_numbers_of_experts_to_choose_from() -> None:
    from transformers import DeepseekV3Config, Qwen3MoeConfig

    qwen = Qwen3MoeConfig(num_experts=128, num_experts_per_tok=8)
    assert lattice(qwen, ["experts"], multiple=64)["experts"] == list(range(128, 7, -1))
    assert lattice(qwen, ["experts", "hidden"], multiple=64)["experts"] == list(range(128, 7, -4))
    assert lattice(DeepseekV3Config(), ["experts"], multiple=1)["experts"] == list(range(256, 15, -8))
