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

from slimexp.model.anatomy import ANATOMIES, FFN, HEADS, HIDDEN, KV_HEADS
from slimexp.model.base import parameters
from slimexp.model.surgery import head_width

Shape = Mapping[str, int]  # stack, or one of WIDTHS -> units
LAYERS = "layers"
WIDTHS = (HEADS, FFN, HIDDEN)
AXES = (LAYERS, *WIDTHS)  # what a user may ask to be cut
_FOLLOWS = {HEADS: HEADS, KV_HEADS: HEADS, FFN: FFN, HIDDEN: HIDDEN}  # axis of a dimension -> the width it scales with


def whole(config: PreTrainedConfig) -> dict[str, int]:
    """The shape that a model has; widths that its type cannot lose are left out.

    Raises:
        ValueError: Its type has no known anatomy; names those that have.
    """
    if config.model_type not in ANATOMIES:
        raise ValueError(
            f"a model of type {config.model_type} cannot be cut; types that can: {', '.join(sorted(ANATOMIES))}"
        )
    anatomy = ANATOMIES[config.model_type]
    groups = KV_HEADS if KV_HEADS in anatomy.sizes else HEADS
    keys = {**anatomy.depths} | {
        width: anatomy.sizes[axis]
        for width, axis in ((HEADS, groups), (FFN, FFN), (HIDDEN, HIDDEN))
        if axis in anatomy.sizes
    }
    return {word: int(getattr(config, key)) for word, key in keys.items()}


def lattice(config: PreTrainedConfig, axes: Collection[str], *, multiple: int) -> dict[str, list[int]]:
    """What every stack and width may come to, most units first; the model's own number is always among them.

    Args:
        config: Of the model.
        axes: Those of ``AXES`` that may lose units; the others keep what they have.
        multiple: What the rows and columns of a matrix that lost some are a multiple of.

    Raises:
        ValueError: An axis that is none, or that this type cannot lose.
    """
    dense = whole(config)
    stacks = dense.keys() - set(WIDTHS)
    possible = [axis for axis in AXES if axis == LAYERS or axis in dense]
    if wrong := [axis for axis in axes if axis not in possible]:
        raise ValueError(
            f"axes of a model of type {config.model_type} that can be cut are {', '.join(possible)}; got '{wrong[0]}'"
        )
    entries = dict.fromkeys(dense, multiple)
    if HEADS in dense:
        entries[HEADS] = config.num_attention_heads // dense[HEADS] * head_width(config)
    free = {word for word in dense if (LAYERS if word in stacks else word) in axes}
    return {
        word: [
            units
            for units in range(size, 0, -1)
            if units == size
            or (word in free and (word in stacks or units * (entries[word] if word == HEADS else 1) % multiple == 0))
        ]
        for word, size in dense.items()
    }


class Census:
    """Counts the parameters of a model of any shape without building it; tied ones once.

    Args:
        model: The whole model.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.dense = whole(model.config)
        anatomy = ANATOMIES[model.config.model_type]
        stacks = list(anatomy.depths)
        distinct = {id(p) for p in parameters(model)}
        parts: dict[tuple[str, int] | None, Counter[tuple[tuple[str, int], ...]]] = {}
        for name, parameter in model.named_parameters():
            if id(parameter) not in distinct:
                continue
            axes = anatomy.of(name)  # of the first dimensions; nothing takes from the others
            dimensions = tuple(
                (_FOLLOWS.get(axes[i], "") if i < len(axes) else "", length) for i, length in enumerate(parameter.shape)
            )
            parts.setdefault(_place(name, anatomy.block, stacks), Counter())[dimensions] += 1
        self._outside = parts.pop(None, Counter())
        self._blocks = {place: frozenset(part.items()) for place, part in parts.items() if place is not None}

    def count(self, layers: Mapping[str, Sequence[int]], shape: Shape) -> int:
        """Parameters of the model with only the blocks ``layers`` (stack -> indices), and the widths of ``shape``."""
        kept = Counter(self._blocks[stack, index] for stack, indices in layers.items() for index in indices)
        outside = self._size(frozenset(self._outside.items()), shape)
        return outside + sum(self._size(part, shape) * times for part, times in kept.items())

    def touched(self, layers: Mapping[str, Sequence[int]], shape: Shape) -> float:
        """Share of the whole model's parameters in tensors that lose rows, columns, or go as a whole."""
        cut = {word for word, units in shape.items() if word in WIDTHS and units < self.dense[word]}
        gone = {place for place in self._blocks if place[1] not in layers[place[0]]}
        total = lost = 0
        for place, part in [(None, frozenset(self._outside.items())), *self._blocks.items()]:
            for dimensions, times in part:
                size = times * math.prod(length for _, length in dimensions)
                total += size
                lost += size * (place in gone or any(width in cut for width, _ in dimensions))
        return lost / total

    def _size(self, part: frozenset[tuple[tuple[tuple[str, int], ...], int]], shape: Shape) -> int:
        return sum(
            times
            * math.prod(
                length * shape[width] // self.dense[width] if width in shape else length for width, length in dimensions
            )
            for dimensions, times in part
        )


def _place(name: str, block: str, stacks: Sequence[str]) -> tuple[str, int] | None:
    """Stack and index of the block that holds the parameter called ``name``."""
    if (found := re.search(block, name)) is None:
        return None
    return next((stack for stack in stacks if name.startswith(f"{stack}.")), stacks[0]), int(found[1])


def readers(model: PreTrainedModel, axis: str) -> dict[str, nn.Linear]:
    """Name -> every linear layer in the blocks that reads what ``axis`` counts."""
    anatomy = ANATOMIES[model.config.model_type]
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and re.search(anatomy.block, f"{name}.")
        and anatomy.of(f"{name}.weight")[1] == axis
    }


def writers(model: PreTrainedModel, axis: str) -> list[nn.Module]:
    """Every layer that puts out what ``axis`` counts, embeddings included."""
    anatomy = ANATOMIES[model.config.model_type]
    puts_out = {nn.Linear: 0, nn.Embedding: 1}  # class -> the dimension of its weight that it puts out
    return [
        module
        for name, module in model.named_modules()
        if (dimension := puts_out.get(type(module))) is not None and anatomy.of(f"{name}.weight")[dimension] == axis
    ]
