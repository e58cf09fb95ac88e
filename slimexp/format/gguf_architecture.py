"""Which models llama.cpp computes, and what a GGUF file says of their shape."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel


@dataclass(frozen=True)
class Architecture:
    """An architecture of llama.cpp.

    Attributes:
        name: Its name there.
        pairs: Whether rotary positions turn neighbours (2 i, 2 i + 1), not (i, i + half): rows of queries and keys are
            put in that order.
        activation: What it has between the layers of a feed-forward network.
        any_heads: Whether heads need not fill the width of the model.
        norm: ``rms_norm_eps`` or ``norm_epsilon``, of root mean squares or of means and variances.
        scales: Key of a GGUF -> key of the config, of numbers that only this architecture has.
    """

    name: str
    pairs: bool = False
    activation: str = "silu"
    any_heads: bool = True
    norm: str = "rms_norm_eps"
    scales: tuple[tuple[str, str], ...] = ()


LLAMA = Architecture("llama", pairs=True)
GRANITE = (
    ("attention.scale", "attention_multiplier"),
    ("embedding_scale", "embedding_multiplier"),
    ("residual_scale", "residual_multiplier"),
    ("logit_scale", "logits_scaling"),
)
ARCHITECTURES = {  # model_type of transformers -> what computes it
    "llama": LLAMA,
    "mistral": LLAMA,
    "qwen2": Architecture("qwen2", any_heads=False),
    "qwen3": Architecture("qwen3"),
    "granite": Architecture("granite", pairs=True, scales=GRANITE),
    "olmo2": Architecture("olmo2", any_heads=False),
    "starcoder2": Architecture("starcoder2", activation="gelu_pytorch_tanh", any_heads=False, norm="norm_epsilon"),
}


def architecture_of(config: PreTrainedConfig) -> Architecture:
    """What computes a model. A Qwen2 that heads were removed from is a Llama with biases."""
    found = ARCHITECTURES[config.model_type]
    fills = config.num_attention_heads * head_width(config) == config.hidden_size
    return LLAMA if found.name == "qwen2" and not fills else found


def head_width(config: Any) -> int:
    """Width of an attention head."""
    width: int = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return width


def refusal(config: PreTrainedConfig) -> str | None:
    """Why llama.cpp does not compute a model; ``None`` where it does."""
    if config.model_type not in ARCHITECTURES:
        return f"of llama.cpp's models only {', '.join(ARCHITECTURES)} are written, not {config.model_type}"
    kind = architecture_of(config)
    values: Any = config
    if values.hidden_act != kind.activation:
        return f"llama.cpp has {kind.activation} in a {config.model_type}, the model {values.hidden_act}"
    if not kind.any_heads and values.num_attention_heads * head_width(values) != values.hidden_size:
        return (
            f"llama.cpp takes a {config.model_type} of {values.hidden_size // values.num_attention_heads} numbers a "
            f"head ({values.hidden_size} / {values.num_attention_heads}), the model has {head_width(values)}"
        )
    if (window := _window(values)) is not None:
        return f"it attends to the last {window} of {values.max_position_embeddings} tokens, llama.cpp here to all"
    rope = values.rope_parameters
    if (scaling := rope.get("rope_type", "default")) not in ("default", "linear", "llama3"):
        return f"positions scaled by '{scaling}' are not written, only by linear and llama3"
    if scaling == "llama3" and kind is not LLAMA:
        return f"llama.cpp has no frequencies of positions (rope_type llama3) in a {config.model_type}"
    return None


def _window(config: Any) -> int | None:
    """Tokens that a layer attends to, where these are not all."""
    window = getattr(config, "sliding_window", None)
    used = "sliding_attention" in (getattr(config, "layer_types", None) or ["sliding_attention"])
    return window if window and used and window < config.max_position_embeddings else None


def metadata(config: PreTrainedConfig) -> Mapping[str, int | float]:
    """Key of a GGUF, without the architecture before it -> value."""
    values: Any = config
    kind, width, rope = architecture_of(config), head_width(config), values.rope_parameters
    numbers: dict[str, int | float] = {
        "vocab_size": values.vocab_size,
        "context_length": values.max_position_embeddings,
        "embedding_length": values.hidden_size,
        "block_count": values.num_hidden_layers,
        "feed_forward_length": values.intermediate_size,
        "attention.head_count": values.num_attention_heads,
        "attention.head_count_kv": values.num_key_value_heads,
        "attention.key_length": width,
        "attention.value_length": width,
        "rope.dimension_count": width,
        "rope.freq_base": float(rope["rope_theta"]),
    }
    root_mean_square = kind.norm == "rms_norm_eps"
    numbers[f"attention.layer_norm{'_rms' if root_mean_square else ''}_epsilon"] = float(getattr(values, kind.norm))
    if rope.get("rope_type") == "linear":
        numbers["rope.scaling.factor"] = float(rope["factor"])
    return numbers | {key: float(getattr(values, name)) for key, name in kind.scales}


def row_order(name: str, kind: Architecture, config: PreTrainedConfig, rows: int) -> Tensor | None:
    """Order in which llama.cpp has the rows of a tensor; ``None`` where it is the same.

    Args:
        name: Name of the tensor in transformers.
        kind: The architecture.
        config: The model's config.
        rows: Number of rows.
    """
    if not kind.pairs or not name.rpartition(".")[0].endswith((".q_proj", ".k_proj")):
        return None
    width = head_width(config)
    return torch.arange(rows).view(-1, 2, width // 2).transpose(1, 2).flatten()


def rope_divisors(model: PreTrainedModel) -> Tensor | None:
    """Divisors of the frequencies of positions, [head / 2], of a model that scales some of them (llama3)."""
    config: Any = model.config
    if config.rope_parameters.get("rope_type") != "llama3":
        return None
    width = head_width(config)
    plain = config.rope_parameters["rope_theta"] ** (-torch.arange(0, width, 2).float() / width)
    frequencies: Any = model.get_submodule("model.rotary_emb").inv_freq
    return plain / frequencies.float()
