"""Experts that transformers holds in stacks, a matrix of each in one tensor: which can be packed, what each reads."""

from collections.abc import Mapping, Sequence

from torch import Tensor, nn
from torch.nn import functional

from slimexp.model.base import Family, Weight
from slimexp.model.layer import Layer, latent, place
from slimexp.serialization.experts import is_stored_apart, outline

GATE_UP, DOWN = "gate_up_proj", "down_proj"  # [experts, 2 neurons, hidden], [experts, hidden, neurons]


def stacks(family: Family) -> dict[str, Weight]:
    """Name -> every stack of experts in the blocks that artifacts can hold packed: those of files with single experts.

    Args:
        family: The model; it may be on the meta device.
    """
    found = {name: weight for name, weight in family.other_weights().items() if weight.tensor in (GATE_UP, DOWN)}
    if not found:
        return {}
    empty = outline(family.model)
    return {name: weight for name, weight in found.items() if is_stored_apart(empty, name, latent(weight))}


def is_stack(layer: Layer) -> bool:
    """Whether a layer is the matrices of all experts of a mixture."""
    return isinstance(layer, Weight) and latent(layer).ndim == 3


def modules_of(layers: Mapping[str, Layer]) -> dict[str, nn.Module]:
    """Those of ``layers`` that are modules, as stacks are not."""
    return {name: layer for name, layer in layers.items() if isinstance(layer, nn.Module)}


def matrices(name: str, layer: Layer) -> Mapping[str, Layer]:
    """Name -> each matrix of a layer: of a stack one for every expert, else the layer itself."""
    if not is_stack(layer):
        return {name: layer}
    module, tensor = place(layer)
    return {f"{name}.{expert}": Weight(module, tensor, expert) for expert in range(len(latent(layer)))}


def read(layer: Layer, inputs: Sequence[Tensor]) -> Tensor:
    """What the matrix of a layer is multiplied with, [N, in].

    Args:
        layer: A layer, or one expert of a stack.
        inputs: Arguments that the layer's module is called with; of experts the tokens, [N, hidden], and the indices
            of those that each is routed to, [N, k].
    """
    if not isinstance(layer, Weight) or layer.expert is None:
        return inputs[0].flatten(0, -2)
    tokens = inputs[0][(inputs[1] == layer.expert).any(1)]
    if layer.tensor == GATE_UP:
        return tokens
    gated: Tensor = layer.module._apply_gate(functional.linear(tokens, getattr(layer.module, GATE_UP)[layer.expert]))
    return gated
