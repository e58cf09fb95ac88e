"""Decoder-only model types of Llama's names."""

from collections.abc import Sequence
from dataclasses import replace

from transformers import PreTrainedConfig

from slimexp.architecture.base import (
    FFN,
    GATE_UP,
    HEADS,
    HIDDEN,
    KV_HEADS,
    OTHER,
    QKV,
    VOCABULARY,
    Architecture,
    Rule,
    head_width,
)
from slimexp.architecture.reasons import FIXED_WIDTHS, FUSED_HEADS, LAYER_NORM, SIZE_OF_A_HEAD

INPUTS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
GATED = ("mlp.gate_proj", "mlp.up_proj")
AFTER_ATTENTION = Rule("self_attn.v_proj", ("self_attn.o_proj",))
AFTER_GATE = Rule("mlp.up_proj", ("mlp.down_proj",))

LLAMA = Architecture(
    axes={
        r"(q_norm|k_norm)\.weight$": (OTHER,),
        r"q_proj\.weight$": (HEADS, HIDDEN),
        r"q_proj\.bias$": (HEADS,),
        r"(k|v)_proj\.weight$": (KV_HEADS, HIDDEN),
        r"(k|v)_proj\.bias$": (KV_HEADS,),
        r"o_proj\.weight$": (HIDDEN, HEADS),
        r"(gate|up)_proj\.weight$": (FFN, HIDDEN),
        r"(gate|up)_proj\.bias$": (FFN,),
        r"down_proj\.weight$": (HIDDEN, FFN),
        r"(o|down)_proj\.bias$": (HIDDEN,),
        r"norm\.(weight|bias)$": (HIDDEN,),
        r"(embed_tokens|lm_head)\.weight$": (VOCABULARY, HIDDEN),
        r"lm_head\.bias$": (VOCABULARY,),
    },
    block=r"\.layers\.(\d+)\.",
    sizes={
        HIDDEN: "hidden_size",
        FFN: "intermediate_size",
        HEADS: "num_attention_heads",
        KV_HEADS: "num_key_value_heads",
        VOCABULARY: "vocab_size",
    },
    depths={"decoder": "num_hidden_layers"},
    epsilon="rms_norm_eps",
    head_dim="head_dim",
    widths={HEADS: head_width, KV_HEADS: head_width},
    optional={HEADS: "self_attn", FFN: "mlp"},
    rules=lambda _: (
        Rule("input_layernorm", INPUTS),
        Rule("post_attention_layernorm", GATED),
        AFTER_ATTENTION,
        AFTER_GATE,
    ),
)

GEMMA = replace(LLAMA, gain=1.0, embedding_scale=True, final_norm="model.norm")

GEMMA2 = replace(  # norms before and after attention and feed-forward
    GEMMA,
    rules=lambda _: (
        Rule("input_layernorm", INPUTS),
        Rule("pre_feedforward_layernorm", GATED),
        AFTER_ATTENTION,
        AFTER_GATE,
    ),
)

OLMO2 = replace(  # norms after attention and feed-forward alone, and of the queries and keys of all heads together
    LLAMA,
    axes={r"q_norm\.weight$": (HEADS,), r"k_norm\.weight$": (KV_HEADS,), **LLAMA.axes},
    rules=lambda _: (AFTER_ATTENTION, AFTER_GATE),
)

PHI3 = replace(
    LLAMA,
    axes={r"qkv_proj\.weight$": (QKV, HIDDEN), r"gate_up_proj\.weight$": (GATE_UP, HIDDEN), **LLAMA.axes},
    parts={QKV: (HEADS, KV_HEADS, KV_HEADS), GATE_UP: (FFN, FFN)},
    alike={HEADS: FUSED_HEADS},
    rules=lambda _: (
        Rule("input_layernorm", ("self_attn.qkv_proj",)),
        Rule("post_attention_layernorm", ("mlp.gate_up_proj",)),
        Rule("self_attn.qkv_proj", ("self_attn.o_proj",), part=KV_HEADS),
        Rule("mlp.gate_up_proj", ("mlp.down_proj",), part=FFN),
    ),
)


def _stablelm(config: PreTrainedConfig) -> Sequence[Rule]:
    """Attention and feed-forward read one norm where they are parallel; norms of queries and keys change nothing."""
    if config.use_parallel_residual:
        return Rule("input_layernorm", (*INPUTS, *GATED)), AFTER_ATTENTION, AFTER_GATE
    return LLAMA.rules(config)


STABLELM = replace(
    LLAMA,
    axes={r"(q|k)_layernorm\.norms\.\d+\.weight$": (OTHER,), **LLAMA.axes},
    sizes={FFN: "intermediate_size", VOCABULARY: "vocab_size"},
    head_dim=None,
    widths={},
    refusals=FIXED_WIDTHS,
    rules=_stablelm,
)


def _phi_heads(config: PreTrainedConfig) -> str | None:
    return SIZE_OF_A_HEAD if config.qk_layernorm else None  # the norms of queries and keys alone have that size


PHI = replace(
    LLAMA,
    optional={},  # whose bias would stay
    axes={
        r"(q|k)_layernorm\.(weight|bias)$": (OTHER,),
        r"self_attn\.dense\.weight$": (HIDDEN, HEADS),
        r"fc1\.weight$": (FFN, HIDDEN),
        r"fc1\.bias$": (FFN,),
        r"fc2\.weight$": (HIDDEN, FFN),
        r"(dense|fc2)\.bias$": (HIDDEN,),
        **LLAMA.axes,
    },
    refusals={HIDDEN: LAYER_NORM, HEADS: _phi_heads, KV_HEADS: _phi_heads},
    rules=lambda _: (
        Rule("input_layernorm", (*INPUTS, "mlp.fc1")),
        Rule("self_attn.v_proj", ("self_attn.dense",)),
    ),
)

STARCODER2 = replace(
    LLAMA,
    optional={},  # whose bias would stay
    axes={
        r"mlp\.c_fc\.weight$": (FFN, HIDDEN),
        r"mlp\.c_fc\.bias$": (FFN,),
        r"mlp\.c_proj\.weight$": (HIDDEN, FFN),
        r"mlp\.c_proj\.bias$": (HIDDEN,),
        **LLAMA.axes,
    },
    refusals={HIDDEN: LAYER_NORM},
    rules=lambda _: (
        Rule("input_layernorm", INPUTS),
        Rule("post_attention_layernorm", ("mlp.c_fc",)),
        AFTER_ATTENTION,
    ),
)
