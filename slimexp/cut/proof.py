"""A proof by example that a type's architecture is right: what is sliced computes what is masked."""

import copy
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedConfig

from slimexp.architecture.base import EXPERT_FFN, EXPERTS, FFN, HEADS, HIDDEN, LAYERS, block
from slimexp.architecture.model_type import architecture_of, size
from slimexp.cut.constraints import ScopeIndices, admits, scopes
from slimexp.cut.experts import experts_in, router_groups
from slimexp.cut.remove import head_rows, remove, retained_entries
from slimexp.cut.simulate import simulated
from slimexp.loss.base import IGNORE
from slimexp.model.base import Family, parameter_count, parameters

PROVABLE = (LAYERS, HEADS, FFN, HIDDEN, EXPERTS, EXPERT_FFN)
_ROWS = [("one", "two!", 0), ("three and four", "5", 1), ("six", "seven", 0)]
_TOLERANCE = 5e-4  # of the deviation of the logits: float32, and what RMS norms add to the mean square

Layers = Mapping[str, Sequence[int]]


def prove(family: Family, axis: str) -> None:
    """Cut half of an axis at random: the small model, the masked one and the simulated one must compute the same.

    Args:
        family: A small model of random weights, of three blocks in every stack; it stays as it is.
        axis: One of ``PROVABLE`` that the type can lose.

    Raises:
        ValueError: They do not, or there is no smaller size that transformers loads.
    """
    layers, kept = example(family, axis)
    small = remove(family, layers, kept)
    if parameter_count(small.model) >= parameter_count(family.model):
        raise ValueError(f"no parameter of a {family.model.config.model_type} counts {axis}")
    expected = logits(masked(family, layers, kept))
    unit = float(expected.std())
    for given in (logits(small), _simulated_logits(family, layers, kept)):
        off = float((given - expected).abs().max()) / max(unit, 1e-12)
        if not off <= _TOLERANCE:
            raise ValueError(f"a model of type {family.model.config.model_type} without some {axis} is {off:.1e} off")


def example(family: Family, axis: str) -> tuple[dict[str, list[int]], dict[str, ScopeIndices]]:
    """Blocks and units that stay when about half of an axis goes, at random, and not the same in any two scopes.

    Raises:
        ValueError: There is no smaller size that transformers loads.
    """
    config = family.model.config
    every = {stack: list(range(len(blocks))) for stack, blocks in family.blocks().items()}
    if axis == LAYERS:
        return {stack: [i for i in blocks if i != 1] for stack, blocks in every.items()}, {}
    units = architecture_of(config).groups if axis == HEADS else axis
    count = _smaller(config, units)
    parts = [""] if axis == HIDDEN else scopes(family.model, axis)
    groups = router_groups(config) if axis == EXPERTS else 1
    best = {part: _some(size(config, units), count, groups, seed) for seed, part in enumerate(parts)}
    if axis == EXPERT_FFN:
        best = {
            part: torch.stack([_some(size(config, units), count, 1, seed + i) for i in range(experts_in(config, part))])
            for seed, part in enumerate(parts)
        }
    return every, head_rows(config, best) if axis == HEADS else {axis: best}


@torch.no_grad()
def masked(family: Family, layers: Layers, kept: Mapping[str, ScopeIndices]) -> Family:
    """A copy of the same shape with zeros wherever ``remove`` would cut, and with blocks that pass on what they get."""
    twin = copy.deepcopy(family)
    config = family.model.config
    architecture = architecture_of(config)
    for name, tensor in twin.model.state_dict().items():
        for dimension, axis in enumerate(architecture.of(name)):
            indices = retained_entries(axis, name, config, kept)
            if indices is not None and axis != EXPERTS:
                dead = torch.ones(*indices.shape[:-1], tensor.shape[dimension], dtype=torch.bool)
                tensor.movedim(dimension, indices.ndim - 1)[dead.scatter(-1, indices, False)] = 0
    for stack, blocks in twin.blocks().items():
        for index, layer in enumerate(blocks):
            if index not in layers[stack]:
                layer.register_forward_hook(_pass_on)
    for name, gate in twin.model.named_modules():
        if EXPERTS in kept and name.endswith("mlp.gate"):
            _close(gate, kept[EXPERTS][block(name, architecture)])
    return twin


@torch.no_grad()
def logits(family: Family) -> Tensor:
    """Of a few texts, at tokens other than padding."""
    batch = family.encode(_ROWS)
    return family.forward(batch)[0][batch["labels"] != IGNORE]


def randomize(family: Family) -> Family:
    """The same family with no two parameters of the same numbers: norms and biases start as ones and zeros."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in parameters(family.model):
            if parameter.requires_grad:  # fixed positions are computed anew wherever a model is loaded
                parameter.add_(0.1 * torch.rand(parameter.shape, generator=generator))
    return family


def _simulated_logits(family: Family, layers: Layers, kept: Mapping[str, ScopeIndices]) -> Tensor:
    with simulated(family, layers, kept):
        return logits(family)


def _smaller(config: PreTrainedConfig, axis: str) -> int:
    """The number of units next to half of them that transformers loads a model of."""
    whole = size(config, axis)
    counts = sorted(range(1, whole), key=lambda count: abs(2 * count - whole))
    found = next((count for count in counts if admits(config, {axis: count})), None)
    if found is None:
        raise ValueError(f"transformers loads a model of type {config.model_type} with no other number of {axis}")
    return found


def _some(total: int, count: int, groups: int, seed: int) -> Tensor:
    """``count`` indices below ``total``, ascending, as many in each of ``groups`` runs of equal length."""
    generator = torch.Generator().manual_seed(seed)
    each = total // groups
    runs = [torch.randperm(each, generator=generator)[: count // groups] + start for start in range(0, total, each)]
    return torch.cat(runs).sort().values


def _pass_on(_: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
    return (inputs[0], *output[1:]) if isinstance(output, tuple) else inputs[0]


class _Closed(TorchFunctionMode):
    """Within it, a linear layer gives minus infinity for outputs other than ``open_to``."""

    def __init__(self, open_to: Tensor) -> None:
        super().__init__()
        self.open_to = open_to

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if function is not functional.linear:
            return result
        return result.masked_fill(_shut(result.shape[-1], self.open_to), -torch.inf)


def _close(gate: nn.Module, open_to: Tensor) -> None:
    """Let a router send no token to other experts."""
    gate.forward = partial(_route, gate.forward, open_to)
    bias = getattr(gate, "e_score_correction_bias", None)
    if isinstance(bias, Tensor):  # chosen by sigmoid + bias
        bias[_shut(len(bias), open_to)] = -torch.inf


def _route(route: Any, open_to: Tensor, *args: Any, **kwargs: Any) -> Any:
    with _Closed(open_to):
        return route(*args, **kwargs)


def _shut(total: int, open_to: Tensor) -> Tensor:
    return torch.ones(total, dtype=torch.bool).index_fill(0, open_to, False)
