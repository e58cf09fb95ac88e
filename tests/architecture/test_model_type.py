from typing import Any

import pytest
from transformers import AutoConfig, GPT2Config, LlamaConfig, T5Config

from slimexp.architecture.base import (
    FFN,
    HEADS,
    HIDDEN,
    KV_HEADS,
    LAYERS,
    QKV,
    TABLE,
    VOCABULARY,
    block,
    head_width,
    scope,
)
from slimexp.architecture.model_type import architecture_of, size


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert", "gpt2"])
@pytest.mark.parametrize(("axis", "why"), [(HEADS, "no size of a head of its own"), (HIDDEN, "subtract the mean")])
def test_axes_of_families_that_have_them_but_cannot_lose_them(kind: str, axis: str, why: str) -> None:
    with pytest.raises(ValueError, match=f"{axis} of a model of type {kind} cannot be cut alone: .*{why}.* instead"):
        size(AutoConfig.for_model(kind), axis)


def test_the_width_that_gpt2_leaves_out_is_four_times_the_hidden_one() -> None:
    assert size(GPT2Config(), FFN) == 3072


@pytest.mark.fast
def test_a_parameter_that_no_pattern_matches_is_refused() -> None:
    architecture = architecture_of(LlamaConfig())
    assert architecture.of("model.layers.3.self_attn.k_proj.weight") == (KV_HEADS, HIDDEN)
    with pytest.raises(ValueError, match=r"parameter 'model\.layers\.3\.adapter' has no known axes"):
        architecture.of("model.layers.3.adapter")


@pytest.mark.fast
def test_the_scope_of_a_name_is_its_block_or_what_shares_one_choice() -> None:
    t5, llama = architecture_of(T5Config()), architecture_of(LlamaConfig())
    assert block("model.layers.12.mlp.down_proj", llama) == "model.layers.12" and block("model.norm", llama) == ""
    assert scope("model.layers.12.mlp.down_proj.weight", FFN, llama) == "model.layers.12"
    assert scope("model.layers.12.mlp.down_proj.weight", HIDDEN, llama) == ""
    assert scope("decoder.block.1.layer.0.SelfAttention.o", HEADS, t5) == "decoder"
    assert scope("decoder.block.1.layer.1.EncDecAttention.o", HEADS, t5) == "decoder.block.1.layer.1"


@pytest.mark.fast
def test_position_tables_follow_heads_and_key_value_heads_are_cut_by_themselves() -> None:
    assert architecture_of(T5Config()).leader(TABLE) == HEADS
    assert architecture_of(LlamaConfig()).leader(KV_HEADS) == KV_HEADS
    assert architecture_of(LlamaConfig()).groups == KV_HEADS and architecture_of(T5Config()).groups == HEADS


@pytest.mark.fast
def test_the_channels_of_a_head_may_differ_from_the_width_over_the_heads() -> None:
    assert head_width(T5Config(d_model=512, d_kv=32, num_heads=8)) == 32
    assert head_width(GPT2Config(n_embd=48, n_head=4)) == 12


@pytest.mark.fast
@pytest.mark.parametrize(
    ("kind", "values", "axis", "message"),
    [
        (
            "bart",
            {"decoder_ffn_dim": 8},
            FFN,
            r"other numbers of them \(encoder_ffn_dim=4096, decoder_ffn_dim=8\)",
        ),
        ("bloom", {}, FFN, "four times as many neurons as channels .*: cut layers instead"),
        ("mixtral", {}, FFN, "neurons are those of its experts, .*: cut layers, heads, hidden, experts or expert_ffn"),
        ("phi", {"qk_layernorm": True}, HEADS, "no size of a head of its own .*: cut layers or ffn instead"),
        ("marian", {}, VOCABULARY, "two tokenizers share one table .*: cut layers or ffn instead"),
        ("albert", {}, LAYERS, "all layers are one block .*: cut ffn instead"),
    ],
)
def test_a_refusal_names_the_axis_the_reason_and_what_works(
    kind: str, values: dict[str, Any], axis: str, message: str
) -> None:
    with pytest.raises(ValueError, match=f"{axis} of a model of type {kind} cannot be cut alone: .*{message}"):
        size(AutoConfig.for_model(kind, **values), axis)


@pytest.mark.fast
def test_parts_of_a_fused_projection_count_axes_of_their_own() -> None:
    phi3 = architecture_of(AutoConfig.for_model("phi3"))
    assert phi3.of("model.layers.0.self_attn.qkv_proj.weight") == (QKV, HIDDEN)
    assert phi3.counted("model.layers.0.self_attn.qkv_proj.weight") == {HEADS, KV_HEADS, HIDDEN}
    assert phi3.counted("model.layers.0.mlp.gate_up_proj.weight") == {FFN, HIDDEN}


@pytest.mark.fast
def test_the_first_block_stays_where_others_need_it() -> None:
    assert architecture_of(AutoConfig.for_model("modernbert")).first(AutoConfig.for_model("modernbert"))
    deberta = AutoConfig.for_model("deberta-v2")
    assert architecture_of(deberta).first(deberta) is None
    deberta.conv_kernel_size = 3
    assert "convolution" in str(architecture_of(deberta).first(deberta))
