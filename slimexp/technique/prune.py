"""Unstructured pruning: zeros that stay zero, one-shot or along a schedule while training."""

from collections.abc import Mapping
from typing import Literal, Unpack, get_args

import torch
from torch import Tensor, nn

from slimexp.attachment import attach, attached
from slimexp.data.base import Corpus
from slimexp.importance.base import Importance
from slimexp.importance.mask import Mask, keep_mask
from slimexp.model.base import Family
from slimexp.schedule import Schedule
from slimexp.technique.coverage import coverage, covered_layers, latent
from slimexp.technique.finetune import Finetune, Training

Scope = Literal["layer", "global"]


class Prune(Finetune):
    """Mask the least important weights of every compressible layer.

    Gradual pruning follows Zhu & Gupta 2017; ``steps: 0`` is one-shot. Masks only ever grow: what an
    earlier update, or an earlier stage, set to zero stays zero and counts towards the target.

    Args:
        importance: Scores the weights.
        sparsity: Share of the weights that are zero at the end, in [0, 1).
        scope: Whether every layer reaches ``sparsity`` or all of them together do.
        schedule: Share of the target as a function of progress up to ``ramp``; must end at 1.
        every: Optimizer steps between two updates of the masks.
        ramp: Share of the steps after which the masks are final, in (0, 1].
        min_coverage: Least share of the model's parameters that the layers must hold.
        training: See ``Training``.
    """

    attaches = True

    def __init__(
        self,
        *,
        importance: Importance,
        sparsity: float,
        scope: Scope,
        schedule: Schedule,
        every: int,
        ramp: float,
        min_coverage: float,
        **training: Unpack[Training],
    ) -> None:
        super().__init__(**training)
        if not 0 <= sparsity < 1:
            raise ValueError(f"sparsity must be in [0, 1), got {sparsity}")
        if scope not in get_args(Scope):
            raise ValueError(f"scope must be one of {', '.join(get_args(Scope))}, got {scope!r}")
        if schedule(1.0) != 1:
            raise ValueError(f"schedule must end at 1 (the whole of sparsity), got {schedule(1.0)}: set schedule.end=1")
        if every < 1:
            raise ValueError(f"every must be >= 1 step, got {every}")
        if not 0 < ramp <= 1:
            raise ValueError(f"ramp must be in (0, 1], got {ramp}")
        self.importance = importance
        self.sparsity = sparsity
        self.scope = scope
        self.schedule = schedule
        self.every = every
        self.ramp = ramp
        self.min_coverage = min_coverage

    def prepare(self, family: Family, corpus: Corpus, teacher: Family | None) -> None:
        super().prepare(family, corpus, teacher)
        self.layers = covered_layers(family, min_coverage=self.min_coverage)
        masks = {name: mask_of(layer) for name, layer in self.layers.items()}
        groups = [list(masks)] if self.scope == "global" else [[name] for name in masks]
        self.groups = [{name: masks[name] for name in group} for group in groups]
        zeros = sparsity(masks)
        if self.sparsity and zeros >= self.sparsity:
            raise ValueError(
                f"sparsity {self.sparsity:.1%} would change nothing, the model has {zeros:.1%} zeros already: raise it"
            )

    def on_step(self, progress: float) -> None:
        final = progress >= self.ramp
        if final or round(progress * self.steps) % self.every == 0:
            self._update(1.0 if final else self.schedule(progress / self.ramp))

    def finish(self) -> dict[str, float]:
        self._update(1.0)
        masks = {name: mask for group in self.groups for name, mask in group.items()}
        return {"share": coverage(self.family, self.layers), "sparsity": sparsity(masks)}

    @torch.no_grad()
    def _update(self, share: float) -> None:
        """Bring every scope to ``share`` of the target."""
        for masks in self.groups:
            size = sum(mask.mask.numel() for mask in masks.values())
            keep = size - round(share * self.sparsity * size)
            alive = torch.cat([mask.mask.flatten() for mask in masks.values()])
            if int(alive.sum()) <= keep:
                continue
            scores = torch.cat([self._score(name).flatten() for name in masks])
            kept = keep_mask(scores, keep, ~alive)
            for mask, part in zip(masks.values(), kept.split([m.mask.numel() for m in masks.values()]), strict=True):
                mask.mask.copy_(part.view_as(mask.mask))

    def _score(self, name: str) -> Tensor:
        scores = self.importance.score(latent(self.layers[name]).detach())
        if not scores.isfinite().all():
            raise ValueError(f"{type(self.importance).__name__} gave scores of layer '{name}' that are not finite")
        return scores.float()


def mask_of(layer: nn.Module) -> Mask:
    """The mask on the layer's weight; a new one, all alive, where there is none."""
    for place, attachment in attached(layer):
        if place.tensor == "weight" and isinstance(attachment, Mask):
            return attachment
    weight = latent(layer)
    mask = Mask(shape=weight.shape).to(weight.device)
    attach(layer, "weight", mask)
    return mask


def sparsity(masks: Mapping[str, Mask]) -> float:
    """Share of zeros in all masks together."""
    alive = sum(int(mask.mask.sum()) for mask in masks.values())
    return 1 - alive / sum(mask.mask.numel() for mask in masks.values())
