"""How many units of everything a model has, which other numbers it could have, and the parameters those would make.

A unit is a block of a stack, a group of attention heads (a key/value head with the query heads that share it), a
feed-forward neuron of every block, or a channel of the residual stream.
"""

import math
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from slimexp.cut.architecture import FFN, HEADS, HIDDEN, KV_HEADS, Anatomy, anatomy_of, head_width, size
from slimexp.cut.constraints import admits, in_stack, with_queries

Shape = Mapping[str, int]  # stack, or one of WIDTHS -> units
LAYERS = "layers"
WIDTHS = (HEADS, FFN, HIDDEN)
Part = frozenset[tuple[tuple[tuple[str, int], ...], int]]  # (width that scales it, length) of each dimension -> tensors
AXES = (LAYERS, *WIDTHS)  # what a user may ask to be cut


def whole(config: PreTrainedConfig) -> dict[str, int]:
    """The shape that a model has; widths that its type cannot lose are left out.

    Raises:
        ValueError: Its type has no known anatomy; names those that have.
    """
    anatomy = anatomy_of(config)
    depths = {stack: int(getattr(config, key)) for stack, key in anatomy.depths.items()}
    axes = {word: _axis(word, anatomy) for word in WIDTHS}
    return depths | {word: size(config, axis) for word, axis in axes.items() if axis in anatomy.sizes}


def axes_of(config: PreTrainedConfig) -> list[str]:
    """Those of ``AXES`` that a model of this type can lose units of.

    Raises:
        ValueError: Its type has no known anatomy; names those that have.
    """
    dense = whole(config)
    return [axis for axis in AXES if axis == LAYERS or axis in dense]


def lattice(
    config: PreTrainedConfig, axes: Collection[str], *, multiple: int, strict: bool = False
) -> dict[str, list[int]]:
    """What every stack and width may come to, most units first; the model's own number is among them unless ``strict``.

    Args:
        config: Of the model.
        axes: Those of ``AXES`` that may lose units; the others keep what they have.
        multiple: What the rows and columns of a matrix that lost some are a multiple of.
        strict: Whether a width of ``axes`` that keeps all its units must be a multiple too.

    Raises:
        ValueError: An axis that is none, that this type cannot lose, or, if ``strict``, that has no such multiple.
    """
    dense, anatomy, there = whole(config), anatomy_of(config), axes_of(config)
    if wrong := [axis for axis in axes if axis not in there]:
        why = anatomy.refusals.get(wrong[0])
        raise ValueError(
            f"axes of a model of type {config.model_type} that can be cut are {', '.join(there)}; got '{wrong[0]}'"
            + (f": {why}" if why else "")
        )
    free = {word for word in dense if (word if word in WIDTHS else LAYERS) in axes}

    def divides(word: str, units: int) -> bool:
        return word not in WIDTHS or row_length(config, word, units) % multiple == 0

    options = {
        word: [
            units
            for units in range(most, 0, -1)
            if (units == most and not (strict and word in free)) or (word in free and divides(word, units))
        ]
        for word, most in dense.items()
    }
    if lost := [word for word, units in options.items() if not units]:
        most = row_length(config, lost[0], dense[lost[0]])
        raise ValueError(f"'{lost[0]}' has no multiple of {multiple} up to its own {most}: lower the multiple")
    return options


def row_length(config: PreTrainedConfig, width: str, units: int) -> int:
    """Length of the rows of a matrix that reads so many units of a width."""
    return units * (_queries(config, anatomy_of(config)) * head_width(config) if width == HEADS else 1)


def possible(config: PreTrainedConfig, shape: Shape) -> bool:
    """Whether transformers can load a model of this shape, and generate with it."""
    anatomy = anatomy_of(config)
    widths = {_axis(word, anatomy): units for word, units in shape.items() if word in WIDTHS}
    # transformers (5.23) sizes the decoder's cache by the encoder's depth
    return shape.get("decoder", 0) <= shape.get("encoder", math.inf) and admits(config, widths)


def rows_of_units(config: PreTrainedConfig) -> dict[str, tuple[str, int]]:
    """Axis of what survives, as ``surgery.remove`` takes it -> (width it belongs to, rows that stand for a unit)."""
    anatomy, width = anatomy_of(config), head_width(config)
    rows = {FFN: (FFN, 1), HIDDEN: (HIDDEN, 1), HEADS: (HEADS, _queries(config, anatomy) * width)}
    return rows | ({KV_HEADS: (HEADS, width)} if anatomy.groups == KV_HEADS else {})


class Census:
    """Counts the parameters of a model of any shape without building it; tied ones once.

    Args:
        model: The whole model.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.dense = whole(model.config)
        anatomy = anatomy_of(model.config)
        parts: dict[tuple[str, int] | None, Counter[tuple[tuple[str, int], ...]]] = {}
        for name, parameter in model.named_parameters():  # tied ones once
            axes = anatomy.of(name)  # of the first dimensions; nothing takes from the others
            words = [_width(axis, anatomy) for axis in axes] + [""] * (parameter.ndim - len(axes))
            dimensions = tuple(zip(words, parameter.shape, strict=True))
            parts.setdefault(_place(name, anatomy), Counter())[dimensions] += 1
        self._outside: Part = frozenset(parts.pop(None, Counter()).items())
        self._blocks: dict[tuple[str, int], Part] = {
            place: frozenset(part.items()) for place, part in parts.items() if place is not None
        }

    def count(self, layers: Mapping[str, Sequence[int]], shape: Shape) -> int:
        """Parameters of the model with only the blocks ``layers`` (stack -> indices), and the widths of ``shape``."""
        kept = Counter(self._blocks[stack, index] for stack, indices in layers.items() for index in indices)
        return self._size(self._outside, shape) + sum(self._size(part, shape) * times for part, times in kept.items())

    def touched(self, layers: Mapping[str, Sequence[int]], shape: Shape) -> float:
        """Share of the whole model's parameters in tensors that lose rows, columns, or go as a whole."""
        cut = {word for word, units in shape.items() if word in WIDTHS and units < self.dense[word]}
        gone = {place for place in self._blocks if place[1] not in layers[place[0]]}
        total = lost = 0
        for place, part in [(None, self._outside), *self._blocks.items()]:
            for dimensions, times in part:
                size = times * math.prod(length for _, length in dimensions)
                total += size
                lost += size * (place in gone or any(width in cut for width, _ in dimensions))
        return lost / total

    def _size(self, part: Part, shape: Shape) -> int:
        return sum(
            times
            * math.prod(
                length * shape[width] // self.dense[width] if width in shape else length for width, length in dimensions
            )
            for dimensions, times in part
        )


def readers(model: PreTrainedModel, axis: str) -> dict[str, nn.Module]:
    """Name -> every layer in the blocks that reads what ``axis`` counts; experts in one tensor are left out."""
    anatomy, reads = anatomy_of(model.config), {nn.Linear: 1, Conv1D: 0}  # class -> dimension of the weight
    return {
        name: module
        for name, module in model.named_modules()
        if type(module) in reads
        and re.search(anatomy.block, f"{name}.")
        and anatomy.of(f"{name}.weight")[reads[type(module)]] == axis
    }


def writers(model: PreTrainedModel, axis: str) -> list[nn.Module]:
    """Everything that puts out what ``axis`` counts: layers, embeddings, and experts in one tensor."""
    anatomy = anatomy_of(model.config)
    found = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        module = model.get_submodule(name.rpartition(".")[0])
        puts_out = 1 if isinstance(module, nn.Embedding | Conv1D) or parameter.ndim == 3 else 0
        if parameter.ndim > 1 and (*anatomy.of(name), "")[puts_out] == axis:
            found[id(module)] = module
    return list(found.values())


def _axis(word: str, anatomy: Anatomy) -> str:
    """The axis whose size a width counts."""
    return anatomy.groups if word == HEADS else word


def _width(axis: str, anatomy: Anatomy) -> str:
    """The width that a dimension scales with; "" where none."""
    leader = anatomy.leader(axis)
    width = HEADS if leader == KV_HEADS else leader
    return width if width in WIDTHS and _axis(width, anatomy) in anatomy.sizes else ""


def _queries(config: PreTrainedConfig, anatomy: Anatomy) -> int:
    """Query heads in a group; 1 where heads cannot be cut."""
    return with_queries(config, {KV_HEADS: 1})[HEADS] if anatomy.groups == KV_HEADS else 1


def _place(name: str, anatomy: Anatomy) -> tuple[str, int] | None:
    """Stack and index of the block that holds the parameter called ``name``."""
    found = re.search(anatomy.block, name)
    return None if found is None else (in_stack(name, dict.fromkeys(anatomy.depths, ())), int(found[1]))
