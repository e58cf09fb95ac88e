"""Cutting a smaller transformers model out of a larger one: layers, heads, neurons, hidden width, experts, vocabulary.

The result is a plain transformers model with a config of its own; where blocks keep unlike numbers of neurons or heads,
it is one of ``model.widths``.
"""

import copy
import re
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from slimexp.architecture.base import (
    EXPERT_FFN,
    EXPERTS,
    HEADS,
    HIDDEN,
    KV_HEADS,
    VOCABULARY,
    Architecture,
    block_index,
    head_width,
    in_stack,
    scope,
)
from slimexp.architecture.model_type import architecture_of, size
from slimexp.cut.constraints import ScopeIndices, admits, check, entries_per_unit, resized, with_queries
from slimexp.cut.low_rank import Maps
from slimexp.cut.vocabulary import renumber, shrunk
from slimexp.host import progress
from slimexp.model.base import Family
from slimexp.model.empty import without_values
from slimexp.model.widths import AXES, RANKS, counted, refusal, set_widths, sublayers, units_of, widths_of


def remove(
    family: Family,
    layers: Mapping[str, Sequence[int]],
    retained: Mapping[str, ScopeIndices],
    *,
    values: Callable[[str, Tensor], Tensor] = lambda _, tensor: tensor,
    maps: Maps | None = None,
) -> Family:
    """A transformers model of what is retained, with a config of its own; a plain one where widths are alike.

    Args:
        family: The larger model; it stays unchanged.
        layers: Stack -> indices of the blocks retained, ascending; every stack of the model.
        retained: Axis -> scope (see ``constraints.scopes``) -> indices of the rows or columns retained, ascending; an
            axis left out stays whole. Widths are the same in all blocks, but where ``model.widths`` holds others: not
            of one choice for all, under "". Heads are represented by their channels (see ``head_rows``), and their rows
            in fused or latent projections and position tables follow. Of the neurons of experts, indices are
            [experts, n]. Of the vocabulary, they are token ids; the tokenizer is renumbered.
        values: Gives the values that are taken of a larger parameter, of its name and its own values.
        maps: Attention or feed-forward layers of the larger model that keep no units -> the map in their place.

    Raises:
        ValueError: transformers has no config for such a model; names the way out.
    """
    model = family.model
    check(model, layers, retained)
    architecture = architecture_of(model.config)
    maps = maps or {}
    config = _config(model, layers, retained, maps)
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
    state: dict[str, Tensor] = dict(model.state_dict())
    for name, low in maps.items():
        state |= {f"{name}.{tensor}": value for tensor, value in low.state.items()}
    with torch.no_grad():
        for name, tensor in progress.counted(
            small.state_dict().items(), "smaller tensor"
        ):  # one by one, so that no third copy is held
            source = _source_name(name, architecture, layers)
            tensor.copy_(_slice(values(source, state[source]), source, model.config, retained))
    _rescale_norms(small, architecture, model, layers)
    small.tie_weights()
    return type(family)(small.eval(), tokenizer, max_length=family.max_length)


def _config(
    model: PreTrainedModel, layers: Mapping[str, Sequence[int]], retained: Mapping[str, ScopeIndices], maps: Maps
) -> PreTrainedConfig:
    """The config of what is retained; arguments are those of ``remove``."""
    config: PreTrainedConfig = model.config
    rows = {axis: next(iter(part.values())).shape[-1] for axis, part in retained.items()}
    unlike = {
        width: _widths(config, axis, layers, retained.get(axis))
        for width in AXES
        if (axis := counted(config, width)) in retained or width in widths_of(config)
    }
    for width, widths in unlike.items():
        axis, most = counted(config, width), max(1, *map(max, widths.values()))
        if refusal(config, width) is None and "" not in retained.get(axis, {}):  # the next that transformers loads
            hidden = {HIDDEN: rows[HIDDEN]} if HIDDEN in rows else {}
            larger = range(most, size(config, axis) + 1)
            most = next((units for units in larger if admits(config, {**hidden, axis: units})), most)
        rows |= {one: n * entries_per_unit(config, one) for one, n in with_queries(config, {axis: most}).items()}
    small = resized(config, layers, rows)
    for width, widths in unlike.items():
        set_widths(small, width, widths, _ranks(model, width, layers, maps))
    return small


def _ranks(model: PreTrainedModel, width: str, layers: Mapping[str, Sequence[int]], maps: Maps) -> dict[str, list[int]]:
    """Stack -> rank of the map in the place of the attention or feed-forward layers of each block that stays, or 0."""
    ranks = {place: len(maps[name].to_rank) for place, name in sublayers(model, width).items() if name in maps}
    before = widths_of(model.config).get(RANKS[width])
    return {
        stack: [ranks.get((stack, index), 0 if before is None else before[stack][index]) for index in blocks]
        for stack, blocks in layers.items()
    }


def _widths(
    config: PreTrainedConfig, axis: str, layers: Mapping[str, Sequence[int]], part: ScopeIndices | None
) -> dict[str, list[int]]:
    """Stack -> number of units of ``axis`` in each block that stays, with ``part`` of them retained or all."""
    architecture, entries = architecture_of(config), entries_per_unit(config, axis)
    places = [(stack, index) for stack, blocks in layers.items() for index in blocks]
    if part is None:
        units = {place: units_of(config, axis, *place) for place in places}
    else:
        counts = {block_index(name, architecture): len(indices) // entries for name, indices in part.items()}
        units = {place: counts.get(place, counts.get(None, -1)) for place in places}
    of = {place: count for place, count in units.items() if count >= 0}
    widest = max((of or counts).values())  # what a block is said to have that has no such units
    return {stack: [of.get((stack, index), widest) for index in blocks] for stack, blocks in layers.items()}


def retained_entries(
    axis: str, name: str, config: PreTrainedConfig, retained: Mapping[str, ScopeIndices]
) -> Tensor | None:
    """Indices retained along a dimension of the parameter ``name`` that counts ``axis``; ``None`` where all are.

    [n], or of the neurons of stacked experts [experts retained, n].
    """
    architecture = architecture_of(config)
    if axis in architecture.parts:
        return _retained_parts(architecture.parts[axis], name, config, retained)
    leader = architecture.leader(axis)
    if leader not in retained:
        return None
    indices = retained[leader].get(scope(name, leader, architecture), retained[leader].get(""))
    assert indices is not None, name
    if axis == EXPERT_FFN:
        return _retained_neurons(indices, name, config, retained)
    if leader == axis:
        return indices
    width = head_width(config)
    return channels_of(indices[::width] // width, architecture.widths[axis](config))


def _retained_neurons(
    indices: Tensor, name: str, config: PreTrainedConfig, retained: Mapping[str, ScopeIndices]
) -> Tensor:
    """Neurons retained of the stacked experts that stay, or of those that all tokens share, side by side in a layer."""
    if architecture_of(config).of(name)[0] != EXPERTS:
        first = torch.arange(len(indices), device=indices.device) * size(config, EXPERT_FFN)
        return (indices + first[:, None]).flatten()
    experts = retained_entries(EXPERTS, name, config, retained)
    return indices if experts is None else indices[experts.to(indices.device)]


def _retained_parts(
    parts: Sequence[str], name: str, config: PreTrainedConfig, retained: Mapping[str, ScopeIndices]
) -> Tensor | None:
    """Indices retained along a dimension of a fused projection, in which ``parts`` lie one after the other."""
    each = [retained_entries(part, name, config, retained) for part in parts]
    if all(indices is None for indices in each):
        return None
    lengths = [size(config, part) * entries_per_unit(config, part) for part in parts]
    starts = [sum(lengths[:i]) for i in range(len(lengths))]
    return torch.cat(
        [
            start + (torch.arange(length) if indices is None else indices.cpu())
            for indices, start, length in zip(each, starts, lengths, strict=True)
        ],
        -1,
    )


def channels_of(indices: Tensor, width: int) -> Tensor:
    """Indices of the ``width`` channels of each unit: [n] -> [n * width]."""
    return (indices[:, None] * width + torch.arange(width, device=indices.device)).flatten()


def head_rows(config: PreTrainedConfig, best: ScopeIndices) -> dict[str, ScopeIndices]:
    """Scope -> groups of heads retained, as ``remove`` takes them: channels of key/value heads and of query heads."""
    width, axis = head_width(config), architecture_of(config).groups
    share = with_queries(config, {axis: 1})[HEADS]
    rows: dict[str, ScopeIndices] = {axis: {name: channels_of(groups, width) for name, groups in best.items()}}
    return rows | {HEADS: {name: channels_of(groups, share * width) for name, groups in best.items()}}


@torch.no_grad()
def _rescale_norms(
    small: PreTrainedModel,
    architecture: Architecture,
    model: PreTrainedModel,
    layers: Mapping[str, Sequence[int]],
) -> None:
    """Compensate RMS norms for a mean over fewer channels, so that slicing channels is the same as masking them.

    Norms are the modules with a weight of one dimension: of the residual stream, or of all heads together.

    Args:
        small: The model of fewer channels; its norms are changed in place.
        architecture: The architecture of its type.
        model: The larger model.
        layers: Stack -> indices of the blocks retained.
    """
    for name, norm in small.named_modules():
        weight = norm._parameters.get("weight")
        axis = architecture.of(f"{name}.weight")[0] if weight is not None and weight.ndim == 1 else None
        if axis in (HIDDEN, HEADS, KV_HEADS):
            before = len(model.get_parameter(f"{_source_name(name, architecture, layers)}.weight"))
            if before != len(weight):
                _multiply_gain(weight, (before / len(weight)) ** 0.5, architecture.gain)
    if model.config.hidden_size != small.config.hidden_size:
        _rescale_embeddings(small, architecture, (model.config.hidden_size / small.config.hidden_size) ** 0.5)


def _rescale_embeddings(small: PreTrainedModel, architecture: Architecture, ratio: float) -> None:
    """Compensate factors that the forward pass takes from the hidden width, which was ``ratio`` squared as large."""
    # T5 before 1.1: times hidden^-1/2 before the head; UMT5 has no key for it before transformers 5.18
    tied = small.config.model_type == "umt5" and small.config.tie_word_embeddings
    if getattr(small.config, "scale_decoder_outputs", tied):
        small.get_parameter("decoder.final_layer_norm.weight").div_(ratio)
    if architecture.embedding_scale:
        small.get_input_embeddings().weight.mul_(ratio)
        if small.config.tie_word_embeddings:  # the head is the same matrix
            weight = small.get_parameter(f"{architecture.final_norm}.weight")
            _multiply_gain(weight, 1 / ratio, architecture.gain)


def _multiply_gain(weight: Tensor, factor: float, gain: float) -> None:
    """Multiply what a norm multiplies with, ``weight + gain``, in float32: bfloat16 has no digits left beside 1."""
    weight.copy_((weight.float() + gain) * factor - gain)


def _source_name(name: str, architecture: Architecture, layers: Mapping[str, Sequence[int]]) -> str:
    """Name in the larger model of the parameter that the smaller one calls ``name``."""
    blocks = layers[in_stack(name, layers)]
    return re.sub(architecture.block, lambda match: match[0].replace(match[1], str(blocks[int(match[1])])), name)


def _slice(tensor: Tensor, name: str, config: PreTrainedConfig, retained: Mapping[str, ScopeIndices]) -> Tensor:
    """The retained entries of the larger model's parameter ``name``."""
    for dimension, axis in enumerate(architecture_of(config).of(name)):
        indices = retained_entries(axis, name, config, retained)
        if indices is not None and indices.ndim == 1:
            tensor = tensor.index_select(dimension, indices.to(tensor.device))
        elif indices is not None:  # each expert's own
            tensor = tensor.take_along_dim(indices.to(tensor.device).unsqueeze(3 - dimension), dimension)
    return tensor
