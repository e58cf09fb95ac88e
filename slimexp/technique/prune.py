"""Pruning: zeros that stay zero, in any pattern, one-shot or along a schedule while training."""

from collections.abc import Mapping
from typing import Unpack

import torch
from torch import Tensor, nn

from slimexp.attachment import Place, attach, attached
from slimexp.data.base import Corpus
from slimexp.importance.base import Calibrated, Importance
from slimexp.importance.mask import Mask
from slimexp.model.base import Batch, Family
from slimexp.pattern.base import Pattern
from slimexp.schedule import Schedule
from slimexp.technique.batches import calibration_batches
from slimexp.technique.calibration import calibrate
from slimexp.technique.coverage import Layer, coverage, covered_weights, latent, matrix, place
from slimexp.technique.finetune import Finetune, Training


class Prune(Finetune):
    """Mask the least important weights of every compressible layer.

    Gradual pruning follows Zhu & Gupta 2017; ``steps: 0`` is one-shot. Masks only ever grow: what an
    earlier update, or an earlier stage, set to zero stays zero and counts towards the target.

    Args:
        importance: Scores the weights; one that is calibrated reads training text whenever the masks grow.
        pattern: Where zeros may be, and which weights compete.
        sparsity: Share of the weights that are zero at the end, in [0, 1).
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
        pattern: Pattern,
        sparsity: float,
        schedule: Schedule,
        every: int,
        ramp: float,
        min_coverage: float,
        **training: Unpack[Training],
    ) -> None:
        super().__init__(**training)
        pattern.validate(sparsity)
        if schedule(1.0) != 1:
            raise ValueError(f"schedule must end at 1 (the whole of sparsity), got {schedule(1.0)}: set schedule.end=1")
        if every < 1:
            raise ValueError(f"every must be >= 1 step, got {every}")
        if not 0 < ramp <= 1:
            raise ValueError(f"ramp must be in (0, 1], got {ramp}")
        if isinstance(importance, Calibrated) and importance.observes == "gradient" and not training["losses"]:
            name = type(importance).__name__
            raise ValueError(f"{name} needs the gradient of a loss: add one, e.g. /loss@losses.ce: cross_entropy")
        self.importance = importance
        self.pattern = pattern
        self.sparsity = sparsity
        self.schedule = schedule
        self.every = every
        self.ramp = ramp
        self.min_coverage = min_coverage

    def prepare(self, family: Family, corpus: Corpus, teacher: Family | None) -> None:
        super().prepare(family, corpus, teacher)
        self.layers = covered_weights(family, min_coverage=self.min_coverage)
        self._check_inputs()
        self.masks = {name: mask_of(layer) for name, layer in self.layers.items()}
        for name in self.masks:
            try:
                self.pattern.split(self._alive(name))
            except ValueError as error:
                raise ValueError(f"layer '{name}': {error}") from error
        if self.sparsity and not self._short_of(self.sparsity):
            raise ValueError(
                f"sparsity {self.sparsity:.1%} would change nothing, the model has {sparsity(self.masks):.1%} zeros "
                "already: raise it"
            )

    def on_step(self, progress: float) -> None:
        final = progress >= self.ramp
        if final or round(progress * self.steps) % self.every == 0:
            self._update(1.0 if final else self.schedule(progress / self.ramp))

    def finish(self) -> dict[str, float]:
        self._update(1.0)
        return {"share": coverage(self.family, self.layers), "sparsity": sparsity(self.masks)}

    @torch.no_grad()
    def _update(self, share: float) -> None:
        """Bring the masks to ``share`` of the target."""
        target = share * self.sparsity
        if not (short := self._short_of(target)):
            return
        statistics = self._calibrate()
        for names in short:
            scores = [self._score(name, statistics.get(name)) for name in names]
            masks = [self._alive(name) for name in names]
            for mask, kept in zip(masks, self.pattern.keep(scores, masks, target), strict=True):
                mask.copy_(kept)

    def _short_of(self, target: float) -> list[list[str]]:
        """Layers that compete with each other and have not reached ``target`` yet."""
        together = [list(self.masks)] if self.pattern.across_layers else [[name] for name in self.masks]
        return [names for names in together if not self.pattern.reached([self._alive(name) for name in names], target)]

    def _check_inputs(self) -> None:
        if not isinstance(self.importance, Calibrated) or self.importance.observes != "input":
            return
        for name, layer in self.layers.items():
            if latent(layer).ndim > 2:
                raise ValueError(
                    f"{type(self.importance).__name__} reads the inputs of layers, and '{name}' is the experts of a "
                    "mixture in one, whose inputs do not show: choose an importance of weights or gradients"
                )

    def _alive(self, name: str) -> Tensor:
        """The mask of a layer, [out, in]; writing to it writes to the mask."""
        return matrix(self.layers[name], self.masks[name].mask)

    def _calibrate(self) -> dict[str, Tensor]:
        """Layer -> what the importance has observed of it; nothing where it looks at weights alone."""
        if not isinstance(self.importance, Calibrated):
            return {}
        batches = calibration_batches(self.corpus, self.family, rows=self.importance.rows, seed=self.seed)
        return calibrate(self.importance, self.family, self.layers, batches, objective=self._objective)

    def _objective(self, batch: Batch) -> Tensor:
        if self.teacher_family is not None:  # after training, Lightning leaves it on another device than the student
            nn.Module.to(self.teacher_family.model, self.family.device)
        return self.total(self.terms(batch))

    def _score(self, name: str, statistic: Tensor | None) -> Tensor:
        layer = self.layers[name]
        scores = self.importance.score(matrix(layer, latent(layer).detach()), statistic)
        if not scores.isfinite().all():
            raise ValueError(f"{type(self.importance).__name__} gave scores of layer '{name}' that are not finite")
        return scores.float()


def mask_of(layer: Layer) -> Mask:
    """The mask on the layer's weight; a new one, all alive, where there is none."""
    module, tensor = place(layer)
    for where, attachment in attached(module):
        if where == Place("", tensor) and isinstance(attachment, Mask):
            return attachment
    weight = latent(layer)
    mask = Mask(shape=weight.shape).to(weight.device)
    attach(module, tensor, mask)
    return mask


def sparsity(masks: Mapping[str, Mask]) -> float:
    """Share of zeros in all masks together."""
    alive = sum(int(mask.mask.sum()) for mask in masks.values())
    return 1 - alive / sum(mask.mask.numel() for mask in masks.values())
