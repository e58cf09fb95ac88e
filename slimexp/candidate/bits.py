"""Bits and groups of blocks: the layers that have them, and the settings by which the stage that rounds gives them."""

from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from slimexp.candidate.choice import Candidate, Place
from slimexp.candidate.precision import FLOAT, OWN, Precision
from slimexp.model.base import Family
from slimexp.model.experts import is_stack
from slimexp.model.layer import Layer
from slimexp.technique.layer_quantizers import LayerQuantizers

_EXPERTS = "*.experts.*"  # names of their stacks


def quantize_node(node: DictConfig | None, candidate: Candidate, family: Family) -> DictConfig | None:
    """Config of the stage that rounds the blocks of a candidate; ``None`` where all stay floats.

    Args:
        node: The stage's config in the run.
        candidate: The candidate.
        family: A model with the candidate's blocks, whose modules are named.
    """
    if node is None or not candidate.is_rounded:
        return None
    result = node.copy()
    OmegaConf.set_struct(result, False)
    for key, value in bit_settings(candidate, family, node.group_size).items():
        result[key] = value
    result._set_parent(node._get_parent())
    return result


def bit_settings(candidate: Candidate, family: Family, own: int | None) -> dict[str, Any]:
    """Settings of ``Quantize`` by which the blocks of a candidate, renumbered, have their bits and group sizes.

    Args:
        candidate: The candidate.
        family: The dense model, or that of the candidate's blocks, whose modules are named.
        own: Group size of the stage that rounds.
    """
    widths: dict[str, int] = {}
    sizes: dict[str, int | None] = {}
    floats: list[str] = []
    mixed = False  # whether there are experts in a block that is rounded
    for stack, blocks in family.blocks().items():
        kept = sorted(place for place in candidate.bits if place.stack == stack)
        for new, place in [(new, place) for new, place in enumerate(kept) if candidate.has_layers(place)]:
            pattern = f"{block_name(family, Place(stack, new))}.*"
            if candidate.bits[place] == FLOAT:
                floats.append(pattern)
                continue
            widths[pattern], sizes[pattern] = candidate.bits[place], candidate.group_sizes.get(place, own)
            mixed |= bool(layers_of(family, place if len(blocks) > len(kept) else Place(stack, new), experts=True))
    if mixed and candidate.expert_bits == FLOAT:
        floats.append(_EXPERTS)
    elif mixed and candidate.expert_bits is not None:
        widths = {_EXPERTS: candidate.expert_bits, **widths}  # the first that matches counts
        sizes = {_EXPERTS: own, **sizes}
    given = {"_target_": "slimexp.allocation.given.Given", "bits": widths}
    least = {"min_coverage": 1e-6, "min_block_coverage": 1e-6}  # the search has chosen what stays float
    alike = len(set(widths.values())) == 1
    bits = {"bits": max(widths.values()), "exclude": floats, "allocation": None if alike else given, **least}
    if not candidate.group_sizes:
        return bits
    return bits | {"group_size": sizes if len(set(sizes.values())) > 1 else next(iter(sizes.values()))}


def quantizers_of(stage: Any, precision: Precision) -> LayerQuantizers:
    """What makes the quantizers of a block's layers: the stage's, or of a group size that is not its own."""
    own: LayerQuantizers = stage.quantizers
    return own if precision.group_size == OWN else own.sized(precision.group_size)


def layers_of(family: Family, place: Place, *, experts: bool) -> Mapping[str, Layer]:
    """Layers of a block that can be rounded, by name: the stacks of its experts, or all others."""
    block = block_name(family, place)
    layers: Mapping[str, Layer] = family.other_weights() if experts else family.compressible()
    return {
        name: layer for name, layer in layers.items() if name.startswith(f"{block}.") and experts == is_stack(layer)
    }


def block_name(family: Family, place: Place) -> str:
    """Name of a block's module."""
    names = {module: name for name, module in family.model.named_modules()}
    return names[family.blocks()[place.stack][place.index]]
