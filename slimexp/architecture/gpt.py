"""Decoder-only model types of other names than Llama's, whose heads follow from the hidden width, with layer norms."""

from collections.abc import Sequence
from dataclasses import replace

from transformers import PreTrainedConfig

from slimexp.architecture.base import FFN, HEADS, HIDDEN, OTHER, VOCABULARY, Architecture, Rule
from slimexp.architecture.reasons import FIXED_WIDTHS, FOUR_TIMES

GPT2 = Architecture(
    axes={  # Conv1D holds [in, out]; c_attn is queries, keys and values side by side
        r"attn\.c_attn\.weight$": (HIDDEN, OTHER),
        r"attn\.c_attn\.bias$": (OTHER,),
        r"attn\.c_proj\.weight$": (OTHER, HIDDEN),
        r"c_fc\.weight$": (HIDDEN, FFN),
        r"c_fc\.bias$": (FFN,),
        r"mlp\.c_proj\.weight$": (FFN, HIDDEN),
        r"(c_proj|ln_\w+)\.(weight|bias)$": (HIDDEN,),
        r"(wte|lm_head)\.weight$": (VOCABULARY, HIDDEN),
        r"lm_head\.bias$": (VOCABULARY,),
        r"wpe\.weight$": (OTHER, HIDDEN),
    },
    block=r"\.h\.(\d+)\.",
    sizes={FFN: "n_inner", VOCABULARY: "vocab_size"},
    depths={"decoder": "n_layer"},
    refusals=FIXED_WIDTHS,
    rules=lambda _: (Rule("ln_1", ("attn.c_attn",)), Rule("ln_2", ("mlp.c_fc",))),
)

GPTJ = replace(
    GPT2,
    axes={
        r"attn\.(q|k|v)_proj\.weight$": (HEADS, HIDDEN),
        r"attn\.out_proj\.weight$": (HIDDEN, HEADS),
        r"fc_in\.weight$": (FFN, HIDDEN),
        r"fc_in\.bias$": (FFN,),
        r"fc_out\.weight$": (HIDDEN, FFN),
        r"fc_out\.bias$": (HIDDEN,),
        **GPT2.axes,
    },
    rules=lambda _: (
        Rule("ln_1", ("attn.q_proj", "attn.k_proj", "attn.v_proj", "mlp.fc_in")),
        Rule("attn.v_proj", ("attn.out_proj",)),
    ),
)

_READS_FFN = {
    r"dense_h_to_4h\.weight$": (FFN, HIDDEN),
    r"dense_h_to_4h\.bias$": (FFN,),
    r"dense_4h_to_h\.weight$": (HIDDEN, FFN),
    r"dense\.weight$": (HIDDEN, HEADS),
    r"(dense|dense_4h_to_h)\.bias$": (HIDDEN,),
    r"query_key_value\.weight$": (OTHER, HIDDEN),
    r"query_key_value\.bias$": (OTHER,),
    r"(norm|ln_\w+)\.(weight|bias)$": (HIDDEN,),
    r"(embed_in|embed_out|word_embeddings|lm_head)\.weight$": (VOCABULARY, HIDDEN),
}

GPT_NEOX = Architecture(
    axes=_READS_FFN,
    block=r"\.layers\.(\d+)\.",
    sizes={FFN: "intermediate_size", VOCABULARY: "vocab_size"},
    depths={"decoder": "num_hidden_layers"},
    refusals=FIXED_WIDTHS,
    rules=lambda _: (
        Rule("input_layernorm", ("attention.query_key_value",)),
        Rule("post_attention_layernorm", ("mlp.dense_h_to_4h",)),
    ),
)


def _falcon(config: PreTrainedConfig) -> Sequence[Rule]:
    """Attention and feed-forward read one norm, or one each."""
    attention, neurons = ("self_attention.query_key_value",), ("mlp.dense_h_to_4h",)
    if config.parallel_attn and config.new_decoder_architecture and config.num_ln_in_parallel_attn != 1:
        return Rule("ln_attn", attention), Rule("ln_mlp", neurons)
    if config.parallel_attn:
        return (Rule("input_layernorm", (*attention, *neurons)),)
    return Rule("input_layernorm", attention), Rule("post_attention_layernorm", neurons)


FALCON = replace(
    GPT_NEOX,
    block=r"\.h\.(\d+)\.",
    sizes={FFN: "ffn_hidden_size", VOCABULARY: "vocab_size"},
    rules=_falcon,
)

BLOOM = replace(
    FALCON,
    sizes={VOCABULARY: "vocab_size"},
    depths={"decoder": "n_layer"},
    refusals={**FIXED_WIDTHS, FFN: FOUR_TIMES},
    rules=lambda config: (
        ()  # what a norm puts out is the residual stream then
        if config.apply_residual_connection_post_layernorm
        else (
            Rule("input_layernorm", ("self_attention.query_key_value",)),
            Rule("post_attention_layernorm", ("mlp.dense_h_to_4h",)),
        )
    ),
)


def _opt(config: PreTrainedConfig) -> Sequence[Rule]:
    """Norms that come after a layer put out the residual stream, and are left out."""
    attention = tuple(f"self_attn.{name}_proj" for name in "qkv")
    before = (Rule("self_attn_layer_norm", attention), Rule("final_layer_norm", ("fc1",)))
    return (
        *(before if config.do_layer_norm_before else ()),
        Rule("self_attn.v_proj", ("self_attn.out_proj",)),
        *([Rule("fc1", ("fc2",))] if config.activation_function == "relu" else []),
    )


OPT = Architecture(
    axes={
        r"(q|k|v)_proj\.weight$": (HEADS, HIDDEN),
        r"(q|k|v)_proj\.bias$": (HEADS,),
        r"out_proj\.weight$": (HIDDEN, HEADS),
        r"fc1\.weight$": (FFN, HIDDEN),
        r"fc1\.bias$": (FFN,),
        r"fc2\.weight$": (HIDDEN, FFN),
        r"(out_proj|fc2|layer_norm)\.bias$": (HIDDEN,),
        r"layer_norm\.weight$": (HIDDEN,),
        r"embed_positions\.weight$": (OTHER, HIDDEN),
        r"(embed_tokens|lm_head)\.weight$": (VOCABULARY, OTHER),  # narrower than the blocks in some
        r"project_(in|out)\.weight$": (OTHER, OTHER),
    },
    block=r"\.layers\.(\d+)\.",
    sizes={FFN: "ffn_dim", VOCABULARY: "vocab_size"},
    depths={"decoder": "num_hidden_layers"},
    refusals=FIXED_WIDTHS,
    rules=_opt,
)
