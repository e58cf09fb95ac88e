"""Experts of a mixture as files hold them: one by one, under the names that they have on the hub.

transformers stacks the matrices of all experts, dequantized, when it loads them, and takes stacks apart when it saves.
"""

import copy
import re
from collections.abc import Collection
from pathlib import Path

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from slimexp.quantizer.base import Quantizer
from slimexp.serialization.scheme import WEIGHT
from slimexp.serialization.shards import Reader
from slimexp.weight.attachment import INPUT, Place, attached

_PACKED = re.compile(r"\.experts\.\d+\..*weight_scale$")


def plain_class(model: nn.Module) -> type:
    """The class before parametrizations changed it."""
    return next(c for c in type(model).__mro__ if c.__module__.startswith("transformers"))


def outline(model: nn.Module) -> PreTrainedModel:
    """The model without its attachments, on the meta device."""
    with init_empty_weights():
        empty: PreTrainedModel = plain_class(model)(copy.deepcopy(model.config))
    return empty


def apart(empty: PreTrainedModel, name: str, tensor: Tensor) -> dict[str, Tensor]:
    """Names in a file -> tensors that a tensor of the model is stored as.

    Args:
        empty: The model, see ``outline``.
        name: Name of the tensor in the model.
        tensor: Its values, or one of the same leading dimensions: scales of experts, say.
    """
    stored: dict[str, Tensor] = revert_weight_conversion(empty, {name: tensor})
    return stored


def is_stored_apart(empty: PreTrainedModel, name: str, stack: Tensor) -> bool:
    """Whether a stack, [experts, out, in], is stored as matrices of single experts."""
    stored = apart(empty, name, stack.to("meta"))
    return len(stored) % len(stack) == 0 and all(
        key.endswith(f".{WEIGHT}") and matrix.ndim == 2 for key, matrix in stored.items()
    )


def holds_experts(folder: Path) -> bool:
    """Whether experts are packed in a folder with ``model.safetensors``, or its shards."""
    with Reader(folder) as state:
        return any(_PACKED.search(name) for name in state)


def cast_stacks(model: nn.Module, dtype: torch.dtype) -> None:
    """Give experts the type of the model; transformers (5.24) leaves packed ones in that of their scales."""
    for module in model.modules():
        if hasattr(module, "num_experts"):
            for weight in module.parameters(recurse=False):
                if weight.ndim == 3 and weight.is_floating_point():
                    weight.data = weight.data.to(dtype)


def quantized_stacks(model: nn.Module) -> dict[Place, Quantizer]:
    """Place of every stack of experts that has a quantizer -> the quantizer."""
    return {
        place: attachment
        for place, attachment in attached(model)
        if isinstance(attachment, Quantizer) and place.tensor not in (WEIGHT, INPUT)
    }


def routers(empty: PreTrainedModel, stacks: Collection[Place]) -> list[str]:
    """Names in a file of the modules that choose between quantized experts: no layers to transformers, but to others.

    Args:
        empty: The model, see ``outline``.
        stacks: Places of the experts' stacks.
    """
    found = dict.fromkeys(f"{place.module.rpartition('.')[0]}.gate.{WEIGHT}" for place in stacks)
    state = empty.state_dict()
    stored = [key for name in found if name in state for key in apart(empty, name, state[name])]
    return [key.removesuffix(f".{WEIGHT}") for key in stored]
