"""Cutting a smaller transformers model out of a larger one: layers, heads, neurons, hidden width, experts, vocabulary.

The result is a plain transformers model with a config of its own.
"""

import copy
import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from slimexp.cut.architecture import HIDDEN, VOCABULARY, Architecture, architecture_of, head_width, scope
from slimexp.cut.constraints import ScopeIndices, check, in_stack, resized
from slimexp.cut.vocabulary import renumber, shrunk
from slimexp.model.base import Family
from slimexp.model.empty import without_values


def remove(family: Family, layers: Mapping[str, Sequence[int]], retained: Mapping[str, ScopeIndices]) -> Family:
    """A plain transformers model of what is retained, with a config of its own.

    Args:
        family: The larger model; it stays unchanged.
        layers: Stack -> indices of the blocks retained, ascending; every stack of the model.
        retained: Axis -> scope (see ``constraints.scopes``) -> indices of the rows or columns retained, ascending; an
            axis left out stays whole. Widths are the same in all blocks. Heads are represented by their channels (see
            ``keep.head_rows``), and their rows in fused or latent projections and position tables follow. Of the
            vocabulary, the indices are token ids; the tokenizer is renumbered.

    Raises:
        ValueError: transformers has no config for such a model; names the way out.
    """
    model = family.model
    check(model, layers, retained)
    architecture = architecture_of(model.config)
    config = resized(model.config, layers, {axis: len(next(iter(part.values()))) for axis, part in retained.items()})
    tokenizer, generation = family.tokenizer, copy.deepcopy(model.generation_config) if model.can_generate() else None
    if VOCABULARY in retained:
        ids = retained[VOCABULARY][""].tolist()
        tokenizer = shrunk(tokenizer, ids)
        for part in (config, generation):
            if part is not None:
                renumber(part, ids)
        if architecture.counts_from_padding and config.pad_token_id != model.config.pad_token_id:
            raise ValueError(
                f"vocabulary must keep all ids below that of the padding token, {model.config.pad_token_id}, from "
                f"which a model of type {config.model_type} counts positions"
            )
    small = without_values(type(model), config, dtype=model.dtype, device=family.device)
    if generation is not None:
        small.generation_config = generation
    state = model.state_dict()
    with torch.no_grad():
        for name, tensor in small.state_dict().items():  # one by one, so that no third copy is held
            source = _source_name(name, architecture, layers)
            tensor.copy_(_slice(state[source], source, model.config, retained))
    if HIDDEN in retained:
        _rescale_norms(small, architecture, model.config.hidden_size)
    small.tie_weights()
    return type(family)(small.eval(), tokenizer, max_length=family.max_length)


def retained_entries(
    axis: str, name: str, config: PreTrainedConfig, retained: Mapping[str, ScopeIndices]
) -> Tensor | None:
    """Indices retained along a dimension of the parameter ``name`` that counts ``axis``; ``None`` where all are."""
    architecture = architecture_of(config)
    leader = architecture.leader(axis)
    if leader not in retained:
        return None
    indices = retained[leader].get(scope(name, leader, architecture), retained[leader].get(""))
    assert indices is not None, name
    if leader == axis:
        return indices
    width = head_width(config)
    return channels_of(indices[::width] // width, architecture.widths[axis](config))


def channels_of(indices: Tensor, width: int) -> Tensor:
    """Indices of the ``width`` channels of each unit: [n] -> [n * width]."""
    return (indices[:, None] * width + torch.arange(width, device=indices.device)).flatten()


@torch.no_grad()
def _rescale_norms(small: PreTrainedModel, architecture: Architecture, hidden: int) -> None:
    """Compensate RMS norms for a mean over fewer channels, so that slicing channels is the same as masking them.

    Args:
        small: The model of fewer channels; its norms are changed in place.
        architecture: The architecture of its type.
        hidden: Number of channels of the larger model.
    """
    ratio = (hidden / small.config.hidden_size) ** 0.5
    for name, norm in small.named_modules():
        if re.search(architecture.norm, name):
            norm.get_parameter("weight").mul_(ratio)
    if getattr(small.config, "scale_decoder_outputs", False):  # T5 before 1.1: times hidden^-1/2 before the head
        small.get_parameter("decoder.final_layer_norm.weight").div_(ratio)


def _source_name(name: str, architecture: Architecture, layers: Mapping[str, Sequence[int]]) -> str:
    """Name in the larger model of the parameter that the smaller one calls ``name``."""
    blocks = layers[in_stack(name, layers)]
    return re.sub(architecture.block, lambda match: match[0].replace(match[1], str(blocks[int(match[1])])), name)


def _slice(tensor: Tensor, name: str, config: PreTrainedConfig, retained: Mapping[str, ScopeIndices]) -> Tensor:
    """The retained entries of the larger model's parameter ``name``."""
    for dimension, axis in enumerate(architecture_of(config).of(name)):
        indices = retained_entries(axis, name, config, retained)
        if indices is not None:
            tensor = tensor.index_select(dimension, indices.to(tensor.device))
    return tensor
