"""Which layers are selected: those of GPT-2's Conv1D and of the experts of a mixture too, and enough of the model."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from slimexp.model.base import Family
from slimexp.model.layer import LayerSelector, coverage, latent

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


@pytest.mark.parametrize("name", MODELS)
def test_all_matrices_of_the_blocks_but_routers_are_reached(tiny: Make, name: str) -> None:
    family: Family = tiny("causal_lm", **MODELS[name])
    reached = ALL.weights(family)
    prefix = {"gpt2": "transformer.h.", "deepseek-v3": "model.layers."}[name]
    matrices = {
        key: parameter
        for key, parameter in family.model.named_parameters()
        if key.startswith(prefix) and parameter.ndim > 1 and not key.endswith("mlp.gate.weight")
    }
    assert {latent(layer).data_ptr() for layer in reached.values()} == {p.data_ptr() for p in matrices.values()}
    everything = sum(parameter.numel() for parameter in family.model.parameters())
    assert coverage(family, reached) == sum(p.numel() for p in matrices.values()) / everything > 0.5


EXPERTS: dict[str, dict[str, Any]] = {
    "mixtral": {"model_type": "mixtral", "num_local_experts": 8, "num_experts_per_tok": 2},
    "qwen3-moe": {"model_type": "qwen3_moe", "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
    "qwen2-moe": {
        "model_type": "qwen2_moe", "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
        "shared_expert_intermediate_size": 32,
    },
    "gpt-oss": {"model_type": "gpt_oss", "num_local_experts": 8, "num_experts_per_tok": 2, "head_dim": 8},
}  # fmt: skip


def share_in_blocks(family: Family, layers: set[int]) -> float:
    """Of the matrices below ``model.layers``, counted by hand."""
    sizes = {id(p): p.numel() for n, p in family.model.named_parameters() if ".layers." in n and p.ndim > 1}
    return sum(size for one, size in sizes.items() if one in layers) / sum(sizes.values())


@pytest.mark.parametrize("name", EXPERTS)
def test_a_technique_that_leaves_most_of_the_blocks_out_is_refused_and_says_experts(
    tiny: Make, technique: Make, name: str
) -> None:
    family: Family = tiny("causal_lm", **EXPERTS[name])
    linear = {id(module.weight) for module in family.model.modules() if isinstance(module, torch.nn.Linear)}
    share = share_in_blocks(family, linear)
    assert share < 0.5
    techniques = [technique(kind, min_coverage=0.01) for kind in ("quantize", "prune")]
    if name == "gpt-oss":  # its experts lie the other way round
        for one in techniques:
            with pytest.raises(
                ValueError,
                match=rf"hold {share:.1%} of the weights in the blocks .* min_block_coverage is 50\.0%: most of the "
                r"others are the experts, .*\.experts\.",
            ):
                one.inspect(family)
        technique("quantize", min_block_coverage=share - 0.01, min_coverage=0.01).inspect(family)
    else:
        for one in techniques:
            one.inspect(family)


def test_weights_that_a_filter_leaves_out_are_not_missed(tiny: Make, technique: Make) -> None:
    family: Family = tiny("causal_lm")
    technique("quantize", include="['*.q_proj']", min_coverage=0.01).inspect(family)


@pytest.mark.parametrize("value", [0, 1.5, float("nan")])
def test_a_share_of_the_blocks_is_in_its_range(value: float) -> None:
    rule = r"min_block_coverage must be in \(0, 1\], a share of the weights in the blocks"
    with pytest.raises(ValueError, match=rule):
        LayerSelector(include=["*"], exclude=[], min_coverage=0.5, min_block_coverage=value)
