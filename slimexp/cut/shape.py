"""Shapes: the numbers of units of a model, those that it could be cut to, and the parameters of each.

A unit is a block of a stack, a group of attention heads (a key/value head with the query heads that share it), a
feed-forward neuron of every block, a channel of the residual stream, a routed expert of every mixture, or a neuron of
every expert.
"""

import math
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from slimexp.architecture.base import (
    EXPERT_FFN,
    EXPERTS,
    FFN,
    HEADS,
    HIDDEN,
    KV_HEADS,
    LAYERS,
    OTHER,
    Architecture,
    block_index,
    head_width,
)
from slimexp.architecture.model_type import architecture_of, size
from slimexp.cut.constraints import admits, with_queries
from slimexp.cut.experts import numbers_of_experts
from slimexp.model.widths import require_alike

Shape = Mapping[str, int]  # stack, or one of WIDTHS -> number of units
ROW_WIDTHS = (HEADS, FFN, HIDDEN, EXPERT_FFN)  # that rows of linear layers are as long as
WIDTHS = (*ROW_WIDTHS, EXPERTS)
AXES = (LAYERS, *WIDTHS)  # that a user may choose to be cut
Dimensions = tuple[tuple[str, int], ...]  # (width that scales it, or "", length) of each dimension of a tensor
Tensors = frozenset[tuple[Dimensions, int]]  # with the number of tensors of these dimensions


def whole(config: PreTrainedConfig) -> dict[str, int]:
    """The shape of a model; widths that its type cannot lose are left out.

    Raises:
        ValueError: A model of this type cannot be cut, which names the types that can; or its widths are unlike.
    """
    architecture = architecture_of(config)
    require_alike(config)
    depths = {stack: int(getattr(config, key)) for stack, key in architecture.depths.items()}
    axes = {width: _axis(width, architecture) for width in WIDTHS}
    return depths | {width: size(config, axis) for width, axis in axes.items() if architecture.can_cut(axis, config)}


def axes_of(config: PreTrainedConfig) -> list[str]:
    """Those of ``AXES`` that a model of this type can lose units of.

    Raises:
        ValueError: A model of this type cannot be cut; names the types that can.
    """
    dense, architecture = whole(config), architecture_of(config)
    return [axis for axis in AXES if axis in dense or (axis == LAYERS and architecture.can_cut(axis, config))]


def lattice(
    config: PreTrainedConfig, axes: Collection[str], *, multiple: int, strict: bool = False
) -> dict[str, list[int]]:
    """Stack or width -> numbers of units that it may have, in descending order from the model's own.

    Args:
        config: Config of the whole model.
        axes: Those of ``AXES`` that may lose units; the others stay whole.
        multiple: Divisor of the numbers of rows and columns that remain of a matrix that loses some. Experts go in
            steps of their own: one or, beside other axes, one in 32, in each group that the router chooses between.
        strict: Whether it must divide the widths of ``axes`` that stay whole too; which shapes do so, ``divides`` says.

    Raises:
        ValueError: An unknown axis, one that this type cannot lose, or, if ``strict``, one without such a multiple.
    """
    dense, architecture, available = whole(config), architecture_of(config), axes_of(config)
    if refused := [axis for axis in axes if axis not in available]:
        reason = architecture.refusal(_axis(refused[0], architecture), config) if refused[0] in AXES else None
        raise ValueError(
            f"axes of a model of type {config.model_type} that can be cut are {', '.join(available)}; "
            f"got '{refused[0]}'" + (f": {reason}" if reason else "")
        )
    free = {key for key in dense if (key if key in WIDTHS else LAYERS) in axes}
    multiples = {
        key: [units for units in range(most, 0, -1) if divides(config, {key: units}, axes, multiple)]
        for key, most in dense.items()
        if key in free
    }
    if EXPERTS in free:
        multiples[EXPERTS] = numbers_of_experts(config, coarse=len(axes) > 1)
    if empty := [key for key, units in multiples.items() if strict and not units]:
        most = row_length(config, empty[0], dense[empty[0]])
        raise ValueError(f"'{empty[0]}' has no multiple of {multiple} up to its own {most}: lower the multiple")
    return {key: [most, *(units for units in multiples.get(key, ()) if units < most)] for key, most in dense.items()}


def divides(config: PreTrainedConfig, shape: Shape, axes: Collection[str], multiple: int) -> bool:
    """Whether ``multiple`` divides the rows and columns of all widths among ``axes`` in a shape."""
    widths = (key for key in shape if key in ROW_WIDTHS and key in axes)
    return all(row_length(config, key, shape[key]) % multiple == 0 for key in widths)


def row_length(config: PreTrainedConfig, width: str, units: int) -> int:
    """Number of input channels of a layer that reads ``units`` units of ``width``."""
    return units * (_queries(config, architecture_of(config)) * head_width(config) if width == HEADS else 1)


def possible(config: PreTrainedConfig, shape: Shape) -> bool:
    """Whether transformers can load a model of this shape, and generate with it."""
    architecture = architecture_of(config)
    widths = {_axis(key, architecture): units for key, units in shape.items() if key in WIDTHS}
    # transformers (5.23) sizes the decoder's cache by the encoder's depth
    return shape.get("decoder", 0) <= shape.get("encoder", math.inf) and admits(config, widths)


def rows_of_units(config: PreTrainedConfig) -> dict[str, tuple[str, int]]:
    """Axis as ``remove`` takes it -> (width that it belongs to, number of its rows that represent one unit)."""
    architecture, width = architecture_of(config), head_width(config)
    rows = {FFN: (FFN, 1), HIDDEN: (HIDDEN, 1), HEADS: (HEADS, _queries(config, architecture) * width)}
    rows |= {axis: (axis, 1) for axis in (EXPERTS, EXPERT_FFN) if axis in architecture.sizes}
    return rows | ({KV_HEADS: (HEADS, width)} if architecture.groups == KV_HEADS else {})


class ParameterCounter:
    """Counts the parameters of a model of any shape without building it; tied parameters count once.

    Args:
        model: The whole model.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.dense = whole(model.config)
        architecture = architecture_of(model.config)
        tensors: dict[tuple[str, int] | None, Counter[Dimensions]] = {}
        for name, parameter in model.named_parameters():  # tied parameters come once
            axes = architecture.of(name)  # of the leading dimensions; the others stay whole
            widths = [_width(axis, architecture, model.config) for axis in axes] + [""] * (parameter.ndim - len(axes))
            dimensions = tuple(zip(widths, parameter.shape, strict=True))
            tensors.setdefault(block_index(name, architecture), Counter())[dimensions] += 1
        self._outside: Tensors = frozenset(tensors.pop(None, Counter()).items())
        self._blocks: dict[tuple[str, int], Tensors] = {
            block: frozenset(counts.items()) for block, counts in tensors.items() if block is not None
        }

    def count(self, layers: Mapping[str, Sequence[int]], shape: Shape) -> int:
        """Number of parameters with only the blocks ``layers`` (stack -> indices), and the widths of ``shape``."""
        blocks = Counter(self._blocks[stack, index] for stack, indices in layers.items() for index in indices)
        return self._size(self._outside, shape) + sum(self._size(block, shape) * n for block, n in blocks.items())

    def touched(self, layers: Mapping[str, Sequence[int]], shape: Shape) -> float:
        """Share of the whole model's parameters in tensors that lose rows or columns, or are removed as a whole."""
        cut = {key for key, units in shape.items() if key in WIDTHS and units < self.dense[key]}
        removed = {block for block in self._blocks if block[1] not in layers[block[0]]}
        total = touched = 0
        for block, tensors in [(None, self._outside), *self._blocks.items()]:
            for dimensions, n in tensors:
                size = n * math.prod(length for _, length in dimensions)
                total += size
                touched += size * (block in removed or any(width in cut for width, _ in dimensions))
        return touched / total

    def _size(self, tensors: Tensors, shape: Shape) -> int:
        """Number of parameters of some tensors at the widths of ``shape``."""
        return sum(
            n
            * math.prod(
                length * shape[width] // self.dense[width] if width in shape else length for width, length in dimensions
            )
            for dimensions, n in tensors
        )


def readers(model: PreTrainedModel, axis: str) -> dict[str, nn.Module]:
    """Name -> layer within a block whose inputs ``axis`` counts; experts fused into one tensor are left out."""
    architecture = architecture_of(model.config)
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D)
        and re.search(architecture.block, f"{name}.")
        and (*architecture.of(f"{name}.weight"), OTHER)[0 if isinstance(module, Conv1D) else 1] == axis  # its inputs
    }


def norms(model: PreTrainedModel, axis: str) -> dict[str, nn.Module]:
    """Name -> norm of the channels that ``axis`` counts, of the residual stream or of all heads together."""
    architecture = architecture_of(model.config)
    return {
        name: module
        for name, module in model.named_modules()
        if (weight := module._parameters.get("weight")) is not None
        and weight.ndim == 1
        and architecture.of(f"{name}.weight")[0] == axis
    }


def writers(model: PreTrainedModel, axis: str) -> list[nn.Module]:
    """Modules whose outputs ``axis`` counts: layers, embeddings, and experts fused into one tensor."""
    architecture = architecture_of(model.config)
    modules = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        module = model.get_submodule(name.rpartition(".")[0])
        outputs = 1 if isinstance(module, nn.Embedding | Conv1D) or parameter.ndim == 3 else 0  # their dimension
        if parameter.ndim > 1 and (*architecture.of(name), "")[outputs] == axis:
            modules[id(module)] = module
    return list(modules.values())


def _axis(width: str, architecture: Architecture) -> str:
    """The axis of ``Architecture`` whose units a width counts."""
    return architecture.groups if width == HEADS else width


def _width(axis: str, architecture: Architecture, config: PreTrainedConfig) -> str:
    """The width that a dimension is proportional to; "" where there is none."""
    leader = architecture.leader(architecture.parts.get(axis, (axis,))[0])  # all parts of a projection follow one width
    width = HEADS if leader == KV_HEADS else leader
    return width if width in WIDTHS and architecture.can_cut(_axis(width, architecture), config) else ""


def _queries(config: PreTrainedConfig, architecture: Architecture) -> int:
    """Number of query heads in a group; 1 where heads cannot be cut."""
    return with_queries(config, {KV_HEADS: 1})[HEADS] if architecture.groups == KV_HEADS else 1
