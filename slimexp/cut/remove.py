"""Cutting a smaller transformers model out of a larger one: layers, heads, neurons, hidden width, experts, vocabulary.

The result is a plain transformers model with a config of its own. What survives within a layer is
chosen by importance: for a neuron, its mean activation times the norm of the weights that read it
(Muralidharan et al. 2024, "Compact language models via pruning and knowledge distillation",
section 2.2); without calibration batches, the norms alone.
"""

import copy
import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from slimexp.cut.architecture import (
    HIDDEN,
    VOCABULARY,
    Anatomy,
    anatomy_of,
    head_width,
    scope,
)
from slimexp.cut.constraints import (
    Kept,
    check,
    in_stack,
    resized,
)
from slimexp.cut.vocabulary import renumber, shrunk
from slimexp.model.base import Family


def remove(family: Family, layers: Mapping[str, Sequence[int]], kept: Mapping[str, Kept]) -> Family:
    """A plain transformers model of what survives, with a config of its own.

    Args:
        family: The model cut from; it stays as it was.
        layers: Stack -> indices of its blocks that survive, rising; every stack of the model.
        kept: Axis -> scope (see ``survivors.scopes``) -> indices of the rows or columns that survive, rising; an axis
            left out stays whole. Widths are the same in all blocks. Heads are given as the channels of each (see
            ``head_rows``), and their rows in fused or latent projections and position tables follow. Of the
            vocabulary, ids; the tokenizer is renumbered.

    Raises:
        ValueError: What should survive is no model that transformers has a config for; names the way out.
    """
    model = family.model
    check(model, layers, kept)
    anatomy = anatomy_of(model.config)
    config = resized(model.config, layers, {axis: len(next(iter(choice.values()))) for axis, choice in kept.items()})
    tokenizer, generation = family.tokenizer, copy.deepcopy(model.generation_config) if model.can_generate() else None
    if VOCABULARY in kept:
        ids = kept[VOCABULARY][""].tolist()
        tokenizer = shrunk(tokenizer, ids)
        for part in (config, generation):
            if part is not None:
                renumber(part, ids)
        if anatomy.counts_from_padding and config.pad_token_id != model.config.pad_token_id:
            raise ValueError(
                f"vocabulary must keep all ids below that of the padding token, {model.config.pad_token_id}, from "
                f"which a model of type {config.model_type} counts positions"
            )
    with family.device:
        small = type(model)(config)
    if generation is not None:
        small.generation_config = generation
    state = model.state_dict()
    with torch.no_grad():
        for name, tensor in small.state_dict().items():  # one by one, so that no third copy is held
            old = _in_large(name, anatomy, layers)
            tensor.copy_(_slice(state[old], old, model.config, kept))
    if HIDDEN in kept:
        _rescale_norms(small, anatomy, model.config.hidden_size)
    small.tie_weights()
    return type(family)(small.eval(), tokenizer, max_length=family.max_length)


def _runs(indices: Tensor, length: int) -> Tensor:
    """Each index -> the ``length`` channels it stands for."""
    return (indices[:, None] * length + torch.arange(length, device=indices.device)).flatten()


@torch.no_grad()
def _rescale_norms(small: PreTrainedModel, anatomy: Anatomy, hidden: int) -> None:
    """Undo what a mean over fewer channels does to an RMS norm: sliced, the model is what it is with them masked."""
    ratio = (hidden / small.config.hidden_size) ** 0.5
    for name, norm in small.named_modules():
        if re.search(anatomy.norm, name):
            norm.get_parameter("weight").mul_(ratio)
    if getattr(small.config, "scale_decoder_outputs", False):  # T5 before 1.1: times hidden^-1/2 before the head
        small.get_parameter("decoder.final_layer_norm.weight").div_(ratio)


def _in_large(name: str, anatomy: Anatomy, layers: Mapping[str, Sequence[int]]) -> str:
    """Name of a parameter of the small model in the large one."""
    blocks = layers[in_stack(name, layers)]
    return re.sub(anatomy.block, lambda found: found[0].replace(found[1], str(blocks[int(found[1])])), name)


def _slice(tensor: Tensor, name: str, config: PreTrainedConfig, kept: Mapping[str, Kept]) -> Tensor:
    for dimension, axis in enumerate(anatomy_of(config).of(name)):
        indices = entries(axis, name, config, kept)
        if indices is not None:
            tensor = tensor.index_select(dimension, indices.to(tensor.device))
    return tensor


def entries(axis: str, name: str, config: PreTrainedConfig, kept: Mapping[str, Kept]) -> Tensor | None:
    """What survives along a dimension of the parameter ``name``; ``None`` where all does."""
    anatomy = anatomy_of(config)
    leader = anatomy.leader(axis)
    if leader not in kept:
        return None
    indices = kept[leader].get(scope(name, leader, anatomy), kept[leader].get(""))
    assert indices is not None, name
    if leader == axis:
        return indices
    width = head_width(config)
    return _runs(indices[::width] // width, anatomy.widths[axis](config))
