"""The quantizer of each layer's weight: one group size for all layers, or sizes by patterns of their names."""

import math
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace

import torch

from slimexp.config.by_name import pattern_of, patterns_of
from slimexp.model.layer import Layer, latent
from slimexp.quantizer.base import Quantizer

GroupSize = int | str | None  # of one layer, see ``Granularity``


@dataclass(frozen=True)
class LayerQuantizers:
    """Makes the quantizers of layers' weights.

    Attributes:
        make: Partial of a quantizer, awaiting ``bits`` and ``group_size``.
        group_size: Of all layers; or pattern of names (``*`` for anything) -> number of neighbours that share a scale,
            ``None`` for a scale per output channel: the first that matches a layer counts.
    """

    make: Callable[..., Quantizer]
    group_size: GroupSize | Mapping[str, int | None]

    def __post_init__(self) -> None:
        if not isinstance(self.group_size, Mapping):
            return
        if not self.group_size:
            raise ValueError("group_size must name layers, e.g. {*.self_attn.*:32,*:64}; got none")
        for pattern, size in self.group_size.items():
            if size is not None and (type(size) is not int or size < 1):
                raise ValueError(f"group_size of '{pattern}' must be >= 1, or null for one scale per row, got {size}")

    @property
    def sizes(self) -> list[GroupSize]:
        """The group sizes that layers may have, each once."""
        if isinstance(self.group_size, Mapping):
            return list(dict.fromkeys(self.group_size.values()))
        return [self.group_size]

    @property
    def multiple(self) -> int:
        """Number that all group sizes divide."""
        return math.lcm(*(size for size in self.sizes if isinstance(size, int)))

    def sized(self, group_size: GroupSize) -> "LayerQuantizers":
        """The same with another group size, of all layers."""
        return replace(self, group_size=group_size)

    def size_of(self, name: str) -> GroupSize:
        """Group size of a layer.

        Raises:
            ValueError: No pattern matches its name.
        """
        if not isinstance(self.group_size, Mapping):
            return self.group_size
        return self.group_size[pattern_of(name, self.group_size, "group_size")]

    def check_names(self, names: Collection[str]) -> None:
        """Refuse patterns that do not fit some layers.

        Raises:
            ValueError: A layer matches no pattern, or a pattern no layer that an earlier one leaves.
        """
        if isinstance(self.group_size, Mapping):
            patterns_of(names, self.group_size, "group_size")

    def check_rows(self, layers: Mapping[str, Layer], bits: int) -> None:
        """Refuse groups that do not divide the rows of layers, whose blocks may have other numbers later.

        Raises:
            ValueError: Those of a layer, or by names those of a layer and its like in all blocks; names the first.
        """
        by_name = isinstance(self.group_size, Mapping)
        faults: dict[str, list[ValueError | None]] = {}
        for name, layer in layers.items():
            of_kind = faults.setdefault(re.sub(r"\d+", "#", name) if by_name else name, [])
            try:
                self.of(name, layer, bits=bits)
                of_kind.append(None)
            except ValueError as error:
                of_kind.append(error)
        for first, *others in faults.values():
            if first is not None and all(others):
                raise first

    def any(self, bits: int) -> Quantizer:
        """A quantizer of no layer, for what does not depend on its group size."""
        return self.make(bits=bits, group_size=self.sizes[0])

    def of(self, name: str, layer: Layer, *, bits: int) -> Quantizer:
        """The quantizer of a layer's weight at a width, on its device.

        Raises:
            ValueError: No pattern matches its name, or its groups do not divide the weight's rows; names the layer.
        """
        on_weight = self.make(bits=bits, group_size=self.size_of(name))
        try:
            on_weight.granularity.split(torch.empty_like(latent(layer), device="meta"))
        except ValueError as error:
            raise ValueError(f"layer '{name}': {error}") from error
        return on_weight.to(latent(layer).device)
