"""Which units a cut may retain, and the errors of cuts that no model can have."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig

from slimexp.architecture.base import EXPERTS, FFN, HEADS, HIDDEN, KV_HEADS, VOCABULARY
from slimexp.cut.constraints import ScopeIndices, admits, scopes
from slimexp.cut.remove import head_rows, remove
from slimexp.model.base import Family

Tiny = Callable[..., Any]
BOTH = {"decoder": [0, 1]}
MIXTURE = {
    "model_type": "deepseek_v3", "num_key_value_heads": 4, "kv_lora_rank": 16, "q_lora_rank": None, "v_head_dim": 8,
    "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "moe_intermediate_size": 12, "n_routed_experts": 8,
    "num_experts_per_tok": 3, "n_shared_experts": 1, "first_k_dense_replace": 0, "n_group": 2, "topk_group": 1,
}  # fmt: skip


def per_block(*indices: Tensor) -> ScopeIndices:
    return {f"model.layers.{i}": rows for i, rows in enumerate(indices)}


def span(*bounds: int) -> Tensor:
    return torch.arange(*bounds)


# --- what chooses for itself -----------------------------------------------------------------------


def test_a_stack_of_t5_chooses_heads_as_one_and_each_cross_attention_for_itself(tiny: Tiny) -> None:
    model = tiny("seq2seq").model
    assert scopes(model, HEADS) == ["encoder", "decoder", "decoder.block.0.layer.1", "decoder.block.1.layer.1"]
    assert scopes(model, FFN) == [f"{stack}.block.{i}" for stack in ("encoder", "decoder") for i in (0, 1)]
    assert scopes(model, HIDDEN) == scopes(model, VOCABULARY) == [""]


def test_only_blocks_that_are_mixtures_choose_experts(tiny: Tiny) -> None:
    model = tiny("causal_lm", **MIXTURE | {"first_k_dense_replace": 1}).model
    assert scopes(model, EXPERTS) == ["model.layers.1"] and scopes(model, FFN) == ["model.layers.0"]


# --- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        ({FFN: {"": span(0)}}, r"ffn must keep at least one: .* remove the block"),
        ({FFN: per_block(span(8))}, r"ffn of 'model\.layers\.1' must be given: there are 'model\.layers\.0'"),
        ({FFN: {"": span(40, 49)}}, r"ffn must be rising indices in 0\.\.47; got \[40, 41"),
        ({FFN: {"": torch.tensor([3, 1])}}, r"ffn must be rising indices in 0\.\.47; got \[3, 1\]"),
        ({HIDDEN: per_block(span(8), span(8))}, "hidden must be one choice for the whole model, .* untied"),
        ({VOCABULARY: {"": span(1, 259)}}, "vocabulary must keep the special token '<pad>'"),
        ({KV_HEADS: {"": span(8)}}, "heads and kv_heads must be cut together"),
        ({KV_HEADS: {"": span(8)}, HEADS: per_block(span(16), span(16))}, "must be given for the same parts; got"),
        ({KV_HEADS: {"": span(8)}, HEADS: {"": span(8, 24)}}, r"whole groups of 2 .* query heads \[1, 2\] .* \[0\]"),
        ({KV_HEADS: {"": span(8)}, HEADS: {"": span(4, 20)}}, "heads of '' must be whole heads of 8 channels"),
        ({EXPERTS: {"": span(2)}}, "a model of type llama has no experts"),
    ],
)
def test_what_cannot_be_retained(tiny: Tiny, kept: dict[str, ScopeIndices], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        remove(tiny("causal_lm"), BOTH, kept)


@pytest.mark.parametrize(
    ("task", "values", "layers", "message"),
    [
        ("causal_lm", {}, {"decoder": []}, r"blocks of the decoder must be rising indices in 0\.\.1, at least one"),
        ("seq2seq", {}, {"encoder": [1], "decoder": [0]}, "block 0 of the encoder must stay, whose position table"),
        ("seq2seq", {}, {"encoder": [0], "decoder": [0, 1]}, r"more decoder blocks \(2\) than encoder blocks \(1\)"),
        ("causal_lm", {"model_type": "gpt2", "n_inner": 8, "scale_attn_by_inverse_layer_idx": True}, {"decoder": [1]},
         "only the last blocks can go where scale_attn_by_inverse_layer_idx"),
    ],
)  # fmt: skip
def test_blocks_that_cannot_go(tiny: Tiny, task: str, values: Any, layers: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        remove(tiny(task, **values), layers, {})


def test_positions_that_are_counted_from_the_padding_token(tiny: Tiny) -> None:
    family: Family = tiny("classification", model_type="roberta", max_position_embeddings=70)
    family.model.config.pad_token_id = 5
    with pytest.raises(ValueError, match=r"must keep all ids below that of the padding token, 5, .* counts positions"):
        remove(family, {"encoder": [0, 1]}, {VOCABULARY: {"": torch.tensor([0, 1, 2, *range(5, 259)])}})


def test_neurons_of_a_model_whose_blocks_are_all_mixtures(tiny: Tiny) -> None:
    with pytest.raises(ValueError, match=r"are those of its experts, .*: cut layers, heads, hidden, experts or"):
        remove(tiny("causal_lm", **MIXTURE), BOTH, {FFN: {}})


def test_heads_that_transformers_would_not_load(tiny: Tiny) -> None:
    """Llama's config must have a hidden width that the heads divide, though nothing in the model needs it."""
    family: Family = tiny("causal_lm", num_key_value_heads=4)
    assert [n for n in range(1, 5) if admits(family.model.config, {KV_HEADS: n})] == [1, 2, 4]
    with pytest.raises(ValueError, match=r"would not load this llama: .*\(32\) is not a multiple of .* heads \(3\)"):
        remove(family, BOTH, head_rows(family.model.config, {"": span(3)}))


# --- sizes -----------------------------------------------------------------------------------------


def test_a_hidden_width_that_the_heads_do_not_divide() -> None:
    config = LlamaConfig(hidden_size=64, num_attention_heads=8, num_key_value_heads=4)
    assert [n for n in range(40, 65, 4) if admits(config, {HIDDEN: n})] == [40, 48, 56, 64]
    assert admits(config, {HIDDEN: 60, KV_HEADS: 2}) and not admits(config, {HIDDEN: 60, KV_HEADS: 4})
