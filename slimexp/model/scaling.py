"""Equivalent scaling of channels: an op divides its outputs, the layers that read it multiply their inputs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers import PreTrainedConfig
from transformers.pytorch_utils import Conv1D

from slimexp.model.base import Family

Rule = tuple[str, tuple[str, ...]]  # names within a block: the op, and the layers that read its output only

_LLAMA: Sequence[Rule] = (
    ("input_layernorm", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
    ("post_attention_layernorm", ("mlp.gate_proj", "mlp.up_proj")),
    ("self_attn.v_proj", ("self_attn.o_proj",)),
    ("mlp.up_proj", ("mlp.down_proj",)),
)
_GPT2: Sequence[Rule] = (("ln_1", ("attn.c_attn",)), ("ln_2", ("mlp.c_fc",)))
# Post-norm: what a LayerNorm puts out also goes past the layers that read it, and GELU follows the layer before.
_BERT: Sequence[Rule] = (("attention.self.value", ("attention.output.dense",)),)
_DISTILBERT: Sequence[Rule] = (("attention.v_lin", ("attention.out_lin",)),)


def _t5(config: PreTrainedConfig) -> Sequence[Rule]:
    """Keys and values of cross-attention are left out: all decoder blocks read one norm, of another stack."""
    rules: list[Rule] = []
    for place, attention in (("layer.0", "SelfAttention"), ("layer.1", "EncDecAttention")):
        within = f"{place}.{attention}"
        readers = ("q", "k", "v") if attention == "SelfAttention" else ("q",)
        rules.append((f"{place}.layer_norm", tuple(f"{within}.{name}" for name in readers)))
        rules.append((f"{within}.v", (f"{within}.o",)))
    for place in ("layer.1", "layer.2"):  # an encoder's block has no cross-attention between
        dense = f"{place}.DenseReluDense"
        into = ("wi_0", "wi_1") if config.is_gated_act else ("wi",)
        rules.append((f"{place}.layer_norm", tuple(f"{dense}.{name}" for name in into)))
        if config.is_gated_act or config.dense_act_fn == "relu":  # relu(x / s) = relu(x) / s for s > 0
            rules.append((f"{dense}.{into[-1]}", (f"{dense}.wo",)))
    return rules


def _deepseek(config: PreTrainedConfig) -> Sequence[Rule]:
    """Latent attention; a mixture's norm is left out, for experts that are no linear layers read it too."""
    low_rank = config.q_lora_rank is not None
    queries = "self_attn.q_a_proj" if low_rank else "self_attn.q_proj"
    return (
        ("input_layernorm", (queries, "self_attn.kv_a_proj_with_mqa")),
        *([("self_attn.q_a_layernorm", ("self_attn.q_b_proj",))] if low_rank else []),
        ("self_attn.kv_a_layernorm", ("self_attn.kv_b_proj",)),
        ("post_attention_layernorm", ("mlp.gate_proj", "mlp.up_proj")),
        ("mlp.up_proj", ("mlp.down_proj",)),
        ("mlp.shared_experts.up_proj", ("mlp.shared_experts.down_proj",)),
    )


_RULES: Mapping[str, Sequence[Rule]] = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "gpt2": _GPT2,
    "bert": _BERT,
    "roberta": _BERT,
    "distilbert": _DISTILBERT,
}


_RULES_BY_CONFIG: Mapping[str, Callable[[PreTrainedConfig], Sequence[Rule]]] = {
    "t5": _t5,
    "mt5": _t5,
    "deepseek_v2": _deepseek,
    "deepseek_v3": _deepseek,
}


@dataclass(frozen=True)
class Scaling:
    """Channels between an op and the layers that read its output, and nothing else does.

    Attributes:
        before: The op: a norm or a linear layer.
        after: Name -> layer, of the layers that read the output of ``before``.
        width: Number of channels of a head, where neighbouring heads of the input are copies of one of ``before``
            (grouped queries); else of all channels.
        copies: Number of such copies; 1 without grouped queries.
    """

    before: nn.Module
    after: Mapping[str, nn.Module]
    width: int
    copies: int

    def shared(self, channels: Tensor) -> Tensor:
        """Reduce numbers per input channel of ``after`` to the largest of copies, per output channel of ``before``."""
        return channels.view(-1, self.copies, self.width).amax(1).flatten()

    def spread(self, channels: Tensor) -> Tensor:
        """Expand numbers per output channel of ``before`` to numbers per input channel of ``after``."""
        return channels.view(-1, 1, self.width).expand(-1, self.copies, -1).flatten()

    @torch.no_grad()
    def apply(self, scales: Tensor) -> None:
        """Divide the output channels of ``before`` by ``scales``, and multiply the inputs of ``after``'s weights.

        Args:
            scales: Positive and finite, one per output channel of ``before``.
        """
        for layer in self.after.values():
            weight = _stored(layer, "weight")
            columns = weight.T if isinstance(layer, Conv1D) else weight
            columns.mul_(self.spread(scales).to(weight.dtype))
        for name in ("weight", "bias"):
            if getattr(self.before, name, None) is not None:
                tensor = _stored(self.before, name)
                tensor.div_(scales.to(tensor.dtype).view(-1, *[1] * (tensor.ndim - 1)))


def scalings(family: Family, block: nn.Module) -> list[Scaling]:
    """The scalings within a block, at most one for each layer's input.

    Raises:
        ValueError: There are no rules for the model's type; the message names the supported types.
    """
    config = family.model.config
    kind = config.model_type
    rules = _RULES_BY_CONFIG[kind](config) if kind in _RULES_BY_CONFIG else _RULES.get(kind)
    if rules is None:
        supported = ", ".join(sorted([*_RULES, *_RULES_BY_CONFIG]))
        raise ValueError(
            f"smoothing does not know where to scale a model of type {kind}; types it knows: {supported}: "
            "set smoothing=null"
        )
    names = {module: name for name, module in family.model.named_modules()}
    inside = {names[module].removeprefix(f"{names[block]}."): module for module in block.modules()}
    sites = []
    for before, after in rules:
        if before in inside and all(name in inside for name in after):
            layers = {names[inside[name]]: inside[name] for name in after}
            sites.append(_between(inside[before], layers, config))
    return sites


def _between(before: nn.Module, after: Mapping[str, nn.Module], config: Any) -> Scaling:
    rows = _stored(before, "weight").shape[0]
    reader = next(iter(after.values()))
    columns = _stored(reader, "weight").shape[0 if isinstance(reader, Conv1D) else 1]
    if rows == columns:
        return Scaling(before, after, width=rows, copies=1)
    copies = columns // rows
    return Scaling(before, after, width=rows // config.num_key_value_heads, copies=copies)


def _stored(module: nn.Module, tensor: str) -> Tensor:
    """The parameter beneath any attachments."""
    if parametrize.is_parametrized(module, tensor):
        return module.parametrizations[tensor].original  # type: ignore[index]
    return module.get_parameter(tensor)
