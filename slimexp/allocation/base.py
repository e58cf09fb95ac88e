"""Base classes of allocations: a sparsity, or a bit width, for each layer."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

from torch import Tensor

from slimexp.quantizer.base import Quantizer
from slimexp.weight.mask import Mask


class Allocation:
    """Gives each layer a setting of its own by what a scan finds: each layer is compressed alone, at a few settings.

    A technique scans with ``scan`` and hands the costs back; between the two an allocation holds no state and knows
    neither models nor corpora.

    Args:
        rows: Number of rows of training text that the technique scans with, >= 1.
    """

    def __init__(self, *, rows: int) -> None:
        if rows < 1:
            raise ValueError(f"rows of training text to scan with must be >= 1, got {rows}")
        self.rows = rows


class SparsityAllocation(Allocation, ABC):
    """Gives each layer a sparsity.

    Args:
        rows: See ``Allocation``.
        sparsities: Sparsities at which each layer is scanned, ascending, in (0, 1); no layer gets more than the last.
    """

    def __init__(self, *, rows: int, sparsities: Sequence[float]) -> None:
        super().__init__(rows=rows)
        self.sparsities = list(sparsities)

    @abstractmethod
    def scan(
        self, masks: Mapping[str, Mask], *, keep: Callable[[str, float], Tensor], loss: Callable[[], float]
    ) -> dict[str, list[float]]:
        """Layer -> growth of the loss at each of the sparsities; the masks are put back.

        Args:
            masks: Masks on the layers, by name of the layer.
            keep: Layer and sparsity -> the mask it would have, bool, shape of its weight.
            loss: Training loss of the model as it stands.
        """

    @abstractmethod
    def shares(
        self, growth: Mapping[str, Sequence[float]], sizes: Mapping[str, int], target: float
    ) -> dict[str, float]:
        """Layer -> its sparsity; zeros are ``target`` of all weights, to within one.

        Args:
            growth: Layer -> growth of the loss at each of the sparsities, as ``scan`` returns it.
            sizes: Layer -> number of its weights.
            target: Sparsity of all layers together, at most the last of the sparsities.
        """


class BitAllocation(Allocation, ABC):
    """Gives each layer a width.

    Args:
        rows: See ``Allocation``.
        widths: Bits at which each layer is scanned, ascending; each layer gets one of them.

    Attributes:
        scans: Whether costs are of use, so that the technique makes what ``scan`` needs.
    """

    scans: ClassVar[bool] = True

    def __init__(self, *, rows: int, widths: Sequence[int]) -> None:
        super().__init__(rows=rows)
        self.widths = list(widths)

    @abstractmethod
    def scan(
        self, weights: Mapping[str, Tensor], *, quantizer: Callable[[str, int], Quantizer], cost: Callable[[], float]
    ) -> dict[str, list[float]]:
        """Layer -> its cost at each of the widths; the weights are put back.

        Args:
            weights: Weights beneath any masks, by name of the layer; they are written to. What is masked counts in the
                range of its group.
            quantizer: Layer and width -> the quantizer that rounds its weight.
            cost: Cost of the model as it stands; 0 before the scan.

        Raises:
            ValueError: A cost is not finite.
        """

    @abstractmethod
    def choose(
        self, costs: Mapping[str, Sequence[float]], stored: Mapping[str, Mapping[int, int]], budget: int
    ) -> dict[str, int]:
        """Layer -> its width; together they take at most ``budget``, unless they are given and nothing is scanned.

        Args:
            costs: Layer -> cost at each of the widths, as ``scan`` returns it.
            stored: Layer -> width -> bits that the layer takes in an artifact, scales included.
            budget: Bits that all layers may take together, at least what they take at the first width.
        """
