"""What every pattern is: where zeros may be, and which weights compete with each other for staying."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from slimexp.weight.mask import keep_mask, keep_mask_per_row


class Pattern(ABC):
    """Divides weights into groups of units. In every group the same number of units stays, those of highest score.

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
        width: Columns of a unit.
        group_width: Columns of a group; ``None`` where a group is as wide as the weight.
    """

    across_layers: bool = False
    any_share: bool = True
    width: int = 1
    group_width: int | None = None

    @property
    def row_multiple(self) -> int:
        """What the length of a row must be a multiple of."""
        return 1

    def validate(self, sparsity: float) -> None:
        """Refuse a target that cannot be met.

        Raises:
            ValueError: It is out of range, or not one of this pattern; then the nearest that is.
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
        """Scores of units from those of their entries, dead ones 0: [groups, units, entries] -> [groups, units]."""
        return scores.squeeze(-1)

    def reached(self, alive: Sequence[Tensor], sparsity: float) -> bool:
        """Whether every group has lost ``sparsity`` of its units.

        Args:
            alive: Masks of the layers that compete, each bool [out, in].
            sparsity: Share of the units that must be zero, in [0, 1).
        """
        living = self._living(alive)
        return bool((living.sum(1) <= _kept(living.shape[1], sparsity)).all())

    def keep(self, scores: Sequence[Tensor], alive: Sequence[Tensor], sparsity: float) -> list[Tensor]:
        """Which entries stay.

        Args:
            scores: Of every entry of the layers that compete: one layer, or all if ``across_layers``.
            alive: Their masks, bool; what is dead stays dead, and a unit without a live entry counts as zero.
            sparsity: Share of the units of every group that is zero, in [0, 1).

        Returns:
            New masks of the same shapes.
        """
        parts = [self.split(score * live) for score, live in zip(scores, alive, strict=True)]
        units = torch.cat([self.unit_scores(part) for part in parts], dim=1)
        choose = keep_mask if len(units) == 1 else keep_mask_per_row
        kept = choose(units, _kept(units.shape[1], sparsity), ~self._living(alive))
        masks = []
        for part, live, own in zip(parts, alive, kept.split([part.shape[1] for part in parts], dim=1), strict=True):
            masks.append(self.join(own.unsqueeze(-1).expand_as(part), live.shape) & live)
        return masks

    def regrow(
        self, scores: Sequence[Tensor], growth: Sequence[Tensor], alive: Sequence[Tensor], sparsity: float, share: float
    ) -> list[Tensor]:
        """Which entries live after the lowest units have made room for others.

        Args:
            scores: Of every entry of the layers that compete.
            growth: Finite and >= 0, the same shapes: how much an entry would help if it lived.
            alive: Their masks, bool.
            sparsity: Share of the units of every group that is zero before and after, in [0, 1).
            share: Of the living units that go, in [0, 1); they may come back at once.
        """
        kept = self.keep(scores, alive, 1 - (1 - sparsity) * (1 - share))
        wish = [torch.where(live, torch.inf, value) for live, value in zip(kept, growth, strict=True)]
        return self.keep(wish, [torch.ones_like(live) for live in alive], sparsity)

    def strips(self, shape: torch.Size, sparsity: float, *, about: int) -> Iterator[tuple[int, int, float]]:
        """Divide a weight into strips of columns, for those who decide on one after the other.

        Args:
            shape: Of the weight, [out, in].
            sparsity: Share of the units of every group that is zero, in [0, 1).
            about: Columns to a strip. It holds whole units, and exactly one group to a row where groups are narrower
                than the weight.

        Yields:
            The strip's columns, from and to; and its share of zeros, such that strips which keep to theirs make
            ``sparsity`` to within half a unit.
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
            already, zeros = zeros, round(sparsity * units)
            yield begin, end, (zeros - already) / (units - before)

    def _living(self, alive: Sequence[Tensor]) -> Tensor:
        """[groups, units]: whether a unit has a live entry."""
        return torch.cat([self.split(live).any(-1) for live in alive], dim=1)


def _kept(units: int, sparsity: float) -> int:
    return units - round(sparsity * units)
