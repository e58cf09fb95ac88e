"""Constraints on what a cut retains: whole heads, widths that may be unlike or not, and sizes a config can hold."""

import copy
import re
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from slimexp.architecture.base import (
    EXPERT_FFN,
    EXPERTS,
    HEADS,
    HIDDEN,
    KV_HEADS,
    LAYERS,
    VOCABULARY,
    Architecture,
    block_index,
    head_width,
    in_stack,
    scope,
)
from slimexp.architecture.model_type import architecture_of, instead, size
from slimexp.cut.block_lists import renumber_blocks
from slimexp.cut.experts import check_experts, check_neurons, check_router_groups
from slimexp.model.widths import AXES, KEY, can_drop, refusal, units_of, width_of

# scope, or "" for the whole model -> indices retained, ascending, [n]; of the neurons of experts [experts, n]
ScopeIndices = Mapping[str, Tensor]


def scopes(model: PreTrainedModel, axis: str) -> list[str]:
    """Parts of the model, each of which may retain other units of ``axis``, in order.

    One per block for most axes; "" alone for those that the whole model shares.
    """
    architecture = architecture_of(model.config)
    size(model.config, axis)
    names = (name for name in model.state_dict() if axis in architecture.counted(name))
    return list(dict.fromkeys(scope(name, axis, architecture) for name in names))


def admits(config: PreTrainedConfig, units: Mapping[str, int]) -> bool:
    """Whether transformers can load a model of such sizes.

    Args:
        config: Config of the larger model.
        units: Axis -> number of units retained; a key/value head comes with its query heads.
    """
    try:
        if EXPERTS in units:
            check_experts(config, units[EXPERTS])
        if EXPERT_FFN in units:
            check_neurons(config, units[EXPERT_FFN])
        resized(
            config, {}, {axis: n * entries_per_unit(config, axis) for axis, n in with_queries(config, units).items()}
        )
    except ValueError:
        return False
    return True


def with_queries(config: PreTrainedConfig, units: Mapping[str, int]) -> dict[str, int]:
    """``units`` (axis -> number) with the number of query heads that share the key/value heads."""
    if KV_HEADS not in units:
        return dict(units)
    return {**units, HEADS: units[KV_HEADS] * (size(config, HEADS) // size(config, KV_HEADS))}


def resized(
    config: PreTrainedConfig, layers: Mapping[str, Sequence[int]], widths: Mapping[str, int]
) -> PreTrainedConfig:
    """A config of the new sizes, whose blocks have one width.

    Args:
        config: Config of the larger model; it stays unchanged.
        layers: Stack -> indices of the blocks retained; a stack left out stays whole.
        widths: Axis -> number of rows retained: for heads, their number times their channels.

    Raises:
        ValueError: transformers does not load such a config.
    """
    architecture, small = architecture_of(config), copy.deepcopy(config)
    vars(small).pop(KEY, None)
    width = head_width(config)
    if architecture.head_dim:
        setattr(small, architecture.head_dim, width)
    for axis, count in widths.items():
        for key in architecture.keys(axis):
            setattr(small, key, count // width if axis in (HEADS, KV_HEADS) else count)
    for stack, blocks in layers.items():
        renumber_blocks(small, blocks)
        setattr(small, architecture.depths[stack], len(blocks))
        if architecture.dense_blocks:
            setattr(
                small, architecture.dense_blocks, sum(i < getattr(config, architecture.dense_blocks) for i in blocks)
            )
    if HIDDEN in widths and architecture.epsilon:  # the mean over fewer channels is larger: see remove
        setattr(
            small, architecture.epsilon, getattr(config, architecture.epsilon) * size(config, HIDDEN) / widths[HIDDEN]
        )
    _check_loads(small)
    return small


def check(model: PreTrainedModel, layers: Mapping[str, Sequence[int]], retained: Mapping[str, ScopeIndices]) -> None:
    """Refuse a cut that leaves no model, or one that transformers has no config for.

    Args:
        model: The larger model.
        layers: Stack -> indices of the blocks retained, as ``remove`` takes them.
        retained: Axis -> scope -> indices retained, as ``remove`` takes them.

    Raises:
        ValueError: States the rule, the value and the way out.
    """
    config = model.config
    architecture = architecture_of(config)
    check_blocks(config, layers)
    for axis, parts in retained.items():
        needed = [name for name in scopes(model, axis) if _is_retained(name, architecture, layers)]
        rows = {name: _units(config, axis, name) * entries_per_unit(config, axis) for name in parts}
        _check_indices(axis, parts, needed, rows, may_drop=width_of(axis) in AXES and can_drop(config, width_of(axis)))
        _check_counts(config, axis, parts)
    _check_heads(config, architecture, retained)
    for name, indices in retained.get(EXPERTS, {}).items():
        check_experts(config, len(indices))
        check_router_groups(config, name, indices)
    for indices in retained.get(EXPERT_FFN, {}).values():
        check_neurons(config, indices.shape[-1])


def check_blocks(config: PreTrainedConfig, layers: Mapping[str, Sequence[int]]) -> None:
    """Refuse to retain no block, or blocks that depend on others.

    Args:
        config: Config of the larger model.
        layers: Stack -> indices of the blocks retained; a stack left out stays whole.

    Raises:
        ValueError: States the rule and the value.
    """
    architecture = architecture_of(config)
    shared = architecture.refusal(LAYERS, config)
    for stack, key in architecture.depths.items():
        blocks, depth = list(layers.get(stack, range(getattr(config, key)))), getattr(config, key)
        if not blocks or blocks != sorted(set(blocks)) or not set(blocks) <= set(range(depth)):
            raise ValueError(
                f"blocks of the {stack} must be rising indices in 0..{depth - 1}, at least one; got {blocks}"
            )
        if shared is not None and len(blocks) < depth:
            raise ValueError(f"layers of a model of type {config.model_type} cannot go: {shared}: {instead(config)}")
        if (reason := architecture.first(config)) is not None and blocks[0] != 0:
            raise ValueError(f"block 0 of the {stack} must stay, {reason}; got {blocks}")
        if getattr(config, "scale_attn_by_inverse_layer_idx", False) and blocks != list(range(len(blocks))):
            raise ValueError(
                "only the last blocks can go where scale_attn_by_inverse_layer_idx ties a block to its index; got "
                f"{blocks}"
            )
    depths = {stack: len(blocks) for stack, blocks in layers.items()}
    if depths.get("decoder", 0) > depths.get("encoder", depths.get("decoder", 0)):
        raise ValueError(
            f"there must not be more decoder blocks ({depths['decoder']}) than encoder blocks ({depths['encoder']}): "
            "transformers could not generate with a cache"
        )


def _units(config: PreTrainedConfig, axis: str, name: str) -> int:
    """Number of units of an axis in the scope ``name``."""
    place = block_index(name, architecture_of(config))
    return size(config, axis) if place is None else units_of(config, axis, *place)


def _check_indices(
    axis: str, parts: ScopeIndices, needed: Iterable[str], rows: Mapping[str, int], *, may_drop: bool
) -> None:
    """Refuse indices out of range or out of order, and scopes left out.

    Args:
        axis: What the indices count.
        parts: Scope -> indices retained.
        needed: Scopes of the blocks retained.
        rows: Scope -> number of its rows of the axis in the larger model.
        may_drop: Whether a scope other than the whole model can keep none.
    """
    if axis in (HIDDEN, VOCABULARY) and list(parts) != [""]:
        raise ValueError(
            f"{axis} must be one choice for the whole model, under '', or embeddings would come untied; got "
            f"{', '.join(map(repr, parts))}"
        )
    if not parts:
        raise ValueError(f"no block of the model has {axis} of its own to lose: leave it whole")
    missing = [name for name in needed if name not in parts and "" not in parts]
    if missing:
        raise ValueError(f"{axis} of '{missing[0]}' must be given: there are {', '.join(map(repr, parts))}")
    for name, indices in parts.items():
        place = f"{axis} of '{name}'" if name else axis
        if not indices.numel() and may_drop and name:
            continue
        if not indices.numel():
            raise ValueError(
                f"{place} must keep at least one: a layer of width 0 computes nothing; remove the block instead"
            )
        if indices.min() < 0 or indices.max() >= rows[name] or not (indices.diff() > 0).all():
            raise ValueError(
                f"{place} must be rising indices in 0..{rows[name] - 1}; got {indices.flatten().tolist()[:8]}"
            )


def _check_counts(config: PreTrainedConfig, axis: str, parts: ScopeIndices) -> None:
    """Refuse widths that differ where they must not."""
    counts = {name: indices.shape[-1] // entries_per_unit(config, axis) for name, indices in parts.items()}
    known = width_of(axis) in AXES
    reason = refusal(config, width_of(axis)) if known else "the config has one number for all"
    if len(set(counts.values())) > 1 and reason is not None:
        raise ValueError(f"{axis} must be as many everywhere, {reason}; got {counts}")


def _check_heads(config: PreTrainedConfig, architecture: Architecture, retained: Mapping[str, ScopeIndices]) -> None:
    """Refuse parts of heads, and query heads without their key/value head or the other way round."""
    if HEADS not in retained and KV_HEADS not in retained:
        return
    width = head_width(config)
    if architecture.groups == KV_HEADS and not (HEADS in retained and KV_HEADS in retained):
        raise ValueError("heads and kv_heads must be cut together: a group of query heads shares a key/value head")
    heads = {
        axis: {n: _whole_heads(axis, n, rows, width) for n, rows in retained[axis].items()}
        for axis in (HEADS, KV_HEADS)
        if axis in retained
    }
    if KV_HEADS not in heads:
        return
    if heads[HEADS].keys() != heads[KV_HEADS].keys():
        raise ValueError(
            f"heads and kv_heads must be given for the same parts; got {list(retained[HEADS])}, "
            f"{list(retained[KV_HEADS])}"
        )
    share = size(config, HEADS) // size(config, KV_HEADS)
    for name, queries in heads[HEADS].items():
        groups = heads[KV_HEADS][name]
        if not torch.equal(queries, (groups[:, None] * share + torch.arange(share)).flatten()):
            raise ValueError(
                f"heads of '{name}' must be whole groups of {share} query heads with their key/value head; got query "
                f"heads {queries.tolist()} with key/value heads {groups.tolist()}: keep or drop a group as one"
            )


def _whole_heads(axis: str, name: str, rows: Tensor, width: int) -> Tensor:
    """Indices of the heads whose channels are ``rows``: [n * width] -> [n]."""
    heads = rows[::width].cpu() // width
    if not torch.equal(rows.cpu(), (heads[:, None] * width + torch.arange(width)).flatten()):
        raise ValueError(
            f"{axis} of '{name}' must be whole heads of {width} channels: keep all channels of a head or none"
        )
    return heads


def _check_loads(config: PreTrainedConfig) -> None:
    try:
        type(config).from_dict(config.to_dict())
    except Exception as error:  # huggingface_hub's strict dataclasses raise errors of their own beside transformers'
        raise ValueError(
            f"transformers would not load this {config.model_type}: {' '.join(str(error).split())}"
        ) from error


def entries_per_unit(config: PreTrainedConfig, axis: str) -> int:
    """Number of ``ScopeIndices`` entries of one unit: a head's channels, else 1."""
    return head_width(config) if axis in (HEADS, KV_HEADS) else 1


def _is_retained(name: str, architecture: Architecture, layers: Mapping[str, Sequence[int]]) -> bool:
    """Whether the scope ``name`` lies outside the blocks or in one that is retained."""
    match = re.search(architecture.block, f"{name}.")
    return match is None or int(match[1]) in layers[in_stack(name, layers)]
