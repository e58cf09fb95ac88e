"""Pruning: zeros that stay zero, in any pattern, one-shot or along a schedule while training."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Unpack

import torch
from torch import Tensor, nn

from slimexp.attachment import attach, attached
from slimexp.data.base import Corpus
from slimexp.importance.base import Calibrated, Compensating, Importance
from slimexp.importance.mask import Mask
from slimexp.model.base import Batch, Family
from slimexp.pattern.base import Pattern
from slimexp.schedule import Schedule
from slimexp.technique.batches import calibration_batches
from slimexp.technique.calibration import calibrate, visiting
from slimexp.technique.coverage import coverage, covered_layers, latent
from slimexp.technique.finetune import Finetune, Training
from slimexp.technique.sequential import calibrate_blocks


class Prune(Finetune):
    """Mask the least important weights of every compressible layer.

    Gradual pruning follows Zhu & Gupta 2017; ``steps: 0`` is one-shot. Masks only ever grow: what an
    earlier update, or an earlier stage, set to zero stays zero and counts towards the target.

    What is observed of a layer's inputs is observed block by block, each behind blocks whose masks have grown
    already; where layers compete with each other, or gradients are observed, on the model as it stands.

    Args:
        importance: Scores the weights; one that is calibrated reads training text whenever the masks grow, and one
            that compensates moves the weights that stay then (along a schedule: Kurtic et al. 2022, "The optimal BERT
            surgeon").
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
        if isinstance(importance, Compensating) and pattern.across_layers:
            raise ValueError(
                f"{type(importance).__name__} makes up for zeros within a layer, so that layers cannot compete for "
                "them: set pattern.scope=layer"
            )
        self.importance = importance
        self.pattern = pattern
        self.sparsity = sparsity
        self.schedule = schedule
        self.every = every
        self.ramp = ramp
        self.min_coverage = min_coverage

    def prepare(self, family: Family, corpus: Corpus, teacher: Family | None) -> None:
        super().prepare(family, corpus, teacher)
        self.layers = covered_layers(family, min_coverage=self.min_coverage)
        self.masks = {name: mask_of(layer) for name, layer in self.layers.items()}
        for name, mask in self.masks.items():
            try:
                self.pattern.split(mask.mask)
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
        if not isinstance(self.importance, Calibrated):
            for names in short:
                self._choose(names, target, {})
        elif self.importance.observes == "input" and not self.pattern.across_layers:
            self._block_by_block({name for names in short for name in names}, target)
        else:
            with visiting(self.family.model, self._where()):
                statistics = self._calibrate()
                for names in short:
                    self._choose(names, target, statistics)

    def _block_by_block(self, short: set[str], target: float) -> None:
        """Bring the layers in ``short`` to ``target``, each behind blocks that are there already."""

        def prune(statistics: Mapping[str, Tensor]) -> None:
            for name, statistic in statistics.items():
                if name not in short:
                    continue
                if isinstance(self.importance, Compensating):
                    self._compensate(self.importance, name, target, statistic)
                else:
                    self._choose([name], target, statistics)

        assert isinstance(self.importance, Calibrated)
        batches, device = list(self._calibration_batches()), self._where()
        calibrate_blocks(self.importance, self.family, self.layers, batches, device=device, prune=prune)

    def _choose(self, names: Sequence[str], target: float, statistics: Mapping[str, Tensor]) -> None:
        """Bring layers that compete with each other to ``target``."""
        scores = [self._score(name, statistics.get(name)) for name in names]
        masks = [self.masks[name].mask for name in names]
        for mask, kept in zip(masks, self.pattern.keep(scores, masks, target), strict=True):
            mask.copy_(kept)

    def _compensate(self, importance: Compensating, name: str, target: float, statistic: Tensor) -> None:
        """Bring a layer to ``target``, and move the weights that stay."""
        weight, mask = latent(self.layers[name]), self.masks[name].mask

        def choose(scores: Tensor, alive: Tensor, share: float) -> Tensor:
            return self.pattern.keep([scores], [alive], share)[0]

        strips = self.pattern.strips(weight.shape, target, about=importance.strip)
        try:
            new, kept = importance.prune(weight, mask, statistic, strips, choose)
        except ValueError as error:
            raise ValueError(f"layer '{name}': {error}") from error
        if not new.isfinite().all():
            raise ValueError(f"{type(importance).__name__} gave weights of layer '{name}' that are not finite")
        weight.copy_(new)
        mask.copy_(kept)

    def _short_of(self, target: float) -> list[list[str]]:
        """Layers that compete with each other and have not reached ``target`` yet."""
        together = [list(self.masks)] if self.pattern.across_layers else [[name] for name in self.masks]
        return [
            names for names in together if not self.pattern.reached([self.masks[name].mask for name in names], target)
        ]

    def _calibrate(self) -> dict[str, Tensor]:
        """Layer -> what the importance has observed of it on the model as it stands."""
        assert isinstance(self.importance, Calibrated)
        batches = self._calibration_batches()
        return calibrate(self.importance, self.family, self.layers, batches, objective=self._objective)

    def _calibration_batches(self) -> Iterator[Batch]:
        assert isinstance(self.importance, Calibrated)
        return calibration_batches(self.corpus, self.family, rows=self.importance.rows, seed=self.seed)

    def _where(self) -> torch.device:
        return self.workplace or self.family.device

    def _objective(self, batch: Batch) -> Tensor:
        if self.teacher_family is not None:  # after training, Lightning leaves it on another device than the student
            nn.Module.to(self.teacher_family.model, self.family.device)
        return self.total(self.terms(batch))

    def _score(self, name: str, statistic: Tensor | None) -> Tensor:
        scores = self.importance.score(latent(self.layers[name]).detach(), statistic)
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
