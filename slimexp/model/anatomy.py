"""Where the parts of an architecture are: which dimension of which parameter is heads, neurons or channels."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

HIDDEN, HEADS, KV_HEADS, FFN, OTHER = "hidden", "heads", "kv_heads", "ffn", "other"


@dataclass(frozen=True)
class Anatomy:
    """What a cut needs to know of a model type.

    Attributes:
        axes: Pattern of a parameter's name -> axis of each of its dimensions; the first match counts.
        block: Pattern of a block's index in a parameter's name, the index as its one group.
        sizes: Axis -> config key of its size; an axis without one cannot be cut.
        depths: Stack -> config key of its number of blocks.
        neurons: Name, within a block, of the layer that reads the feed-forward neurons.
        values: Name, within a block, of the layers that read the attention heads.
        norm: Pattern of the names of the norms on the residual stream; RMS norms where the hidden width can be cut.
        first_block_stays: Whether block 0 holds something all blocks share.
    """

    axes: Mapping[str, tuple[str, ...]]
    block: str
    sizes: Mapping[str, str]
    depths: Mapping[str, str]
    neurons: str
    values: str
    norm: str
    first_block_stays: bool = False

    def of(self, name: str) -> tuple[str, ...]:
        """Axes of the parameter called ``name``.

        Raises:
            ValueError: The anatomy does not know it.
        """
        for pattern, axes in self.axes.items():
            if re.search(pattern, name):
                return axes
        raise ValueError(f"parameter '{name}' has no known axes: this variant cannot be cut")


_T5 = Anatomy(
    axes={
        r"\.(q|k|v)\.weight$": (HEADS, HIDDEN),
        r"\.o\.weight$": (HIDDEN, HEADS),
        r"\.wi(_\d)?\.weight$": (FFN, HIDDEN),
        r"\.wo\.weight$": (HIDDEN, FFN),
        r"layer_norm\.weight$": (HIDDEN,),
        r"(shared|embed_tokens|lm_head)\.weight$": (OTHER, HIDDEN),
        r"relative_attention_bias\.weight$": (OTHER, OTHER),
    },
    block=r"\.block\.(\d+)\.",
    sizes={HIDDEN: "d_model", FFN: "d_ff"},
    depths={"encoder": "num_layers", "decoder": "num_decoder_layers"},
    neurons=r"\.wo$",
    values=r"\.o$",
    norm=r"layer_norm$",
    first_block_stays=True,
)

_LLAMA = Anatomy(
    axes={
        r"(q_norm|k_norm)\.weight$": (OTHER,),
        r"q_proj\.weight$": (HEADS, HIDDEN),
        r"q_proj\.bias$": (HEADS,),
        r"(k|v)_proj\.weight$": (KV_HEADS, HIDDEN),
        r"(k|v)_proj\.bias$": (KV_HEADS,),
        r"o_proj\.weight$": (HIDDEN, HEADS),
        r"(gate|up)_proj\.weight$": (FFN, HIDDEN),
        r"down_proj\.weight$": (HIDDEN, FFN),
        r"norm\.weight$": (HIDDEN,),
        r"(embed_tokens|lm_head)\.weight$": (OTHER, HIDDEN),
    },
    block=r"\.layers\.(\d+)\.",
    sizes={
        HIDDEN: "hidden_size",
        FFN: "intermediate_size",
        HEADS: "num_attention_heads",
        KV_HEADS: "num_key_value_heads",
    },
    depths={"decoder": "num_hidden_layers"},
    neurons=r"\.down_proj$",
    values=r"\.o_proj$",
    norm=r"(layernorm|model\.norm)$",
)

_BERT = Anatomy(
    axes={
        r"(query|key|value)\.weight$": (HEADS, HIDDEN),
        r"(query|key|value)\.bias$": (HEADS,),
        r"attention\.output\.dense\.weight$": (HIDDEN, HEADS),
        r"intermediate\.dense\.weight$": (FFN, HIDDEN),
        r"intermediate\.dense\.bias$": (FFN,),
        r"\.output\.dense\.weight$": (HIDDEN, FFN),
        r"(dense|LayerNorm)\.(weight|bias)$": (HIDDEN,),
        r"embeddings\.weight$": (OTHER, HIDDEN),
        r"(classifier|out_proj)\.weight$": (OTHER, HIDDEN),
        r"(classifier|out_proj)\.bias$": (OTHER,),
    },
    block=r"\.layer\.(\d+)\.",
    sizes={FFN: "intermediate_size"},  # hidden / heads is the size of a head, so neither can go alone
    depths={"encoder": "num_hidden_layers"},
    neurons=r"\d+\.output\.dense$",
    values=r"attention\.output\.dense$",
    norm=r"LayerNorm$",
)

ANATOMIES: Mapping[str, Anatomy] = {
    "t5": _T5,
    "mt5": _T5,
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "bert": _BERT,
    "roberta": _BERT,
}
