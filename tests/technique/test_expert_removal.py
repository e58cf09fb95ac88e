"""Experts of a mixture go, and plain transformers loads what is left."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from slimexp import artifact
from slimexp.architecture.base import EXPERT_FFN, EXPERTS
from slimexp.architecture.model_type import size
from slimexp.cut.constraints import check, scopes
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


@pytest.fixture
def narrower(technique: Make, corpus: Make) -> Make:
    """A stage that has removed neurons of the experts of a random model."""

    def make(family: Any, *overrides: str, **values: Any) -> Any:
        lines = [f"pipeline.{NAME}.axes=[expert_ffn]", *overrides]
        few = {"rows": 2} if any("magnitude" in line for line in lines) else QUICK  # which reads no text
        made = technique(NAME, *lines, **{"multiple": 8, **few} | values)
        made.prepare(family, corpus("causal_lm"), None)
        return made

    return make


@pytest.mark.parametrize("kind", MIXTURES)
def test_neurons_of_experts_go_and_plain_transformers_loads_the_rest(
    tiny: Make, narrower: Make, tmp_path: Path, kind: str
) -> None:
    width = {"moe_intermediate_size": 16} if kind != "mixtral" else {}
    family = tiny("causal_lm", model_type=kind, **MIXTURES[kind] | width)
    whole = size(family.model.config, EXPERT_FFN)
    made = narrower(family, **{"budget.share": 0.9})
    left = size(made.model.config, EXPERT_FFN)
    assert left == made.finish()["expert_ffn_kept"] == whole - 8
    assert size(made.model.config, EXPERTS) == size(family.model.config, EXPERTS)
    artifact.save(made.family, tmp_path / "a", dtype=torch.float32, stages=[])
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "a").eval()
    batch = made.family.encode([("one", "two!", 0)])["input_ids"]
    with torch.no_grad():
        torch.testing.assert_close(plain(batch).logits, made.model.eval()(batch).logits)


@pytest.mark.parametrize("importance", ["activation", "magnitude", "taylor", "wanda"])
@torch.no_grad()
def test_every_expert_keeps_the_neurons_that_matter_to_it(tiny: Make, narrower: Make, importance: str) -> None:
    """Half of the neurons of each are as good as silent, and the model is what it was without them."""
    family, generator = tiny("causal_lm", model_type="qwen3_moe", **MIXTURES["qwen3_moe"]), torch.Generator()
    for block in family.blocks()["decoder"]:
        for down in block.mlp.experts.down_proj:
            down[:, torch.randperm(16, generator=generator.manual_seed(int(down.sum() * 1e6)))[:8]] *= 1e-4
    batch = family.encode([("one", "two!", 0), ("three", "four", 1)])
    before = family.forward(batch)[0]
    stage = narrower(family, f"importance@pipeline.{NAME}.importance={importance}", **{"budget.share": 0.88})
    assert size(stage.model.config, EXPERT_FFN) == 8
    stage.model.eval()
    torch.testing.assert_close(stage.family.forward(batch)[0], before, atol=1e-4, rtol=1e-3)


@torch.no_grad()
def test_neurons_of_an_expert_without_tokens_go_by_their_weights(tiny: Make, narrower: Make) -> None:
    family = tiny("causal_lm", model_type="qwen3_moe", **MIXTURES["qwen3_moe"])
    router, experts = family.blocks()["decoder"][0].mlp.gate, family.blocks()["decoder"][0].mlp.experts
    router.register_forward_hook(lambda _, __, out: (*out[:2], torch.where(out[2] == 2, 3, out[2])))
    kept = experts.down_proj[2].norm(dim=0).topk(8).indices.sort().values
    stage = narrower(family, **{"budget.share": 0.88})
    assert torch.equal(stage.family.blocks()["decoder"][0].mlp.experts.down_proj[2], experts.down_proj[2][:, kept])
    assert stage.finish()["expert_tokens/model.layers.0.experts.2"] == 0


def test_experts_and_their_neurons_go_together(tiny: Make, narrower: Make) -> None:
    family = tiny("causal_lm", model_type="deepseek_v3", **MIXTURES["deepseek_v3"] | {"moe_intermediate_size": 16})
    both = narrower(
        family, f"pipeline.{NAME}.axes=[experts,expert_ffn]", experts="merge", candidates=2, **{"budget.share": 0.75}
    )
    assert both.finish()["expert_ffn_kept"] == 8 and both.finish()["experts_kept"] < 8


@pytest.mark.fast
def test_neurons_that_no_grouped_product_reads_are_refused(tiny: Make) -> None:
    family = tiny("causal_lm", model_type="qwen3_moe", **MIXTURES["qwen3_moe"])
    kept = {name: torch.arange(12).expand(6, 12) for name in scopes(family.model, EXPERT_FFN)}
    with pytest.raises(ValueError, match=r"expert_ffn must be a multiple of 8, .* got 12 of 16: keep more or fewer"):
        check(family.model, {"decoder": [0, 1]}, {EXPERT_FFN: kept})
