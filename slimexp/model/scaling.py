"""Equivalent scaling of channels: an op divides its outputs, the layers that read it multiply their inputs."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers import PreTrainedConfig
from transformers.pytorch_utils import Conv1D

from slimexp.architecture.base import KV_HEADS, Rule, block_index, head_width
from slimexp.architecture.model_type import ARCHITECTURES, architecture_of, is_known
from slimexp.model.base import Family
from slimexp.model.widths import units_of


@dataclass(frozen=True)
class Scaling:
    """Channels between an op and the layers that read its output, and nothing else does.

    Attributes:
        before: The op: a norm or a linear layer.
        after: Name -> layer, of the layers that read the output of ``before``.
        width: Number of channels of a head, where neighbouring heads of the input are copies of one of ``before``
            (grouped queries); else of all channels.
        copies: Number of such copies; 1 without grouped queries.
        first: First output channel of ``before`` that is scaled, of a fused projection; all behind it are.
        gain: What a norm ``before`` adds to its weight before it multiplies.
    """

    before: nn.Module
    after: Mapping[str, nn.Module]
    width: int
    copies: int
    first: int = 0
    gain: float = 0.0

    @property
    def channels(self) -> int:
        """Number of output channels of ``before`` that are scaled."""
        return len(_stored(self.before, "weight")[self.first :])

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
            scales: Positive and finite, one per output channel of ``before`` that is scaled.
        """
        for layer in self.after.values():
            weight = _stored(layer, "weight")
            columns = weight.T if isinstance(layer, Conv1D) else weight
            columns.mul_(self.spread(scales).to(weight.dtype))
        for name in ("weight", "bias"):
            if getattr(self.before, name, None) is not None:
                tensor = _stored(self.before, name)[self.first :]
                gain = self.gain if name == "weight" else 0
                divisor = scales.to(tensor.dtype).view(-1, *[1] * (tensor.ndim - 1))
                if gain:  # in float32: bfloat16 has no digits left beside 1
                    tensor.copy_((tensor.float() + gain) / divisor - gain)
                else:
                    tensor.div_(divisor)


def scalings(family: Family, block: nn.Module) -> list[Scaling]:
    """The scalings within a block, at most one for each layer's input.

    Raises:
        ValueError: There are no rules for the model's type; the message names the supported types.
    """
    config = family.model.config
    if not is_known(config):
        raise ValueError(
            f"smoothing does not know where to scale a model of type {config.model_type}; types it knows: "
            f"{', '.join(sorted(ARCHITECTURES))}: set smoothing=null"
        )
    names = {module: name for name, module in family.model.named_modules()}
    inside = {names[module].removeprefix(f"{names[block]}."): module for module in block.modules()}
    return [
        _between(rule, inside, names, config)
        for rule in architecture_of(config).rules(config)
        if _has_weight(inside.get(rule.before)) and all(name in inside for name in rule.after)
    ]


def _has_weight(module: nn.Module | None) -> bool:
    """Whether there is such a module, and it is no norm without a weight or left out."""
    return getattr(module, "weight", None) is not None


def _between(
    rule: Rule, inside: Mapping[str, nn.Module], names: Mapping[nn.Module, str], config: PreTrainedConfig
) -> Scaling:
    before, after = inside[rule.before], {names[inside[name]]: inside[name] for name in rule.after}
    total, reader = len(_stored(before, "weight")), inside[rule.after[0]]
    rows = total
    if rule.part is not None:
        place = block_index(names[before], architecture_of(config))
        assert place is not None, rule.before
        rows = units_of(config, rule.part, *place) * (head_width(config) if rule.part == KV_HEADS else 1)
    columns = _stored(reader, "weight").shape[0 if isinstance(reader, Conv1D) else 1]
    width = rows if rows == columns else head_width(config)
    gain = architecture_of(config).gain if _stored(before, "weight").ndim == 1 else 0.0
    return Scaling(before, after, width, columns // rows, total - rows, gain)


def _stored(module: nn.Module, tensor: str) -> Tensor:
    """The parameter beneath any attachments."""
    if parametrize.is_parametrized(module, tensor):
        return module.parametrizations[tensor].original  # type: ignore[index]
    return module.get_parameter(tensor)
