"""The architecture of a model's type, and the sizes of its axes."""

import json
from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedConfig

from slimexp.architecture import decoder, encoder, encoder_decoder, gpt, mixture
from slimexp.architecture.base import EXPERT_FFN, EXPERTS, FFN, HEADS, HIDDEN, LAYERS, Architecture

ARCHITECTURES: Mapping[str, Architecture] = {
    "albert": encoder.ALBERT,
    "bart": encoder_decoder.BART,
    "bert": encoder.BERT,
    "bloom": gpt.BLOOM,
    "camembert": encoder.ROBERTA,
    "deberta-v2": encoder.DEBERTA_V2,  # DeBERTa-v3 is of this type
    "deepseek_v2": mixture.DEEPSEEK,
    "deepseek_v3": mixture.DEEPSEEK,
    "distilbert": encoder.DISTILBERT,
    "electra": encoder.ELECTRA,
    "falcon": gpt.FALCON,
    "gemma": decoder.GEMMA,
    "gemma2": decoder.GEMMA2,
    "gemma3_text": decoder.GEMMA2,
    "gpt2": gpt.GPT2,
    "gpt_neox": gpt.GPT_NEOX,
    "gptj": gpt.GPTJ,
    "granite": decoder.LLAMA,
    "llama": decoder.LLAMA,  # DeepSeek-LLM and SmolLM2 are of this type
    "longt5": encoder_decoder.T5,
    "m2m_100": encoder_decoder.PRE_NORM_BART,  # NLLB is of this type
    "marian": encoder_decoder.MARIAN,
    "mbart": encoder_decoder.PRE_NORM_BART,
    "mistral": decoder.LLAMA,
    "mixtral": mixture.MIXTRAL,
    "modernbert": encoder.MODERNBERT,
    "mpnet": encoder.MPNET,
    "mt5": encoder_decoder.T5,
    "olmo2": decoder.OLMO2,
    "opt": gpt.OPT,
    "pegasus": encoder_decoder.PRE_NORM_BART,
    "phi": decoder.PHI,
    "phi3": decoder.PHI3,
    "qwen2": decoder.LLAMA,
    "qwen2_moe": mixture.QWEN_MOE,
    "qwen3": decoder.LLAMA,
    "qwen3_moe": mixture.QWEN_MOE,
    "roberta": encoder.ROBERTA,
    "stablelm": decoder.STABLELM,
    "starcoder2": decoder.STARCODER2,
    "t5": encoder_decoder.T5,
    "umt5": encoder_decoder.UMT5,
    "xlm-roberta": encoder.ROBERTA,
}


RECOGNIZED: dict[str, Architecture] = {}  # variant without a declaration -> what a proof found it to be like
# Entries of a config that say nothing of how a model computes, and those that a cut changes.
_SIZES = {key for one in ARCHITECTURES.values() for axis in one.sizes for key in one.keys(axis)}
_SIZES |= {
    key
    for one in ARCHITECTURES.values()
    for key in (*one.depths.values(), one.head_dim, one.dense_blocks, one.epsilon)
    if key is not None
}
_SIZES |= {"encoder_attention_heads", "decoder_attention_heads", "max_position_embeddings", "decoder_sparse_step"}
_NOT_OF_THE_MODEL = {*PreTrainedConfig().to_dict(), "use_cache", "cache_bits", "quantization_config"}
_NOT_OF_THE_MODEL -= {"is_encoder_decoder"}


def variant(config: PreTrainedConfig) -> str:
    """A model's type with all of its config but sizes: models of one variant are built alike.

    One type may have several: a flag puts a norm on the queries, or a limit keeps their values from being scaled.
    What is left of a model after a cut is of its variant, so lists (of an entry for each block) are left out too.
    """
    heads, groups = (getattr(config, f"num_{part}_heads", None) for part in ("attention", "key_value"))
    return json.dumps([config.model_type, groups in (None, heads), _flags(vars(config))], sort_keys=True, default=str)


def _flags(entries: Mapping[str, Any]) -> dict[str, Any]:
    """Entries of a config, and of those within it, that are neither sizes nor lists."""
    return {
        str(key): _flags(value if isinstance(value, Mapping) else vars(value))
        if isinstance(value, Mapping | PreTrainedConfig)
        else value
        for key, value in entries.items()
        if not str(key).startswith("_")
        and not str(key).endswith("_token_id")
        and key not in _SIZES | _NOT_OF_THE_MODEL
        and not isinstance(value, list | tuple | set)
    }


def is_known(config: PreTrainedConfig) -> bool:
    """Whether the model's type has an architecture."""
    return config.model_type in ARCHITECTURES or variant(config) in RECOGNIZED


def architecture_of(config: PreTrainedConfig) -> Architecture:
    """The architecture of a model's type.

    Raises:
        ValueError: The type has none here; names the types that do.
    """
    found = ARCHITECTURES.get(config.model_type) or RECOGNIZED.get(variant(config))
    if found is None:
        raise ValueError(
            f"a model of type {config.model_type} cannot be cut: its type is not declared, and the names of its "
            f"parameters are those of no type that is ({', '.join(sorted(ARCHITECTURES))}): mask or quantize it instead"
        )
    return found


def size(config: PreTrainedConfig, axis: str) -> int:
    """Number of units of an axis: heads, key/value heads, neurons or experts of a block, neurons of an expert, ...

    Raises:
        ValueError: The axis cannot be cut; names the reason.
    """
    architecture = architecture_of(config)
    if (reason := architecture.refusal(axis, config)) is not None:
        raise ValueError(
            f"{axis} of a model of type {config.model_type} cannot be cut alone: {reason}: {instead(config)}"
        )
    if axis not in architecture.sizes:
        raise ValueError(f"a model of type {config.model_type} has no {axis}")
    units = getattr(config, architecture.keys(axis)[0])
    return int(units if units is not None else 4 * config.hidden_size)  # GPT-2's n_inner


def instead(config: PreTrainedConfig) -> str:
    """The way out where an axis cannot be cut: those that can."""
    architecture = architecture_of(config)
    axes = [
        a for a in (LAYERS, architecture.groups, FFN, HIDDEN, EXPERTS, EXPERT_FFN) if architecture.can_cut(a, config)
    ]
    names = [HEADS if axis == architecture.groups else axis for axis in axes]
    listed = " or ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
    return f"cut {listed} instead" if names else "mask or quantize it instead"
