"""Pruning: zeros that stay zero, in any pattern, one-shot or along a schedule while training."""

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from slimexp.allocation.base import SparsityAllocation
from slimexp.calibration.block_by_block import calibrate_blocks
from slimexp.calibration.observe import calibrate, check_called, undisturbed, visiting
from slimexp.data.base import Corpus
from slimexp.importance.base import Calibrated, Compensating, Gated, Importance, Learned
from slimexp.model.base import Batch, Family
from slimexp.model.layer import Layer, LayerSelector, coverage, latent, matrix
from slimexp.pattern.base import Pattern
from slimexp.schedule import Schedule
from slimexp.technique.batches import calibration_batches, training_batches
from slimexp.technique.finetune import Finetune, Training
from slimexp.technique.l0_gates import Gating
from slimexp.technique.masking import mask_of, sparsity
from slimexp.technique.prune_refusals import check_allocation, check_learned
from slimexp.technique.regrowth import dense_gradients


class Prune(Finetune):
    """Mask the least important weights of every compressible layer.

    Gradual pruning follows Zhu & Gupta 2017; ``steps: 0`` is one-shot. Masks only ever grow: what an
    earlier update, or an earlier stage, set to zero stays zero and counts towards the target. Unless ``regrow`` is
    above 0: then every update between the first and the ramp also sets the lowest ``regrow`` of the living weights to
    zero and wakes as many with the largest gradients, as zeros (Evci et al. 2020, "Rigging the lottery", where
    ``schedule.start: 1`` keeps the sparsity what it is at the end; the share falls along half a cosine).

    What is observed of a layer's inputs is observed block by block, each behind blocks whose masks have grown
    already; where layers compete with each other, or gradients are observed, on the model as it stands.

    Args:
        importance: Scores the weights; one that is calibrated reads training text whenever the masks grow, one that
            compensates moves the weights that stay then (along a schedule: Kurtic et al. 2022, "The optimal BERT
            surgeon"), and one that is learned or gated needs ``steps``.
        pattern: Where zeros may be, and which weights compete.
        sparsity: Share of the weights that are zero at the end, in [0, 1).
        schedule: Share of the target as a function of progress up to ``ramp``; must end at 1.
        every: Optimizer steps between two updates of the masks.
        ramp: Share of the steps after which the masks are final, in (0, 1].
        regrow: Share of the living weights that change places with zeros at the first update, in [0, 1).
        allocation: Gives each layer a sparsity of its own, by a scan before the first step; ``None``: all alike.
        include: Patterns of layers' names; see ``LayerSelector``.
        exclude: Patterns of layers' names to leave out.
        min_coverage: Least share of the model's parameters that the layers must hold.
        min_block_coverage: Least share that they must hold of the blocks' weights (a mixture's are mostly experts).
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
        regrow: float,
        allocation: SparsityAllocation | None,
        include: Sequence[str],
        exclude: Sequence[str],
        min_coverage: float,
        min_block_coverage: float,
        **training: Unpack[Training],
    ) -> None:
        super().__init__(**training)
        pattern.validate(sparsity)
        if not 0 <= schedule(0.0) <= 1:
            raise ValueError(f"schedule must start in [0, 1] (a share of sparsity), got {schedule(0.0)}")
        if schedule(1.0) != 1:
            raise ValueError(f"schedule must end at 1 (the whole of sparsity), got {schedule(1.0)}: set schedule.end=1")
        if every < 1:
            raise ValueError(f"every must be >= 1 step, got {every}")
        if not 0 < ramp <= 1:
            raise ValueError(f"ramp must be in (0, 1], got {ramp}")
        if not 0 <= regrow < 1:
            raise ValueError(f"regrow must be in [0, 1), got {regrow}")
        if regrow and not training["steps"]:
            raise ValueError("regrow needs training between updates: set steps, or regrow=0")
        check_learned(importance, sparsity=sparsity, steps=training["steps"], regrow=regrow)
        if isinstance(importance, Compensating) and pattern.across_layers:
            raise ValueError(
                f"{type(importance).__name__} makes up for zeros within a layer, so that layers cannot compete for "
                "them: set pattern.scope=layer"
            )
        if allocation is not None:
            check_allocation(allocation, importance, pattern, sparsity)
        if isinstance(importance, Calibrated) and importance.observes == "gradient" and not training["losses"]:
            name = type(importance).__name__
            raise ValueError(f"{name} needs the gradient of a loss: add one, e.g. /loss@losses.ce: cross_entropy")
        self.importance = importance
        self.pattern = pattern
        self.sparsity = sparsity
        self.schedule = schedule
        self.every = every
        self.ramp = ramp
        self.regrow = regrow
        self.allocation = allocation
        self.reach = LayerSelector(
            include=include,
            exclude=exclude,
            min_coverage=min_coverage,
            min_block_coverage=min_block_coverage,
        )

    @property
    def row_multiple(self) -> int:
        return self.pattern.row_multiple

    def inspect(self, outline: Family) -> None:
        layers = self._layers_of(outline)
        if self._reads_inputs:
            check_called(outline, layers)

    def inspect_rows(self, outline: Family, changed: Collection[str]) -> None:
        self._check_divided({name: one for name, one in self.reach.named(outline).items() if name not in changed})

    def prepare(self, family: Family, corpus: Corpus, teacher: Family | None) -> None:
        super().prepare(family, corpus, teacher)
        self.layers = self._layers_of(family)
        self.masks = {name: mask_of(layer) for name, layer in self.layers.items()}
        self.targets = dict.fromkeys(self.masks, self.sparsity)
        self.unallocated = self.allocation is not None and self.sparsity > 0
        self.learned: dict[str, Tensor] = {}
        self.gating: Gating | None = None
        if self.sparsity and not self._short_of(1.0):
            raise ValueError(
                f"sparsity {self.sparsity:.1%} would change nothing, the model has {sparsity(self.masks):.1%} zeros "
                "already: raise it"
            )
        if isinstance(self.importance, Gated) and self.sparsity:
            self.gating = Gating(self.importance, self.layers, self._groups())

    def on_step(self, progress: float) -> None:
        done = progress / self.ramp
        if done >= 1:
            self._settle()
        elif self.gating is not None:
            self.gating.draw()
        elif round(progress * self.steps) % self.every == 0 and (done or not isinstance(self.importance, Learned)):
            self._update(self.schedule(done))
            if self.regrow and done:
                self._regrow(self.schedule(done), share=self.regrow * (1 + math.cos(math.pi * done)) / 2)

    def on_gradients(self) -> None:
        if self.progress >= self.ramp:
            return
        if self.gating is not None:
            self.gating.ascend(self._wanted())
        elif isinstance(self.importance, Learned):
            for name, layer in self.layers.items():
                weight = latent(layer)
                gradient = torch.zeros_like(weight) if weight.grad is None else weight.grad  # an expert without a token
                step = self.importance.learn(weight.detach(), gradient)
                self.learned[name] = self.learned[name].add_(step) if name in self.learned else step

    def total(self, terms: Mapping[str, Tensor]) -> Tensor:
        total = super().total(terms)
        if self.gating is None or self.progress >= self.ramp:
            return total
        return total + self.gating.penalty(self._wanted())

    def parameter_groups(self) -> list[dict[str, Any]]:
        groups = super().parameter_groups()
        if self.gating is None or not isinstance(self.importance, Gated):
            return groups
        levels = list(self.gating.levels().values())
        mine = set(map(id, levels))
        others = [{**group, "params": [p for p in group["params"] if id(p) not in mine]} for group in groups]
        return [*others, {"params": levels, "lr": self.importance.lr, "weight_decay": 0.0}]

    def finish(self) -> dict[str, float]:
        self._settle()
        if self.gating is not None:
            self.gating.remove()
            self.gating = None
        return {"share": coverage(self.family, self.layers), "sparsity": sparsity(self.masks)}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["prune"] = {"learned": self.learned, "targets": self.targets, "unallocated": self.unallocated}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        own = checkpoint["prune"]
        self.learned = {name: total.to(latent(self.layers[name]).device) for name, total in own["learned"].items()}
        self.targets, self.unallocated = own["targets"], own["unallocated"]

    def _settle(self) -> None:
        """Bring the masks to the whole of the target."""
        self._update(1.0)
        if self.gating is not None:
            self.gating.fold()

    def _wanted(self) -> Tensor:
        """Sparsity that the schedule asks of each group now."""
        share = self.schedule(self.progress / self.ramp)
        return torch.tensor([share * self.targets[names[0]] for names in self._groups()], device=self.family.device)

    @torch.no_grad()
    def _update(self, share: float) -> None:
        """Bring the masks to ``share`` of the target."""
        self._allocate()
        if not (short := self._short_of(share)):
            return
        by_inputs = isinstance(self.importance, Calibrated) and self.importance.observes == "input"
        if by_inputs and not self.pattern.across_layers:
            self._block_by_block({name for names in short for name in names}, share)
            return
        with visiting(self.family.model, self._where()):
            statistics = self._calibrate()
            for names in short:
                self._choose(names, share, statistics)

    def _block_by_block(self, short: set[str], share: float) -> None:
        """Bring the layers in ``short`` to ``share`` of their target, each behind blocks that are there already."""

        def prune(statistics: Mapping[str, Tensor]) -> None:
            for name in (name for name in statistics if name in short):
                if isinstance(self.importance, Compensating):
                    self._compensate(self.importance, name, share, statistics[name])
                else:
                    self._choose([name], share, statistics)

        assert isinstance(self.importance, Calibrated)
        batches, device = list(self._calibration_batches()), self._where()
        calibrate_blocks(self.importance, self.family, self.layers, batches, device=device, update=prune)

    def _choose(self, names: Sequence[str], share: float, statistics: Mapping[str, Tensor]) -> None:
        """Bring layers that compete with each other to ``share`` of their target."""
        scores = [self._score(name, statistics.get(name)) for name in names]
        masks = [self._alive(name) for name in names]
        for mask, kept in zip(masks, self.pattern.keep(scores, masks, share * self.targets[names[0]]), strict=True):
            mask.copy_(kept)

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

    def _layers_of(self, family: Family) -> dict[str, Layer]:
        """The layers that are to be pruned, by name.

        Raises:
            ValueError: There are none or too few, or the importance or the pattern does not take one of them.
        """
        layers = self.reach.weights(family)
        for name, layer in layers.items():
            if self._reads_inputs and latent(layer).ndim > 2:
                raise ValueError(
                    f"{type(self.importance).__name__} reads the inputs of layers, and '{name}' is the experts of a "
                    "mixture in one, whose inputs do not show: exclude it, or choose an importance of weights or "
                    "gradients"
                )
        self._check_divided(layers)
        return layers

    @property
    def _reads_inputs(self) -> bool:
        return isinstance(self.importance, Calibrated) and self.importance.observes == "input"

    def _check_divided(self, layers: Mapping[str, Layer]) -> None:
        for name, layer in layers.items():
            try:
                self.pattern.split(matrix(layer, torch.empty_like(latent(layer), device="meta")))
            except ValueError as error:
                raise ValueError(f"layer '{name}': {error}") from error

    def _alive(self, name: str) -> Tensor:
        """The mask of a layer, [out, in]; writing to it writes to the mask."""
        return matrix(self.layers[name], self.masks[name].mask)

    def _groups(self) -> list[list[str]]:
        """Layers that compete with each other."""
        return [list(self.masks)] if self.pattern.across_layers else [[name] for name in self.masks]

    def _short_of(self, share: float) -> list[list[str]]:
        """Layers that compete with each other and have not reached ``share`` of their target yet."""
        return [
            names
            for names in self._groups()
            if not self.pattern.reached([self._alive(name) for name in names], share * self.targets[names[0]])
        ]

    def _regrow(self, reached: float, *, share: float) -> None:
        """Let ``share`` of the living weights change places with zeros, at ``reached`` of the target."""
        statistics = self._calibrate()
        growth = dense_gradients(
            self.family, self.layers, self.masks, self._batches_of_this_step(), objective=self._objective
        )
        with torch.no_grad():
            for names in self._groups():
                masks = [self._alive(name) for name in names]
                dead = 1 - sum(int(mask.sum()) for mask in masks) / sum(mask.numel() for mask in masks)
                target = max(dead, reached * self.targets[names[0]])  # an earlier stage may have left more zeros
                scores = [self._score(name, statistics.get(name)) for name in names]
                wish = [matrix(self.layers[name], growth[name].abs().float()) for name in names]
                for name, mask, kept in zip(
                    names, masks, self.pattern.regrow(scores, wish, masks, target, share), strict=True
                ):
                    matrix(self.layers[name], latent(self.layers[name])).masked_fill_(kept & ~mask, 0.0)
                    mask.copy_(kept)

    def _batches_of_this_step(self) -> Iterable[Batch]:
        start = self.global_step * self.accumulate
        return training_batches(
            self.corpus,
            self.family,
            batch_size=self.batch_size,
            seed=self.seed,
            start=start,
            stop=start + self.accumulate,
            workers=0,
            multiple=self.pad_to,
        )

    def _allocate(self) -> None:
        """Give every layer its sparsity, once, before anything is masked."""
        if not self.unallocated or self.allocation is None:
            return
        statistics = self._calibrate()
        (batch,) = training_batches(
            self.corpus, self.family, batch_size=self.allocation.rows, seed=self.seed, start=0, stop=1, workers=0
        )

        def keep(name: str, share: float) -> Tensor:
            score = self._score(name, statistics.get(name))
            kept = torch.empty_like(self.masks[name].mask)
            matrix(self.layers[name], kept).copy_(self.pattern.keep([score], [self._alive(name)], share)[0])
            return kept

        batch = {name: tensor.to(self.family.device) for name, tensor in batch.items()}
        with undisturbed(self.family):
            growth = self.allocation.scan(self.masks, keep=keep, loss=lambda: self._objective(batch).item())
        sizes = {name: mask.mask.numel() for name, mask in self.masks.items()}
        self.targets = self.allocation.shares(growth, sizes, self.sparsity)
        self.unallocated = False

    def _calibrate(self) -> dict[str, Tensor]:
        """Layer -> what the importance has observed or learned of it; nothing where it looks at weights alone."""
        if not isinstance(self.importance, Calibrated):
            own = self.gating.levels() if self.gating is not None else self.learned
            return {name: matrix(self.layers[name], statistic) for name, statistic in own.items()}
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
        layer = self.layers[name]
        scores = self.importance.score(matrix(layer, latent(layer).detach()), statistic)
        if not scores.isfinite().all():
            raise ValueError(f"{type(self.importance).__name__} gave scores of layer '{name}' that are not finite")
        return scores.float()
