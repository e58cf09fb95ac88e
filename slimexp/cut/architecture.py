"""Model architectures: which dimension of which parameter counts heads, neurons, channels, experts or tokens."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from transformers import PreTrainedConfig

HIDDEN, HEADS, KV_HEADS, FFN, EXPERTS, VOCABULARY = "hidden", "heads", "kv_heads", "ffn", "experts", "vocabulary"
QUERIES, LATENTS, TABLE = "queries", "latents", "table"  # other dimensions that follow HEADS
OTHER = "other"

_WHOLE_MODEL = (HIDDEN, VOCABULARY)
_SIZE_OF_A_HEAD = (
    "transformers has no size of a head of its own for this type, it is the hidden width divided by the heads: cut "
    "feed-forward neurons or whole layers instead"
)
_LAYER_NORM = (
    "its norms subtract the mean of all channels, so that with fewer of them the rest would not stay what they are: "
    "cut feed-forward neurons or whole layers instead"
)


@dataclass(frozen=True)
class Architecture:
    """What removal needs to know of a model type.

    Attributes:
        axes: Regular expression of a parameter's name -> axis of each of its dimensions; the first match counts.
        block: Regular expression of a block's index in a parameter's name, the index as its one group.
        sizes: Axis -> config key of its size; an axis without one cannot be cut.
        depths: Stack -> config key of its number of blocks.
        neurons: Regular expression of the names of the layers that read the feed-forward neurons.
        values: Regular expression of the names of the layers that read the attention heads.
        norm: Regular expression of the names of the norms on the residual stream; RMS norms where the hidden width
            can be cut.
        epsilon: Config key of what those norms add to the mean square.
        head_dim: Config key of the channels of a head, where that would otherwise follow from other sizes.
        widths: Axis that follows ``HEADS`` -> number of its entries that belong to one head.
        scopes: Axis -> regular expression of the part of a name within which all parameters retain the same units; a
            block, where the axis is left out.
        refusals: Axis -> reason why it cannot be cut.
        first_block_stays: Whether block 0 holds parameters that all blocks share.
        dense_blocks: Config key of the number of leading blocks that are no mixtures of experts.
        counts_from_padding: Whether positions are counted from the id of the padding token.
    """

    axes: Mapping[str, tuple[str, ...]]
    block: str
    sizes: Mapping[str, str]
    depths: Mapping[str, str]
    neurons: str
    values: str
    norm: str
    epsilon: str | None = None
    head_dim: str | None = None
    widths: Mapping[str, Callable[[PreTrainedConfig], int]] = field(default_factory=dict)
    scopes: Mapping[str, str] = field(default_factory=dict)
    refusals: Mapping[str, str] = field(default_factory=dict)
    first_block_stays: bool = False
    dense_blocks: str | None = None
    counts_from_padding: bool = False

    def of(self, name: str) -> tuple[str, ...]:
        """Axes of the parameter called ``name``.

        Raises:
            ValueError: No pattern of the architecture matches the name.
        """
        for pattern, axes in self.axes.items():
            if re.search(pattern, name):
                return axes
        raise ValueError(f"parameter '{name}' has no known axes: this variant cannot be cut")

    def leader(self, axis: str) -> str:
        """The axis whose units decide what is retained along ``axis``: position tables and latents follow heads."""
        return HEADS if axis in self.widths and axis != KV_HEADS else axis

    @property
    def groups(self) -> str:
        """Axis of the units that attention can lose: key/value heads, or heads where each has keys of its own."""
        return KV_HEADS if KV_HEADS in self.sizes else HEADS


def architecture_of(config: PreTrainedConfig) -> Architecture:
    """The architecture of a model's type.

    Raises:
        ValueError: The type has none here; names the types that do.
    """
    if config.model_type not in ARCHITECTURES:
        raise ValueError(
            f"a model of type {config.model_type} cannot be cut; types that can: {', '.join(sorted(ARCHITECTURES))}"
        )
    return ARCHITECTURES[config.model_type]


def size(config: PreTrainedConfig, axis: str) -> int:
    """Number of units of an axis: heads, key/value heads or neurons of a block, channels, experts of a block, tokens.

    Raises:
        ValueError: The axis cannot be cut; names the reason.
    """
    architecture = architecture_of(config)
    if axis not in architecture.sizes:
        if axis not in architecture.refusals:
            raise ValueError(f"a model of type {config.model_type} has no {axis}")
        reason = architecture.refusals[axis]
        raise ValueError(f"{axis} of a model of type {config.model_type} cannot be cut alone: {reason}")
    units = getattr(config, architecture.sizes[axis])
    return int(units if units is not None else 4 * config.hidden_size)  # GPT-2's n_inner


def head_width(config: PreTrainedConfig) -> int:
    """Number of channels of one attention head where the output projection reads it."""
    explicit = next((w for key in ("v_head_dim", "head_dim", "d_kv") if (w := getattr(config, key, None))), None)
    return int(explicit or config.hidden_size // config.num_attention_heads)


def block(name: str, architecture: Architecture) -> str:
    """The part of a parameter's or module's name up to its block's index; "" outside the blocks."""
    match = re.search(architecture.block, f"{name}.")
    return name[: match.end() - 1] if match else ""


def scope(name: str, axis: str, architecture: Architecture) -> str:
    """The part of a parameter's or module's name within which all retain the same units of ``axis``."""
    if axis in _WHOLE_MODEL:
        return ""
    if axis in architecture.scopes:
        match = re.search(architecture.scopes[axis], name)
        return match[0] if match else ""
    return block(name, architecture)


_T5 = Architecture(
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
    depths={"encoder": "num_layers", "decoder": "num_decoder_layers"},
    neurons=r"\.wo$",
    values=r"\.o$",
    norm=r"layer_norm$",  # epsilon stays: embeddings of deviation 1 are far above it
    widths={HEADS: head_width, TABLE: lambda config: 1},
    # The blocks of a stack share the position table of their self-attention, in block 0; cross-attention has none.
    scopes={HEADS: r"^\w+\.block\.\d+\.layer\.1(?=\.EncDecAttention)|^\w+(?=\.block\.\d+\.layer\.0\.SelfAttention)"},
    first_block_stays=True,
)

_LLAMA = Architecture(
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
        r"norm\.weight$": (HIDDEN,),
        r"(embed_tokens|lm_head)\.weight$": (VOCABULARY, HIDDEN),
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
    neurons=r"mlp\.down_proj$",
    values=r"\.o_proj$",
    norm=r"(input_layernorm|post_attention_layernorm|model\.norm)$",
    epsilon="rms_norm_eps",
    head_dim="head_dim",
    widths={HEADS: head_width, KV_HEADS: head_width},
)

_DEEPSEEK = replace(  # multi-head latent attention: keys and values of all heads come out of one latent
    _LLAMA,
    axes={
        r"(q_a|kv_a)_layernorm\.weight$": (OTHER,),
        r"q_b_proj\.weight$": (QUERIES, OTHER),
        r"\.q_proj\.weight$": (QUERIES, HIDDEN),
        r"kv_b_proj\.weight$": (LATENTS, OTHER),
        r"(q_a_proj|kv_a_proj_with_mqa)\.weight$": (OTHER, HIDDEN),
        r"(q_a_proj|kv_a_proj_with_mqa)\.bias$": (OTHER,),
        r"experts\.gate_up_proj$": (EXPERTS, OTHER, HIDDEN),
        r"experts\.down_proj$": (EXPERTS, HIDDEN, OTHER),
        r"mlp\.gate\.weight$": (EXPERTS, HIDDEN),
        r"mlp\.gate\.e_score_correction_bias$": (EXPERTS,),
        r"shared_experts\.(gate|up)_proj\.weight$": (OTHER, HIDDEN),
        r"shared_experts\.(gate|up)_proj\.bias$": (OTHER,),
        r"shared_experts\.down_proj\.weight$": (HIDDEN, OTHER),
        **_LLAMA.axes,
    },
    sizes={**_LLAMA.sizes, EXPERTS: "n_routed_experts"},
    head_dim=None,
    widths={
        HEADS: head_width,
        KV_HEADS: head_width,  # of no parameter: config has as many of these as of heads
        QUERIES: lambda config: config.qk_nope_head_dim + config.qk_rope_head_dim,
        LATENTS: lambda config: config.qk_nope_head_dim + config.v_head_dim,
    },
    dense_blocks="first_k_dense_replace",
)

_BERT = Architecture(
    axes={
        r"(query|key|value)\.weight$": (HEADS, HIDDEN),
        r"(query|key|value)\.bias$": (HEADS,),
        r"attention\.output\.dense\.weight$": (HIDDEN, HEADS),
        r"intermediate\.dense\.weight$": (FFN, HIDDEN),
        r"intermediate\.dense\.bias$": (FFN,),
        r"\.output\.dense\.weight$": (HIDDEN, FFN),
        r"(dense|LayerNorm)\.(weight|bias)$": (HIDDEN,),
        r"word_embeddings\.weight$": (VOCABULARY, HIDDEN),
        r"embeddings\.weight$": (OTHER, HIDDEN),
        r"(classifier|out_proj)\.weight$": (OTHER, HIDDEN),
        r"(classifier|out_proj)\.bias$": (OTHER,),
    },
    block=r"\.layer\.(\d+)\.",
    sizes={FFN: "intermediate_size", VOCABULARY: "vocab_size"},
    depths={"encoder": "num_hidden_layers"},
    neurons=r"\d+\.output\.dense$",
    values=r"attention\.output\.dense$",
    norm=r"LayerNorm$",
    refusals={HEADS: _SIZE_OF_A_HEAD, KV_HEADS: _SIZE_OF_A_HEAD, HIDDEN: _LAYER_NORM},
)

_DISTILBERT = replace(
    _BERT,
    axes={
        r"(q|k|v)_lin\.weight$": (HEADS, HIDDEN),
        r"(q|k|v)_lin\.bias$": (HEADS,),
        r"out_lin\.weight$": (HIDDEN, HEADS),
        r"lin1\.weight$": (FFN, HIDDEN),
        r"lin1\.bias$": (FFN,),
        r"lin2\.weight$": (HIDDEN, FFN),
        r"(out_lin|lin2|pre_classifier)\.bias$": (HIDDEN,),
        r"pre_classifier\.weight$": (OTHER, HIDDEN),
        r"(?i)layer_?norm\.(weight|bias)$": (HIDDEN,),
        **_BERT.axes,
    },
    sizes={FFN: "hidden_dim", VOCABULARY: "vocab_size"},
    depths={"encoder": "n_layers"},
    neurons=r"ffn\.lin2$",
    values=r"attention\.out_lin$",
    norm=r"(?i)layer_?norm$",
)

_GPT2 = Architecture(
    axes={  # Conv1D holds [in, out]; c_attn is queries, keys and values side by side
        r"attn\.c_attn\.weight$": (HIDDEN, OTHER),
        r"attn\.c_attn\.bias$": (OTHER,),
        r"attn\.c_proj\.weight$": (OTHER, HIDDEN),
        r"c_fc\.weight$": (HIDDEN, FFN),
        r"c_fc\.bias$": (FFN,),
        r"mlp\.c_proj\.weight$": (FFN, HIDDEN),
        r"(c_proj|ln_\w+)\.(weight|bias)$": (HIDDEN,),
        r"(wte|lm_head)\.weight$": (VOCABULARY, HIDDEN),
        r"wpe\.weight$": (OTHER, HIDDEN),
    },
    block=r"\.h\.(\d+)\.",
    sizes={FFN: "n_inner", VOCABULARY: "vocab_size"},
    depths={"decoder": "n_layer"},
    neurons=r"mlp\.c_proj$",
    values=r"attn\.c_proj$",
    norm=r"ln_\w+$",
    refusals={HEADS: _SIZE_OF_A_HEAD, KV_HEADS: _SIZE_OF_A_HEAD, HIDDEN: _LAYER_NORM},
)

ARCHITECTURES: Mapping[str, Architecture] = {
    "t5": _T5,
    "mt5": _T5,
    "llama": _LLAMA,  # DeepSeek-LLM is of this type
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "deepseek_v2": _DEEPSEEK,
    "deepseek_v3": _DEEPSEEK,
    "bert": _BERT,
    "roberta": replace(_BERT, counts_from_padding=True),
    "distilbert": _DISTILBERT,
    "gpt2": _GPT2,
}
