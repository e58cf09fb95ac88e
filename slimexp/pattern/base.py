"""Sparsity patterns: where zeros may be, and which weights compete with each other."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from slimexp.weight.mask import keep_mask, keep_mask_per_row


class Pattern(ABC):
    """Divides weights into groups of units; in every group the same number of units of highest score is kept.

    ======================  =====================================================
    pattern                 weight [out, in] -> [groups, units, entries of a unit]
    ======================  =====================================================
    unstructured, layer     [1, out * in, 1]
    unstructured, row       [out, in, 1]
    n:m                     [out * in / m, m, 1]
    block of h x w          [1, out / h * in / w, h * w]
    ======================  =====================================================

    Attributes:
        across_layers: Whether the units of all layers are one group; then ``split`` must give one group per layer.
        any_share: Whether any sparsity can be met, to within a unit.
        width: Number of columns of a unit.
        group_width: Number of columns of a group; ``None`` where a group is as wide as the weight.
    """

    across_layers: bool = False
    any_share: bool = True
    width: int = 1
    group_width: int | None = None

    @property
    def row_multiple(self) -> int:
        """The number that must divide the length of a row."""
        return 1

    def validate(self, sparsity: float) -> None:
        """Refuse a sparsity that cannot be met.

        Raises:
            ValueError: It is out of range, or the pattern cannot have it; names the nearest that it can.
        """
        if not 0 <= sparsity < 1:
            raise ValueError(f"sparsity must be in [0, 1), got {sparsity}")

    @abstractmethod
    def split(self, x: Tensor) -> Tensor:
        """[out, in] -> [groups, units, entries of a unit].

        Raises:
            ValueError: The weight does not divide into groups or units.
        """

    def join(self, parts: Tensor, shape: torch.Size) -> Tensor:
        """The inverse of ``split``, for a weight of ``shape``."""
        return parts.reshape(shape)

    def unit_scores(self, scores: Tensor) -> Tensor:
        """Scores of units from those of their entries, 0 where masked: [groups, units, entries] -> [groups, units]."""
        return scores.squeeze(-1)

    def reached(self, alive: Sequence[Tensor], sparsity: float) -> bool:
        """Whether ``sparsity`` of the units of every group are zero.

        Args:
            alive: Masks of the layers that compete, each bool [out, in].
            sparsity: Share of the units that must be zero, in [0, 1).
        """
        if all(int(torch.count_nonzero(live)) == live.numel() for live in alive):  # as at first, and quick to see
            units = sum(self.split(live.to("meta")).shape[1] for live in alive)
            return _nonzero_units(units, sparsity) == units
        living = self._living(alive)
        return bool((living.sum(1) <= _nonzero_units(living.shape[1], sparsity)).all())

    def keep(self, scores: Sequence[Tensor], alive: Sequence[Tensor], sparsity: float) -> list[Tensor]:
        """Masks of the entries that stay.

        Args:
            scores: Scores of the layers that compete, each [out, in]: one layer, or all if ``across_layers``.
            alive: Masks of these layers, bool; masked entries stay masked, and a unit without others counts as zero.
            sparsity: Share of the units of every group that is zero, in [0, 1).

        Returns:
            New masks of the same shapes.
        """
        parts = [self.split(score * live) for score, live in zip(scores, alive, strict=True)]
        units = torch.cat([self.unit_scores(part) for part in parts], dim=1)
        choose = keep_mask if len(units) == 1 else keep_mask_per_row
        unit_masks = choose(units, _nonzero_units(units.shape[1], sparsity), ~self._living(alive))
        masks = []
        for part, live, mask in zip(parts, alive, unit_masks.split([part.shape[1] for part in parts], 1), strict=True):
            masks.append(self.join(mask.unsqueeze(-1).expand_as(part), live.shape) & live)
        return masks

    def regrow(
        self, scores: Sequence[Tensor], growth: Sequence[Tensor], alive: Sequence[Tensor], sparsity: float, share: float
    ) -> list[Tensor]:
        """Masks after the lowest units have been pruned and as many others regrown.

        Args:
            scores: Scores of the layers that compete, each [out, in].
            growth: Growth criterion, finite and >= 0, of the same shapes: the masked entries of highest value regrow.
            alive: Masks of these layers, bool.
            sparsity: Share of the units of every group that is zero before and after, in [0, 1).
            share: Share of the nonzero units that is pruned, in [0, 1); these may regrow at once.
        """
        kept = self.keep(scores, alive, 1 - (1 - sparsity) * (1 - share))
        priority = [torch.where(live, torch.inf, value) for live, value in zip(kept, growth, strict=True)]
        return self.keep(priority, [torch.ones_like(live) for live in alive], sparsity)

    def strips(self, shape: torch.Size, sparsity: float, *, about: int) -> Iterator[tuple[int, int, float]]:
        """Strips of columns of a weight, for an importance that prunes one after the other.

        Args:
            shape: Shape of the weight, [out, in].
            sparsity: Share of the units of every group that is zero, in [0, 1).
            about: Approximate number of columns of a strip. A strip holds whole units, and exactly one group per row
                where groups are narrower than the weight.

        Yields:
            First column and end of a strip, and its share of zeros; together the strips meet ``sparsity`` to within
            half a unit.
        """
        rows, columns = shape
        width = self.group_width or max(about // self.width, 1) * self.width
        units, zeros = 0, 0
        for begin in range(0, columns, width):
            end = min(begin + width, columns)
            if self.group_width:
                yield begin, end, sparsity
                continue
            before, units = units, self.split(torch.empty(rows, end, device="meta")).shape[1]
            zeros_before, zeros = zeros, round(sparsity * units)
            yield begin, end, (zeros - zeros_before) / (units - before)

    def _living(self, alive: Sequence[Tensor]) -> Tensor:
        """Whether a unit has an entry that is not masked, bool [groups, units]."""
        return torch.cat([self.split(live).any(-1) for live in alive], dim=1)


def _nonzero_units(units: int, sparsity: float) -> int:
    return units - round(sparsity * units)
