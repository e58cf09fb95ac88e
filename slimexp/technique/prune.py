"""Unstructured and semi-structured pruning by masks, one-shot or along a schedule while training."""

import math
from collections.abc import Collection, Iterator, Sequence
from contextlib import nullcontext
from itertools import chain
from typing import Any, Unpack

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from slimexp.allocation.base import SparsityAllocation
from slimexp.calibration.observe import calibrate, check_called, observes_inputs, undisturbed, visiting
from slimexp.data.base import Corpus
from slimexp.host import process_group
from slimexp.host.progress import counted
from slimexp.importance.base import Calibrated, Compensating, Gated, Importance, Learned
from slimexp.model.base import Batch, Family
from slimexp.model.layer import Layer, LayerSelector, coverage, latent, matrix, place
from slimexp.pattern.base import Pattern
from slimexp.schedule import Schedule
from slimexp.technique import prune_refusals as refusals
from slimexp.technique.batches import calibration_batches, training_batches
from slimexp.technique.finetune import Finetune
from slimexp.technique.l0_gates import L0Gates
from slimexp.technique.mask_update import MaskUpdate
from slimexp.technique.masking import sparsity
from slimexp.technique.regrowth import dense_gradients
from slimexp.technique.training import Training
from slimexp.weight.shard import placed, whole


class Prune(Finetune):
    """Mask the least important weights of every compressible layer.

    Gradual pruning follows Zhu & Gupta 2017, "To prune, or not to prune"; ``steps: 0`` is one-shot. Masks only lose
    entries: what an earlier update, or an earlier stage, set to zero stays zero and counts towards the target. Unless
    ``regrow`` is above 0: then every update between the first and the ramp also sets the lowest ``regrow`` of the
    living weights to zero and revives as many with the largest gradients, starting from zero (Evci et al. 2020,
    "Rigging the lottery", where ``schedule.start: 1`` holds the sparsity at its final value; the share falls along half
    a cosine).

    Inputs of layers are observed block by block, each behind blocks that are updated already; where layers compete with
    each other, or gradients are observed, on the model as it stands.

    Args:
        importance: Scores the weights; one that is calibrated reads training text at every update, one that
            compensates moves the weights that stay then (along a schedule: Kurtic et al. 2022, "The optimal BERT
            surgeon"), and one that is learned or gated needs ``steps``.
        pattern: Where zeros may be, and which weights compete.
        sparsity: Share of the weights that are zero at the end, in [0, 1).
        schedule: Share of the target as a function of progress up to ``ramp``; must end at 1.
        every: Number of optimizer steps between two updates of the masks.
        ramp: Share of the steps after which the masks are final, in (0, 1].
        regrow: Share of the living weights that change places with zeros at the first update, in [0, 1).
        allocation: Gives each layer a sparsity of its own, by a scan before the first update; ``None``: all alike.
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
        refusals.check_updates(schedule, every=every, ramp=ramp)
        if not 0 <= regrow < 1:
            raise ValueError(f"regrow must be in [0, 1), got {regrow}")
        if regrow and not training["steps"]:
            raise ValueError("regrow needs training between updates: set steps, or regrow=0")
        refusals.check_learned(importance, sparsity=sparsity, steps=training["steps"], regrow=regrow)
        if isinstance(importance, Compensating) and pattern.across_layers:
            raise ValueError(
                f"{type(importance).__name__} makes up for zeros within a layer, so that layers cannot compete for "
                "them: set pattern.scope=layer"
            )
        if allocation is not None:
            refusals.check_allocation(allocation, importance, pattern, sparsity)
        refusals.check_objective(importance, allocation, training)
        self.importance = importance
        self.pattern = pattern
        self.sparsity = sparsity
        self.schedule = schedule
        self.every = every
        self.ramp = ramp
        self.regrow = regrow
        self.allocation = allocation
        self.selector = LayerSelector(
            include=include, exclude=exclude, min_coverage=min_coverage, min_block_coverage=min_block_coverage
        )

    def validate(self, config: PreTrainedConfig, before: Sequence[Finetune]) -> None:
        refusals.check_more_zeros(self, before)

    @property
    def keeps_stored_type(self) -> bool:
        observes_gradients = isinstance(self.importance, Calibrated) and not observes_inputs(self.importance)
        return not (self.steps or self.pattern.across_layers or self.allocation or observes_gradients)

    @property
    def maps_weights(self) -> bool:
        return True  # masks are put on, which are chosen while it trains

    @property
    def changes_weights(self) -> bool:
        return bool(self.steps) or isinstance(self.importance, Compensating)

    @property
    def whole_weights(self) -> str | None:
        kinds = {Calibrated: "observes or moves whole layers", Gated: "has gates"}
        doing = [why for kind, why in kinds.items() if isinstance(self.importance, kind)]
        if doing:
            return f"whose importance {doing[0]} while it trains"
        return "whose regrow and allocation change whole layers" if self.regrow or self.allocation else None

    @property
    def row_multiple(self) -> int:
        return self.pattern.row_multiple

    def inspect(self, outline: Family) -> None:
        layers = self._layers_of(outline)
        if observes_inputs(self.importance):
            check_called(outline, layers)

    def inspect_rows(self, outline: Family, changed: Collection[str]) -> None:
        layers = self.selector.named(outline)
        refusals.check_rows({name: layer for name, layer in layers.items() if name not in changed}, self.pattern)

    def prepare(self, family: Family, corpus: Corpus, teacher: Family | None) -> None:
        super().prepare(family, corpus, teacher)
        self.layers = self._layers_of(family)
        self.mask_update = MaskUpdate(
            family, self.layers, importance=self.importance, pattern=self.pattern, sparsity=self.sparsity
        )
        self.masks = self.mask_update.masks
        self.unallocated = self.allocation is not None and self.sparsity > 0
        self.learned: dict[str, Tensor] = {}
        self.gating: L0Gates | None = None
        if self.sparsity and not self.mask_update.short_of(1.0):
            raise ValueError(
                f"sparsity {self.sparsity:.1%} would change nothing, the model has {sparsity(self.masks):.1%} zeros "
                "already: raise it"
            )
        if isinstance(self.importance, Gated) and self.sparsity:
            self.gating = L0Gates(self.importance, self.layers, self.mask_update.groups())

    def on_step(self, progress: float) -> None:
        done = progress / self.ramp
        if done >= 1:
            self._finalize()
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
            self.gating.ascend(self._group_targets())
        elif isinstance(self.importance, Learned):
            for name, layer in self.layers.items():
                weight = latent(layer)
                gradient = (
                    torch.zeros_like(weight) if weight.grad is None else weight.grad
                )  # of an expert without tokens
                step = self.importance.learn(weight.detach(), gradient)
                self.learned[name] = self.learned[name].add_(step) if name in self.learned else step

    def penalty(self) -> Tensor | None:
        if self.gating is None or self.progress >= self.ramp:
            return None
        return self.gating.penalty(self._group_targets())

    def parameter_groups(self) -> list[dict[str, Any]]:
        groups = super().parameter_groups()
        if self.gating is None or not isinstance(self.importance, Gated):
            return groups
        levels = list(self.gating.levels().values())
        of_gates = set(map(id, levels))
        others = [{**group, "params": [p for p in group["params"] if id(p) not in of_gates]} for group in groups]
        return [*others, {"params": levels, "lr": self.importance.lr, "weight_decay": 0.0}]

    def finish(self) -> dict[str, float]:
        self._finalize()
        if self.gating is not None:
            self.gating.remove()
            self.gating = None
        return {"share": coverage(self.family, self.layers), "sparsity": sparsity(self.masks)}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        learned = {name: whole(total) for name, total in self.learned.items()}
        targets, unallocated = self.mask_update.targets, self.unallocated
        checkpoint["prune"] = {"learned": learned, "targets": targets, "unallocated": unallocated}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        saved = checkpoint["prune"]
        self.learned = {name: placed(total, latent(self.layers[name])) for name, total in saved["learned"].items()}
        self.mask_update.targets, self.unallocated = saved["targets"], saved["unallocated"]

    def _finalize(self) -> None:
        """Bring the masks to the whole target."""
        self._update(1.0)
        if self.gating is not None:
            self.gating.fold()

    def _group_targets(self) -> Tensor:
        """Target sparsity of each group of layers at the current step, [groups]."""
        share, targets = self.schedule(self.progress / self.ramp), self.mask_update.targets
        now = [share * targets[names[0]] for names in self.mask_update.groups()]
        return torch.tensor(now, device=self.family.device)

    @torch.no_grad()
    def _update(self, share: float) -> None:
        """Bring the masks to ``share`` of the target."""
        self._allocate()
        if not (short := self.mask_update.short_of(share)):
            return
        device, whole_model = self._device_for(self.family), self.pattern.across_layers
        if observes_inputs(self.importance) and not whole_model:
            layers, batches = set(chain.from_iterable(short)), list(self._calibration_batches())
            self.mask_update.block_by_block(layers, share, batches, device=device)
        else:
            whole_model = whole_model or isinstance(self.importance, Calibrated)
            with visiting(self.family.model, device) if whole_model else nullcontext():
                statistics = self._statistics()
                for names in counted(short, "mask"):
                    with nullcontext() if whole_model else visiting(place(self.layers[names[0]])[0], device):
                        self.mask_update.choose(names, share, statistics)
        self.mask_update.broadcast()

    def _layers_of(self, family: Family) -> dict[str, Layer]:
        """The layers to be pruned, by name.

        Raises:
            ValueError: There are none or too few, or the importance or the pattern does not take one of them.
        """
        layers = self.selector.weights(family)
        refusals.check_inputs(layers, self.importance)
        refusals.check_rows(layers, self.pattern)
        return layers

    def _regrow(self, reached: float, *, share: float) -> None:
        """Let ``share`` of the living weights change places with zeros, at the share ``reached`` of the target."""
        statistics = self._statistics()

        def dense() -> dict[str, Tensor]:
            batches = self.batches(self.global_step, self.global_step + 1, workers=0)
            return dense_gradients(self.family, self.layers, self.masks, batches, objective=self.parts)

        gradients = self.until_it_fits(lambda: self.agreed(dense), rows=self.batch_size)
        self.mask_update.regrow(reached, share=share, statistics=statistics, gradients=gradients)
        self.mask_update.broadcast(weights=True)

    def _allocate(self) -> None:
        """Give every layer its sparsity, once, before anything is masked."""
        if not self.unallocated or self.allocation is None:
            return
        statistics = self._statistics()
        (batch,) = training_batches(
            self.corpus, self.family, batch_size=self.allocation.rows, seed=self.seed, start=0, stop=1, workers=0,
            unlike=self.unlike,
        )  # fmt: skip

        def keep(name: str, sparsity: float) -> Tensor:
            return self.mask_update.candidate(name, sparsity, statistics)

        batch = {name: tensor.to(self.family.device) for name, tensor in batch.items()}
        with undisturbed(self.family):
            growth = self.allocation.scan(self.masks, keep=keep, loss=lambda: self._loss(batch).item())
        sizes = {name: mask.mask.numel() for name, mask in self.masks.items()}
        self.mask_update.targets = process_group.broadcast_object(self.allocation.shares(growth, sizes, self.sparsity))
        self.unallocated = False

    def _statistics(self) -> dict[str, Tensor]:
        """Layer -> what the importance observed or learned of it, [out, in]; empty where it scores weights alone."""
        if not isinstance(self.importance, Calibrated):
            learned = self.gating.levels() if self.gating is not None else self.learned
            return {name: matrix(self.layers[name], whole(statistic)) for name, statistic in learned.items()}
        batches = self._calibration_batches()
        return calibrate(self.importance, self.family, self.layers, batches, objective=self._loss)

    def _calibration_batches(self) -> Iterator[Batch]:
        assert isinstance(self.importance, Calibrated)
        rows = self.importance.rows
        return calibration_batches(self.corpus, self.family, rows=rows, seed=self.seed, unlike=self.unlike)

    def _loss(self, batch: Batch) -> Tensor:
        for module in (self.losses, *([] if self.teacher_family is None else [self.teacher_family.model])):
            nn.Module.to(module, self.family.device)  # after training, Lightning leaves both on another device
        return self.evaluate(batch)[0]
