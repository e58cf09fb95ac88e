"""Models whose blocks have unlike widths, which the configs of transformers have one number for.

``config.json`` says so in an entry of slimexp's own, the width of every block by axis and stack::

    "intermediate_size": 448, "slimexp_widths": {"ffn": {"decoder": [448, 320, 64, 192]}}

Heads are counted in groups, as they are cut: a key/value head with the query heads that share it. A block of 0 has no
attention, or no feed-forward layers. The key of transformers has the largest number, or the next that it loads. Beside
a 0, ``attention_rank`` or ``ffn_rank`` may say the rank of a linear map that is in the place of what was left out::

    "slimexp_widths": {"ffn": {"decoder": [448, 0, 0]}, "ffn_rank": {"decoder": [0, 64, 0]}}

``per_layer_config`` of transformers (5.17 to 5.24) is no substitute: it records sizes of layers, but most models, Llama
among them, are not built by it, and it is of one stack alone.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.auto.auto_factory import _get_model_class
from transformers.pytorch_utils import Conv1D

from slimexp.architecture.base import FFN, HEADS, KV_HEADS, Architecture, block_index
from slimexp.architecture.model_type import ARCHITECTURES, architecture_of, size

KEY = "slimexp_widths"
AXES = (HEADS, FFN)  # whose widths may be unlike
RANKS = {HEADS: "attention_rank", FFN: "ffn_rank"}  # one of ``AXES`` -> entry of the ranks of what is in its place
Stacks = Mapping[str, Sequence[int]]  # stack -> a number for each of its blocks
Widths = Mapping[str, Stacks]  # axis -> units of each block, or entry of ``RANKS`` -> their ranks


class UnlikeWidths:
    """Comes before a model class of transformers, and makes each block as wide as its config says, see the module."""

    def __init__(self, config: PreTrainedConfig, *args: Any, **options: Any) -> None:
        widths = widths_of(config)
        super().__init__(config, *args, **options)  # type: ignore[call-arg]
        assert isinstance(self, PreTrainedModel)
        _narrow(self, widths)

    def __reduce__(self) -> tuple[Any, ...]:
        return _bare, type(self).__bases__[1:], self.__dict__  # no module has the class by its name


def widths_of(config: PreTrainedConfig) -> Widths:
    """Widths of blocks, where they are unlike, and ranks of what is in the place of layers; else empty.

    Raises:
        ValueError: The entry does not fit the rest of the config; states the rule and the value.
    """
    widths = getattr(config, KEY, None) or {}
    if not widths:
        return {}
    if config.model_type not in ARCHITECTURES:
        raise ValueError(f"{KEY} must be left out for a model of type {config.model_type}, which slimexp cannot cut")
    if not isinstance(widths, dict) or not widths.keys() <= {*AXES, *RANKS.values()}:
        names = ", ".join([*AXES, *RANKS.values()])
        raise ValueError(f"{KEY} must have the axes {names} alone, got {str(widths)[:80]}")
    for axis, stacks in widths.items():
        if axis not in AXES:
            continue
        if (reason := refusal(config, axis)) is not None:
            raise ValueError(f"{KEY} must not have {axis} for a model of type {config.model_type}: {reason}")
        least, most = 0 if can_drop(config, axis) else 1, size(config, counted(config, axis))
        _check_numbers(config, axis, stacks, least, most)
    for axis, name in RANKS.items():
        if name in widths:
            _check_numbers(config, name, widths[name], 0, config.hidden_size)
            if any(rank and units for rank, units in _pairs(widths[name], widths.get(axis))):
                raise ValueError(f"{KEY}.{name} must be 0 but where {KEY}.{axis} is; got {str(widths)[:80]}")
    return widths


def _check_numbers(config: PreTrainedConfig, name: str, stacks: Any, least: int, most: int) -> None:
    """Refuse an entry of ``KEY`` that does not have a number in range for each block."""
    depths = architecture_of(config).depths
    rule = f"{KEY}.{name} must have, for each of {', '.join(depths)}, a whole number from {least} to {most} a block"
    if not isinstance(stacks, dict) or stacks.keys() != depths.keys():
        raise ValueError(f"{rule}; got {str(stacks)[:80]}")
    for stack, each in stacks.items():
        numbers = isinstance(each, list) and all(type(units) is int and least <= units <= most for units in each)
        if not numbers or len(each) != getattr(config, depths[stack]):
            raise ValueError(f"{rule}; got {stack}: {str(each)[:80]}")


def _pairs(ranks: Stacks, units: Stacks | None) -> Iterator[tuple[int, int]]:
    """Rank and units of each block; 1 where all blocks have some."""
    for stack, each in ranks.items():
        yield from zip(each, [1] * len(each) if units is None else units[stack], strict=True)


def units_of(config: PreTrainedConfig, axis: str, stack: str, index: int) -> int:
    """Units of an axis in a block, of a model whose widths are alike or not; also of ``KV_HEADS``."""
    of_stacks = widths_of(config).get(width_of(axis))
    if of_stacks is None:
        return size(config, axis)
    return of_stacks[stack][index] * size(config, axis) // size(config, counted(config, width_of(axis)))


def largest_rank(config: PreTrainedConfig) -> int:
    """Largest rank of the maps in the place of layers; 0 where there is none."""
    widths = widths_of(config)
    return max((rank for name in RANKS.values() for each in widths.get(name, {}).values() for rank in each), default=0)


def width_of(axis: str) -> str:
    """The one of ``AXES`` that ``axis`` goes with: key/value heads go with their query heads."""
    return HEADS if axis == KV_HEADS else axis


def counted(config: PreTrainedConfig, width: str) -> str:
    """The axis of ``Architecture`` whose units one of ``AXES`` counts: for heads, that of their groups."""
    return architecture_of(config).groups if width == HEADS else width


def refusal(config: PreTrainedConfig, axis: str) -> str | None:
    """Why every block must have as many units of one of ``AXES``; ``None`` where they may be unlike."""
    if config.model_type not in ARCHITECTURES:
        return "its parameters are only recognized by their names"
    architecture, units = architecture_of(config), counted(config, axis)
    if units not in architecture.sizes:
        return architecture.refusal(units, config) or "it has none that could go"
    return architecture.refusal(units, config) or architecture.alike.get(axis)


def can_drop(config: PreTrainedConfig, axis: str) -> bool:
    """Whether a block can do without all units of one of ``AXES``: without attention, or without feed-forward."""
    if config.model_type not in ARCHITECTURES or axis not in architecture_of(config).optional:
        return False
    has_bias = getattr(config, "attention_bias" if axis == HEADS else "mlp_bias", False)
    kinds = set(getattr(config, "layer_types", None) or ())  # caches of several kinds go by the index of a block
    return not has_bias and (axis == FFN or len(kinds) <= 1) and refusal(config, axis) is None


def require_alike(config: PreTrainedConfig) -> None:
    """Refuse a model of unlike widths where one number is to say what every block keeps.

    Raises:
        ValueError: The widths are unlike.
    """
    if axes := widths_of(config):
        raise ValueError(
            f"the blocks of this model have unlike numbers of {', '.join(axis for axis in axes if axis in AXES)} "
            f"({KEY} of its config.json), and are "
            "taken to have one: remove from the model that it was made of, or mask or quantize this one"
        )


def set_widths(config: PreTrainedConfig, axis: str, widths: Stacks, ranks: Stacks | None = None) -> None:
    """Say in a config how wide every block is: by the key of transformers alone where all are alike.

    Args:
        config: The config, changed in place; the key of transformers has the largest width, or more.
        axis: One of ``AXES``.
        widths: Stack -> units of each of its blocks.
        ranks: Stack -> rank of the map that is in the place of each block that has none; ``None`` for no map.
    """
    entry = {name: stacks for name, stacks in widths_of(config).items() if name not in (axis, RANKS[axis])}
    most = getattr(config, architecture_of(config).keys(counted(config, axis))[0])
    for name, stacks, usual in ((axis, widths, most), (RANKS[axis], ranks or {}, 0)):
        if any(number != usual for each in stacks.values() for number in each):
            entry[name] = {stack: list(each) for stack, each in stacks.items()}
    vars(config).pop(KEY, None)
    if entry:
        setattr(config, KEY, entry)


def class_of(auto: Any, config: PreTrainedConfig) -> Any:
    """What builds or loads a model of ``config``: ``auto`` itself, or a class of the same name with ``UnlikeWidths``.

    Args:
        auto: A model class of transformers, or an ``AutoModel`` that finds one.
        config: The config.
    """
    if not hasattr(config, KEY):
        return auto
    mapping = getattr(auto, "_model_mapping", None)
    return _unlike(auto if mapping is None else _get_model_class(config, mapping))


def from_config(auto: Any, config: PreTrainedConfig) -> PreTrainedModel:
    """A model of random weights, by the ``AutoModel`` that serves its task."""
    model: PreTrainedModel
    if (kind := class_of(auto, config)) is auto:
        model = auto.from_config(config, trust_remote_code=False)
    else:
        model = kind._from_config(config)
    return model


@cache
def _unlike(make: type[PreTrainedModel]) -> type[PreTrainedModel]:
    """The class, by its own name (which config.json has), whose models have the widths of their configs."""
    if issubclass(make, UnlikeWidths):
        return make
    kind: type[PreTrainedModel] = type(make.__name__, (UnlikeWidths, make), {"__module__": make.__module__})
    return kind


def _bare(make: Any) -> PreTrainedModel:
    """A model that has its state still to come, of the class that comes before ``make``."""
    kind: type[PreTrainedModel] = _unlike(make)
    return kind.__new__(kind)


def _narrow(model: PreTrainedModel, widths: Widths) -> None:
    """Keep as many of the first rows and columns of every layer as its block has units."""
    architecture = architecture_of(model.config)
    _drop(model, widths)
    for name, parameter in list(model.named_parameters()):
        if not widths or (place := block_index(name, architecture)) is None:
            continue
        path, _, tensor = name.rpartition(".")
        module, narrowed = model.get_submodule(path), parameter.data
        for dimension, axis in enumerate(architecture.of(name)):
            parts = architecture.parts.get(axis, (axis,))  # a projection may hold several of the same width
            if width_of(architecture.leader(parts[0])) in widths:
                entries = sum(_entries(model.config, architecture, part, place) for part in parts)
                narrowed = narrowed.narrow(dimension, 0, entries)
        if narrowed.shape != parameter.shape:
            module._parameters[tensor] = nn.Parameter(narrowed.clone(), requires_grad=parameter.requires_grad)
            _say_sizes(module)


def _entries(config: PreTrainedConfig, architecture: Architecture, axis: str, place: tuple[str, int]) -> int:
    """Number of rows or columns along an axis in the parameters of a block."""
    each = architecture.widths[axis](config) if axis in architecture.widths else 1  # of a head
    return units_of(config, architecture.leader(axis), *place) * each


def _say_sizes(module: nn.Module) -> None:
    """Let a layer say the sizes that its weight has."""
    shape = module.get_parameter("weight").shape
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = shape
    elif isinstance(module, Conv1D):
        module.nx, module.nf = shape


class Replacement(nn.Module):
    """In the place of attention or feed-forward layers: a linear map at each token, of rank 0 nothing.

    Args:
        channels: Width of the residual stream.
        rank: Rank of the map.
    """

    def __init__(self, channels: int, rank: int) -> None:
        super().__init__()
        if rank:
            self.to_rank = nn.Linear(channels, rank, bias=False)
            self.from_rank = nn.Linear(rank, channels, bias=False)

    def _added(self, x: Tensor) -> Tensor:
        """What is added to the residual stream, [..., channels]."""
        return self.from_rank(self.to_rank(x)) if hasattr(self, "to_rank") else torch.zeros_like(x)


class _Attention(Replacement):
    """In the place of attention: caches nothing."""

    def forward(self, hidden_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, None]:
        return self._added(hidden_states), None


class _FeedForward(Replacement):
    """In the place of feed-forward layers."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self._added(hidden_states)


REPLACEMENTS: Mapping[str, type[Replacement]] = {HEADS: _Attention, FFN: _FeedForward}


def sublayers(model: PreTrainedModel, axis: str) -> dict[tuple[str, int], str]:
    """Stack and index of a block -> name of its attention (``HEADS``) or feed-forward layers that it can do without."""
    architecture = architecture_of(model.config)
    ending = f".{architecture.optional.get(axis)}"
    names = [name for name, _ in model.named_modules() if name.endswith(ending)]
    return {place: name for name in names if (place := block_index(f"{name}.", architecture)) is not None}


def _drop(model: PreTrainedModel, widths: Widths) -> None:
    """Leave out attention and feed-forward of the blocks that have none of their units, or put a map in their place."""
    for axis, make in REPLACEMENTS.items():
        stacks, ranks = widths.get(axis, {}), widths.get(RANKS[axis], {})
        if all(min(each) for each in stacks.values()):
            continue
        names = sublayers(model, axis)
        for (stack, index), name in names.items():
            if stacks[stack][index] == 0:
                model.set_submodule(name, make(model.config.hidden_size, ranks[stack][index] if ranks else 0))
        if axis == HEADS:  # a cache says how long it is by its first layer, so that must be one that is used
            every: list[Any] = [model.get_submodule(name) for name in names.values()]
            stay = [module for module in every if not isinstance(module, make)]
            for number, module in enumerate(stay):
                module.layer_idx = number
