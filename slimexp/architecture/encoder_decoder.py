"""Encoder-decoder model types: T5 and its descendants, BART and its descendants."""

from collections.abc import Sequence
from dataclasses import replace

from transformers import PreTrainedConfig

from slimexp.architecture.base import (
    FFN,
    HEADS,
    HIDDEN,
    OTHER,
    TABLE,
    VOCABULARY,
    Architecture,
    Rule,
    head_width,
)
from slimexp.architecture.gpt import OPT
from slimexp.architecture.reasons import FIRST_TABLE, FIXED_WIDTHS, SHARED_TABLE, TWO_ATTENTIONS, TWO_VOCABULARIES


def _t5(config: PreTrainedConfig) -> Sequence[Rule]:
    """Keys and values of cross-attention are left out: all decoder blocks read one norm, of another stack."""
    rules: list[Rule] = []
    for within in ("layer.0.SelfAttention", "layer.0.LocalSelfAttention", "layer.1.EncDecAttention"):
        readers = ("q",) if within.endswith("EncDecAttention") else ("q", "k", "v")
        rules.append(Rule(f"{within[:7]}.layer_norm", tuple(f"{within}.{name}" for name in readers)))
        rules.append(Rule(f"{within}.v", (f"{within}.o",)))
    for place in ("layer.1", "layer.2"):  # an encoder's block has no cross-attention between
        dense = f"{place}.DenseReluDense"
        into = ("wi_0", "wi_1") if config.is_gated_act else ("wi",)
        rules.append(Rule(f"{place}.layer_norm", tuple(f"{dense}.{name}" for name in into)))
        if config.is_gated_act or config.dense_act_fn == "relu":  # relu(x / s) = relu(x) / s for s > 0
            rules.append(Rule(f"{dense}.{into[-1]}", (f"{dense}.wo",)))
    return rules


T5 = Architecture(
    axes={
        r"\.(q|k|v)\.weight$": (HEADS, HIDDEN),
        r"\.o\.weight$": (HIDDEN, HEADS),
        r"\.wi(_\d)?\.weight$": (FFN, HIDDEN),
        r"\.wo\.weight$": (HIDDEN, FFN),
        r"layer_norm\.weight$": (HIDDEN,),
        r"(shared|embed_tokens|lm_head)\.weight$": (VOCABULARY, HIDDEN),
        r"relative_attention_bias\.weight$": (OTHER, TABLE),
    },
    block=r"\.block\.(\d+)\.",
    sizes={HIDDEN: "d_model", FFN: "d_ff", HEADS: "num_heads", VOCABULARY: "vocab_size"},
    depths={"encoder": "num_layers", "decoder": "num_decoder_layers"},  # epsilon stays: embeddings are far above it
    widths={HEADS: head_width, TABLE: lambda config: 1},
    # The blocks of a stack share the position table of their self-attention, in block 0; cross-attention has none.
    scopes={HEADS: r"^\w+\.block\.\d+\.layer\.1(?=\.EncDecAttention)|^\w+(?=\.block\.\d+\.layer\.0\.\w*SelfAttention)"},
    alike={HEADS: SHARED_TABLE},
    first_block=FIRST_TABLE,
    rules=_t5,
)

UMT5 = replace(  # a position table for every block
    T5,
    scopes={HEADS: r"^\w+\.block\.\d+\.layer\.\d+(?=\.(SelfAttention|EncDecAttention))"},
    alike={HEADS: TWO_ATTENTIONS},
    first_block=None,
)


def _bart(*, before: bool) -> Architecture:
    """BART and its descendants, by whether norms come before attention and feed-forward."""

    def rules(config: PreTrainedConfig) -> Sequence[Rule]:
        found = []
        for within, readers in (("self_attn", "qkv"), ("encoder_attn", "q")):
            attention = tuple(f"{within}.{name}_proj" for name in readers)
            found += [Rule(f"{within}_layer_norm", attention)] if before else []
            found += [Rule(f"{within}.v_proj", (f"{within}.out_proj",))]
        found += [Rule("final_layer_norm", ("fc1",))] if before else []
        return [*found, *([Rule("fc1", ("fc2",))] if config.activation_function == "relu" else [])]

    return replace(
        OPT,
        axes={
            r"final_logits_bias$": (OTHER, VOCABULARY),
            r"(layernorm_embedding|layer_?norm)\.(weight|bias)$": (HIDDEN,),
            r"(shared|embed_tokens|lm_head)\.weight$": (VOCABULARY, HIDDEN),
            **OPT.axes,
        },
        sizes={FFN: ("encoder_ffn_dim", "decoder_ffn_dim"), VOCABULARY: "vocab_size"},
        depths={"encoder": "encoder_layers", "decoder": "decoder_layers"},
        refusals=FIXED_WIDTHS,
        rules=rules,
    )


BART, PRE_NORM_BART = _bart(before=False), _bart(before=True)

MARIAN = replace(
    BART,
    sizes={key: names for key, names in BART.sizes.items() if key != VOCABULARY},
    refusals={**FIXED_WIDTHS, VOCABULARY: TWO_VOCABULARIES},
)
