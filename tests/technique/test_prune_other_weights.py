"""Masks on weights of no nn.Linear: GPT-2's Conv1D, and the experts of a mixture in one tensor."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from slimexp import artifact
from slimexp.model.base import Family
from slimexp.model.layer import LayerSelector, latent, matrix, place
from slimexp.technique.prune import Prune
from slimexp.weight.attachment import attached

Make = Callable[..., Any]
MODELS: dict[str, dict[str, Any]] = {
    "gpt2": {"model_type": "gpt2", "n_inner": 48},
    "deepseek-v3": {
        "model_type": "deepseek_v3", "num_key_value_heads": 4, "kv_lora_rank": 16, "q_lora_rank": None,
        "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 8, "moe_intermediate_size": 12,
        "n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1, "first_k_dense_replace": 1,
        "n_group": 1, "topk_group": 1,
    },
}  # fmt: skip
ALL = LayerSelector(include=["*"], exclude=[], min_coverage=0.01, min_block_coverage=0.01)
ROWS = [("one", None, None), ("three and four", None, None)]


def pruned(technique: Prune, family: Family, corpus: Any) -> dict[str, float]:
    technique.prepare(family, corpus("causal_lm"), None)
    return technique.finish()


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("pattern", ["unstructured", "n_m"])
def test_zeros_lie_along_inputs_and_are_what_is_saved(
    tiny: Make, technique: Make, corpus: Make, tmp_path: Path, name: str, pattern: str
) -> None:
    family: Family = tiny("causal_lm", **MODELS[name])
    scope = ["pattern@pipeline.prune.pattern=unstructured", "pipeline.prune.pattern.scope=row"]
    chosen = (
        scope if pattern == "unstructured" else ["pattern@pipeline.prune.pattern=n_m", "pipeline.prune.pattern.m=4"]
    )
    figures = pruned(technique("prune", *chosen, sparsity=0.5), family, corpus)
    assert figures["sparsity"] == 0.5 and figures["share"] > 0.5
    artifact.save(family, tmp_path / "a", dtype=torch.float32, stages=[])
    deployed, resumed = artifact.deployed(tmp_path / "a"), artifact.load(tmp_path / "a")
    group = 4 if pattern == "n_m" else None
    for layer in ALL.weights(deployed).values():
        rows = matrix(layer, latent(layer))
        units = rows if group is None else rows.reshape(-1, group)
        assert ((units == 0).sum(1) == units.shape[1] // 2).all()
    batch = family.encode(ROWS)
    with torch.no_grad():
        logits = [each.forward(batch)[0] for each in (family, deployed, resumed)]
    torch.testing.assert_close(logits[1], logits[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(logits[2], logits[0], atol=1e-5, rtol=1e-5)


def test_a_further_stage_finds_the_masks_of_experts(tiny: Make, technique: Make, corpus: Make) -> None:
    family: Family = tiny("causal_lm", **MODELS["deepseek-v3"])
    pruned(technique("prune", sparsity=0.5), family, corpus)
    masks = len(list(attached(family.model)))
    assert pruned(technique("prune", sparsity=0.75), family, corpus)["sparsity"] == pytest.approx(0.75, abs=1e-3)
    assert len(list(attached(family.model))) == masks


def test_wanda_sees_the_inputs_of_conv1d(tiny: Make, technique: Make, corpus: Make) -> None:
    """The least of |w| |x| go from every output, of which Conv1D holds columns."""
    family: Family = tiny("causal_lm", **MODELS["gpt2"])
    first = family.model.transformer.h[0].mlp.c_fc
    with torch.no_grad():
        first.weight.copy_(torch.linspace(1, 2, 48).expand(32, 48))
        family.model.transformer.h[0].ln_2.weight[:16] = 1e-3  # half of its inputs hardly ever speak
    overrides = ["importance@pipeline.prune.importance=wanda", "pipeline.prune.importance.rows=4"]
    pruned(technique("prune", *overrides, "pipeline.prune.pattern.scope=row", sparsity=0.5), family, corpus)
    assert (first.weight[:16] == 0).all() and (first.weight[16:] != 0).all()


def test_inputs_of_experts_do_not_show(tiny: Make, technique: Make, corpus: Make) -> None:
    overrides = ["importance@pipeline.prune.importance=wanda"]
    with pytest.raises(ValueError, match=r"Wanda reads the inputs of layers, and 'model\.layers\.1\.mlp\.experts"):
        pruned(technique("prune", *overrides, sparsity=0.5), tiny("causal_lm", **MODELS["deepseek-v3"]), corpus)


@pytest.mark.parametrize(
    "overrides",
    [
        ["pipeline.prune.regrow=0.3"],
        ["importance@pipeline.prune.importance=movement"],
        ["importance@pipeline.prune.importance=l0"],
        ["+allocation@pipeline.prune.allocation=sensitivity", "pipeline.prune.allocation.rows=2"],
    ],
)
@pytest.mark.parametrize("name", MODELS)
def test_masks_that_training_moves_lie_right(
    tiny: Make, technique: Make, corpus: Make, fit: Make, name: str, overrides: list[str]
) -> None:
    """Whatever looks at gradients or losses sees weights and masks the same way round, square ones too."""
    family: Family = tiny("causal_lm", **MODELS[name])
    learned = technique("prune", *overrides, sparsity=0.5, steps=4, every=1)
    learned.prepare(family, corpus("causal_lm"), None)
    fit(learned)
    assert learned.finish()["sparsity"] == pytest.approx(0.5, abs=1e-3)
    for layer in learned.layers.values():
        module, tensor = place(layer)
        assert torch.isfinite(getattr(module, tensor)).all()


def test_what_movement_learns_of_a_square_conv1d_is_not_transposed(
    tiny: Make, technique: Make, corpus: Make, fit: Make
) -> None:
    family: Family = tiny("causal_lm", **MODELS["gpt2"])
    overrides = ["importance@pipeline.prune.importance=movement"]
    stage = technique("prune", *overrides, sparsity=0.5, steps=2, every=100, ramp=1.0)
    stage.prepare(family, corpus("causal_lm"), None)
    fit(stage)
    stage.finish()
    name = "transformer.h.0.attn.c_proj"
    mask, learned = stage.masks[name].mask, stage.learned[name]
    assert mask.shape[0] == mask.shape[1] and learned[mask].min() >= learned[~mask].max()
