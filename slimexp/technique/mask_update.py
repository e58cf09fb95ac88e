"""Masks on a model's layers, and how an importance and a pattern bring them to a share of their target."""

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

from slimexp.calibration.block_by_block import calibrate_blocks
from slimexp.host import process_group
from slimexp.host.progress import counted
from slimexp.importance.base import Calibrated, Compensating, Importance
from slimexp.model.base import Batch, Family
from slimexp.model.layer import Layer, latent, matrix
from slimexp.pattern.base import Pattern
from slimexp.technique.masking import mask_of
from slimexp.weight.shard import whole


class MaskUpdate:
    """Puts masks on layers and updates them; what is zero stays zero, but for ``regrow``.

    Args:
        family: The model that the layers belong to.
        layers: The layers, by name; each gets a mask where it has none yet.
        importance: Scores the weights.
        pattern: Chooses by the scores which weights stay.
        sparsity: Target of every layer, until ``targets`` says otherwise.

    Attributes:
        masks: Layer -> the mask on its weight.
        targets: Layer -> the share of its weights that are zero at the end; one for all layers that compete.
    """

    def __init__(
        self, family: Family, layers: Mapping[str, Layer], *, importance: Importance, pattern: Pattern, sparsity: float
    ) -> None:
        self.family = family
        self.layers = layers
        self.importance = importance
        self.pattern = pattern
        self.masks = {name: mask_of(layer) for name, layer in layers.items()}
        self.targets = dict.fromkeys(self.masks, sparsity)

    def groups(self) -> list[list[str]]:
        """Names of layers that compete with each other."""
        return [list(self.masks)] if self.pattern.across_layers else [[name] for name in self.masks]

    def short_of(self, share: float) -> list[list[str]]:
        """The groups that have not reached ``share`` of their target yet."""
        return [
            names
            for names in self.groups()
            if not self.pattern.reached([self._alive(name) for name in names], share * self.targets[names[0]])
        ]

    def choose(self, names: Sequence[str], share: float, statistics: Mapping[str, Tensor]) -> None:
        """Bring a group to ``share`` of its target.

        Args:
            names: Layers that compete with each other.
            share: Share of their target.
            statistics: Layer -> what the importance observed or learned of it, empty where it scores weights alone.

        Raises:
            ValueError: A score is not finite.
        """
        scores = [self._score(name, statistics.get(name)) for name in names]
        masks = [self._alive(name) for name in names]
        for mask, kept in zip(masks, self.pattern.keep(scores, masks, share * self.targets[names[0]]), strict=True):
            mask.copy_(kept)

    def candidate(self, name: str, sparsity: float, statistics: Mapping[str, Tensor]) -> Tensor:
        """The mask that a layer would have at ``sparsity``, in the shape of its weight; see ``choose``."""
        score = self._score(name, statistics.get(name))
        kept = torch.empty_like(self.masks[name].mask)
        matrix(self.layers[name], kept).copy_(self.pattern.keep([score], [self._alive(name)], sparsity)[0])
        return kept

    def block_by_block(
        self, names: Collection[str], share: float, batches: Sequence[Batch], *, device: torch.device
    ) -> None:
        """Bring layers to ``share`` of their target, each behind blocks whose layers are there already.

        Args:
            names: Layers that do not compete with each other.
            share: Share of their target.
            batches: Training text without padding, on any device.
            device: Device to compute on.

        Raises:
            ValueError: An input, a score or a weight is not finite, or a layer was never used.
        """

        def prune(statistics: Mapping[str, Tensor]) -> None:
            for name in counted([name for name in statistics if name in names], "layer"):
                if isinstance(self.importance, Compensating):
                    self._compensate(self.importance, name, share, statistics[name])
                else:
                    self.choose([name], share, statistics)

        assert isinstance(self.importance, Calibrated)
        calibrate_blocks(self.importance, self.family, self.layers, batches, device=device, update=prune)

    @torch.no_grad()
    def regrow(
        self, reached: float, *, share: float, statistics: Mapping[str, Tensor], gradients: Mapping[str, Tensor]
    ) -> None:
        """Let living weights change places with zeros, which start again from 0; see ``Pattern.regrow``.

        Args:
            reached: Share of the target that the masks have reached.
            share: Share of the living weights that change places.
            statistics: As in ``choose``.
            gradients: Layer -> gradient of the objective with respect to every weight, masked ones included.
        """
        for names in self.groups():
            masks = [self._alive(name) for name in names]
            dead = 1 - sum(int(torch.count_nonzero(mask)) for mask in masks) / sum(mask.numel() for mask in masks)
            target = max(dead, reached * self.targets[names[0]])  # an earlier stage may have left more zeros
            scores = [self._score(name, statistics.get(name)) for name in names]
            growth = [matrix(self.layers[name], gradients[name].abs().float()) for name in names]
            chosen = self.pattern.regrow(scores, growth, masks, target, share)
            for name, mask, kept in zip(names, masks, chosen, strict=True):
                matrix(self.layers[name], latent(self.layers[name])).masked_fill_(kept & ~mask, 0.0)
                mask.copy_(kept)

    def broadcast(self, *, weights: bool = False) -> None:
        """Take over the first process's masks, for sums of statistics may differ in rounding.

        Args:
            weights: Whether weights were moved with them; they always are where the importance compensates.
        """
        process_group.broadcast(mask.mask for mask in self.masks.values())
        if weights or isinstance(self.importance, Compensating):
            process_group.broadcast(latent(layer) for layer in self.layers.values())

    def _compensate(self, importance: Compensating, name: str, share: float, statistic: Tensor) -> None:
        """Bring a layer to ``share`` of its target, and move the weights that stay."""
        weight, mask = matrix(self.layers[name], latent(self.layers[name])), self._alive(name)

        def choose(scores: Tensor, alive: Tensor, zeros: float) -> Tensor:
            return self.pattern.keep([scores], [alive], zeros)[0]

        strips = self.pattern.strips(weight.shape, share * self.targets[name], about=importance.strip)
        try:
            new, kept = importance.prune(weight, mask, statistic, strips, choose)
        except ValueError as error:
            raise ValueError(f"layer '{name}': {error}") from error
        if not new.isfinite().all():
            raise ValueError(f"{type(importance).__name__} gave weights of layer '{name}' that are not finite")
        weight.copy_(new)
        mask.copy_(kept)

    def _alive(self, name: str) -> Tensor:
        """The mask of a layer, [out, in]; writing to it writes to the mask."""
        return matrix(self.layers[name], self.masks[name].mask)

    def _score(self, name: str, statistic: Tensor | None) -> Tensor:
        """Scores of a layer's weights in float32, [out, in]."""
        layer = self.layers[name]
        scores = self.importance.score(matrix(layer, whole(latent(layer).detach())).float(), statistic)
        if not scores.isfinite().all():
            raise ValueError(f"{type(self.importance).__name__} gave scores of layer '{name}' that are not finite")
        return scores.float()
