"""Encoder model types: BERT and its descendants."""

from dataclasses import replace

from slimexp.architecture.base import (
    FFN,
    GATE_UP,
    HEADS,
    HIDDEN,
    LAYERS,
    OTHER,
    VOCABULARY,
    Architecture,
    Rule,
)
from slimexp.architecture.reasons import FIRST_CONVOLUTION, FIRST_NORM, FIXED_WIDTHS, SHARED_BLOCK

# Post-norm: what a LayerNorm puts out also goes past the layers that read it, and GELU follows the layer before.
BERT = Architecture(
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
    refusals=FIXED_WIDTHS,
    rules=lambda _: (Rule("attention.self.value", ("attention.output.dense",)),),
)

ROBERTA = replace(BERT, counts_from_padding=True)

ELECTRA = replace(  # embeddings may be narrower than the blocks
    BERT,
    axes={
        r"word_embeddings\.weight$": (VOCABULARY, OTHER),
        r"embeddings\.LayerNorm\.(weight|bias)$": (OTHER,),
        r"embeddings_project\.weight$": (HIDDEN, OTHER),
        r"embeddings_project\.bias$": (HIDDEN,),
        r"(position|token_type)_embeddings\.weight$": (OTHER, OTHER),
        **BERT.axes,
    },
)

DISTILBERT = replace(
    BERT,
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
        **BERT.axes,
    },
    sizes={FFN: "hidden_dim", VOCABULARY: "vocab_size"},
    depths={"encoder": "n_layers"},
    rules=lambda _: (Rule("attention.v_lin", ("attention.out_lin",)),),
)

DEBERTA_V2 = replace(
    BERT,
    axes={
        r"(query|key|value)_proj\.weight$": (HEADS, HIDDEN),
        r"(query|key|value)_proj\.bias$": (HEADS,),
        r"conv\.conv\.weight$": (OTHER, OTHER, OTHER),
        r"conv\.conv\.bias$": (HIDDEN,),
        r"embed_proj\.weight$": (HIDDEN, OTHER),
        r"word_embeddings\.weight$": (VOCABULARY, OTHER),
        r"(position|token_type)_embeddings\.weight$": (OTHER, OTHER),
        r"embeddings\.LayerNorm\.(weight|bias)$": (HIDDEN,),
        **BERT.axes,
    },
    first_block=lambda config: FIRST_CONVOLUTION if getattr(config, "conv_kernel_size", 0) else None,
    rules=lambda _: (Rule("attention.self.value_proj", ("attention.output.dense",)),),
)

MPNET = replace(  # the blocks share a table of relative positions, [buckets, heads]
    ROBERTA,
    axes={
        r"attn\.(q|k|v)\.weight$": (HEADS, HIDDEN),
        r"attn\.(q|k|v)\.bias$": (HEADS,),
        r"attn\.o\.weight$": (HIDDEN, HEADS),
        r"attn\.o\.bias$": (HIDDEN,),
        r"relative_attention_bias\.weight$": (OTHER, HEADS),
        **BERT.axes,
    },
    rules=lambda _: (Rule("attention.attn.v", ("attention.attn.o",)),),
)

ALBERT = replace(
    ELECTRA,
    axes={
        r"embedding_hidden_mapping_in\.weight$": (HIDDEN, OTHER),
        r"embedding_hidden_mapping_in\.bias$": (HIDDEN,),
        r"attention\.dense\.weight$": (HIDDEN, HEADS),
        r"ffn\.weight$": (FFN, HIDDEN),
        r"ffn\.bias$": (FFN,),
        r"ffn_output\.weight$": (HIDDEN, FFN),
        r"(ffn_output|pooler|full_layer_layer_norm)\.bias$": (HIDDEN,),
        r"full_layer_layer_norm\.weight$": (HIDDEN,),
        r"pooler\.weight$": (OTHER, HIDDEN),
        **ELECTRA.axes,
    },
    block=r"\.albert_layer_groups\.(\d+)\.",
    depths={"encoder": "num_hidden_groups"},
    refusals={**FIXED_WIDTHS, LAYERS: SHARED_BLOCK},
    rules=lambda _: (Rule("albert_layers.0.attention.value", ("albert_layers.0.attention.dense",)),),
)

MODERNBERT = replace(
    BERT,
    axes={
        r"Wqkv\.weight$": (OTHER, HIDDEN),
        r"Wqkv\.bias$": (OTHER,),
        r"attn\.Wo\.weight$": (HIDDEN, HEADS),
        r"Wi\.weight$": (GATE_UP, HIDDEN),
        r"Wi\.bias$": (GATE_UP,),
        r"mlp\.Wo\.weight$": (HIDDEN, FFN),
        r"(Wo|norm)\.bias$": (HIDDEN,),
        r"norm\.weight$": (HIDDEN,),
        r"tok_embeddings\.weight$": (VOCABULARY, HIDDEN),
        **BERT.axes,
    },
    block=r"\.layers\.(\d+)\.",
    parts={GATE_UP: (FFN, FFN)},
    first_block=FIRST_NORM,
    rules=lambda _: (
        Rule("attn_norm", ("attn.Wqkv",)),
        Rule("mlp_norm", ("mlp.Wi",)),
        Rule("mlp.Wi", ("mlp.Wo",), part=FFN),
    ),
)
