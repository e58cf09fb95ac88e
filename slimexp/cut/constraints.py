"""What may survive a cut: whole heads, equal widths, and sizes that transformers can write into one config."""

import copy
import re
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from slimexp.cut.architecture import (
    EXPERTS,
    HEADS,
    HIDDEN,
    KV_HEADS,
    VOCABULARY,
    Anatomy,
    anatomy_of,
    head_width,
    scope,
    size,
)

Kept = Mapping[str, Tensor]  # scope, or "" for the whole model -> indices that survive, rising


def scopes(model: PreTrainedModel, axis: str) -> list[str]:
    """Parts of the model that each make a choice of their own of what survives of ``axis``, in order.

    One per block for most axes; "" alone for those that the whole model shares.
    """
    anatomy = anatomy_of(model.config)
    size(model.config, axis)
    names = (name for name in model.state_dict() if axis in anatomy.of(name))
    return list(dict.fromkeys(scope(name, axis, anatomy) for name in names))


def admits(config: PreTrainedConfig, units: Mapping[str, int]) -> bool:
    """Whether a model with ``units`` of some axes can be loaded; a key/value head comes with its query heads."""
    try:
        if EXPERTS in units:
            check_experts(config, units[EXPERTS])
        resized(
            config, {}, {axis: n * entries_per_unit(config, axis) for axis, n in with_queries(config, units).items()}
        )
    except ValueError:
        return False
    return True


def with_queries(config: PreTrainedConfig, units: Mapping[str, int]) -> dict[str, int]:
    """``units`` with the query heads that go with their key/value heads."""
    if KV_HEADS not in units:
        return dict(units)
    return {**units, HEADS: units[KV_HEADS] * (size(config, HEADS) // size(config, KV_HEADS))}


def resized(
    config: PreTrainedConfig, layers: Mapping[str, Sequence[int]], widths: Mapping[str, int]
) -> PreTrainedConfig:
    """A config of the new sizes.

    Args:
        config: Of the large model; it stays as it was.
        layers: Stack -> blocks that survive; a stack left out stays whole.
        widths: Axis -> rows that survive: heads times their width for heads.

    Raises:
        ValueError: transformers takes no such config.
    """
    anatomy, small = anatomy_of(config), copy.deepcopy(config)
    width = head_width(config)
    if anatomy.head_dim:
        setattr(small, anatomy.head_dim, width)
    for axis, count in widths.items():
        setattr(small, anatomy.sizes[axis], count // width if axis in (HEADS, KV_HEADS) else count)
    for stack, blocks in layers.items():
        setattr(small, anatomy.depths[stack], len(blocks))
        if getattr(small, "layer_types", None):
            small.layer_types = [small.layer_types[i] for i in blocks]
        if anatomy.dense_blocks:
            setattr(small, anatomy.dense_blocks, sum(i < getattr(config, anatomy.dense_blocks) for i in blocks))
    if HIDDEN in widths and anatomy.epsilon:  # a mean over fewer channels is larger: see surgery
        setattr(small, anatomy.epsilon, getattr(config, anatomy.epsilon) * size(config, HIDDEN) / widths[HIDDEN])
    _check_loads(small)
    return small


def check(model: PreTrainedModel, layers: Mapping[str, Sequence[int]], kept: Mapping[str, Kept]) -> None:
    """Refuse what would leave no model, or one that transformers has no config for.

    Raises:
        ValueError: States the rule, the value and the way out.
    """
    config = model.config
    anatomy = anatomy_of(config)
    check_blocks(config, layers)
    for axis, choices in kept.items():
        needed = [name for name in scopes(model, axis) if _survives(name, anatomy, layers)]
        _check_choices(axis, choices, needed, size(config, axis) * entries_per_unit(config, axis))
    _check_heads(config, anatomy, kept)
    for name, indices in kept.get(EXPERTS, {}).items():
        check_experts(config, len(indices))
        _check_router_groups(config, name, indices)


def check_experts(config: PreTrainedConfig, count: int) -> None:
    """Refuse fewer experts than a token goes to, or a number that the router's groups do not share.

    Raises:
        ValueError: Names the rule.
    """
    groups, active = router_groups(config), config.num_experts_per_tok
    reachable = count // groups * _router_groups_chosen(config)
    least = 2 if config.model_type == "deepseek_v3" else 1  # it sums a group's two best
    if count % groups or count // groups < least or reachable < active:
        raise ValueError(
            f"experts must be a multiple of n_group={groups}, at least {least} in each group, and at least "
            f"num_experts_per_tok={active} in the {_router_groups_chosen(config)} groups that a token may go to; got "
            f"{count} of {size(config, EXPERTS)}: keep more"
        )


def check_blocks(config: PreTrainedConfig, layers: Mapping[str, Sequence[int]]) -> None:
    """Refuse blocks, stack -> indices of those that survive, which are none or could not do without others.

    Raises:
        ValueError: States the rule and the value.
    """
    anatomy = anatomy_of(config)
    for stack, key in anatomy.depths.items():
        blocks, depth = list(layers.get(stack, range(getattr(config, key)))), getattr(config, key)
        if not blocks or blocks != sorted(set(blocks)) or not set(blocks) <= set(range(depth)):
            raise ValueError(
                f"blocks of the {stack} must be rising indices in 0..{depth - 1}, at least one; got {blocks}"
            )
        if anatomy.first_block_stays and blocks[0] != 0:
            raise ValueError(f"block 0 of the {stack} must stay, whose position table all share; got {blocks}")
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


def _check_choices(axis: str, choices: Kept, needed: Iterable[str], rows: int) -> None:
    if axis in (HIDDEN, VOCABULARY) and list(choices) != [""]:
        raise ValueError(
            f"{axis} must be one choice for the whole model, under '', or embeddings would come untied; got "
            f"{', '.join(map(repr, choices))}"
        )
    if not choices:
        raise ValueError(f"no block of the model has {axis} of its own to lose: leave it whole")
    missing = [name for name in needed if name not in choices and "" not in choices]
    if missing:
        raise ValueError(f"{axis} of '{missing[0]}' must be given: there are {', '.join(map(repr, choices))}")
    for name, indices in choices.items():
        place = f"{axis} of '{name}'" if name else axis
        if not len(indices):
            raise ValueError(
                f"{place} must keep at least one: a layer of width 0 computes nothing; remove the block instead"
            )
        if indices.min() < 0 or indices.max() >= rows or not (indices.diff() > 0).all():
            raise ValueError(f"{place} must be rising indices in 0..{rows - 1}; got {indices.tolist()[:8]}")
    counts = {name: len(indices) for name, indices in choices.items()}
    if len(set(counts.values())) > 1:
        raise ValueError(f"{axis} must be as many everywhere, the config has one number for all; got {counts}")


def _check_heads(config: PreTrainedConfig, anatomy: Anatomy, kept: Mapping[str, Kept]) -> None:
    if HEADS not in kept and KV_HEADS not in kept:
        return
    width = head_width(config)
    if anatomy.groups == KV_HEADS and not (HEADS in kept and KV_HEADS in kept):
        raise ValueError("heads and kv_heads must be cut together: a group of query heads shares a key/value head")
    heads = {
        axis: {n: _whole_heads(axis, n, rows, width) for n, rows in kept[axis].items()}
        for axis in (HEADS, KV_HEADS)
        if axis in kept
    }
    if KV_HEADS not in heads:
        return
    if heads[HEADS].keys() != heads[KV_HEADS].keys():
        raise ValueError(
            f"heads and kv_heads must be given for the same parts; got {list(kept[HEADS])}, {list(kept[KV_HEADS])}"
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
    heads = rows[::width].cpu() // width
    if not torch.equal(rows.cpu(), (heads[:, None] * width + torch.arange(width)).flatten()):
        raise ValueError(
            f"{axis} of '{name}' must be whole heads of {width} channels: keep all channels of a head or none"
        )
    return heads


def _check_router_groups(config: PreTrainedConfig, name: str, indices: Tensor) -> None:
    groups = router_groups(config)
    per_group = (indices.cpu() // (size(config, EXPERTS) // groups)).bincount(minlength=groups)
    if len(per_group.unique()) > 1:
        raise ValueError(
            f"experts of '{name}' must be as many in each of the n_group={groups} groups that its router chooses "
            f"between; got {per_group.tolist()}: choose within each group"
        )


def router_groups(config: PreTrainedConfig) -> int:
    """Groups of experts that the router tells apart; 1 where it looks at experts alone."""
    limited = config.model_type != "deepseek_v2" or config.topk_method == "group_limited_greedy"
    return config.n_group if limited and config.n_group else 1


def _router_groups_chosen(config: PreTrainedConfig) -> int:
    return config.topk_group if router_groups(config) > 1 and config.topk_group else 1


def _check_loads(config: PreTrainedConfig) -> None:
    try:
        type(config).from_dict(config.to_dict())
    except Exception as error:  # of transformers and of huggingface_hub, whose strict classes raise their own
        raise ValueError(
            f"transformers would not load this {config.model_type}: {' '.join(str(error).split())}"
        ) from error


def entries_per_unit(config: PreTrainedConfig, axis: str) -> int:
    """Rows that stand for one unit in ``Kept``: a head's channels, else 1."""
    return head_width(config) if axis in (HEADS, KV_HEADS) else 1


def in_stack(name: str, layers: Mapping[str, Sequence[int]]) -> str:
    """The stack that holds the part called ``name``."""
    return next((stack for stack in layers if name.startswith(f"{stack}.")), next(iter(layers)))


def _survives(name: str, anatomy: Anatomy, layers: Mapping[str, Sequence[int]]) -> bool:
    found = re.search(anatomy.block, f"{name}.")
    return found is None or int(found[1]) in layers[in_stack(name, layers)]
