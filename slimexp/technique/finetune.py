"""The base technique: train a model on a corpus with any losses and an optional teacher."""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar, Unpack

import torch
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PreTrainedConfig

from slimexp.data.base import Corpus
from slimexp.host import process_group
from slimexp.loss.base import Loss, Outputs, Ratio
from slimexp.model.base import Batch, Family
from slimexp.technique import automatic, random_state
from slimexp.technique.across_devices import across_devices
from slimexp.technique.automatic import AUTO, Conditions, outside_embeddings
from slimexp.technique.batches import training_batches
from slimexp.technique.sharding import Sharded
from slimexp.technique.teacher import check_vocabularies
from slimexp.technique.training import Training, check
from slimexp.weight.shard import whole


class NonFiniteLoss(ValueError):
    """Training met a NaN or an infinity."""


class Finetune(Sharded):
    """Train every weight.

    Subclasses override what else happens: ``prepare`` before training, ``on_step`` at every optimizer step, ``finish``
    after it.

    Args:
        training: See ``Training``.

    Attributes:
        attaches: Whether it leaves masks or quantizers on the weights.
        quantizes: Whether it leaves quantizers on them.
        compute_device: Device to compute on outside of training; ``None`` for the model's own.
        chosen: Key of a setting that was ``auto`` -> the value that was chosen for it.
    """

    attaches: ClassVar[bool] = False
    quantizes: ClassVar[bool] = False
    compute_device: torch.device | None = None
    chosen: dict[str, Any]

    def __init__(self, **training: Unpack[Training]) -> None:
        super().__init__()
        check(training)
        self.steps = training["steps"]
        self.batch_size: int = automatic.ROWS if training["batch_size"] == AUTO else training["batch_size"]
        self._batch_size = training["batch_size"]
        self.accumulate = training["accumulate"]
        self.clip_norm = training["clip_norm"]
        self.dropout = training["dropout"]
        self.workers = training["workers"]
        self.pad_to = training["pad_to"]
        self.seed = training["seed"]
        self.losses = nn.ModuleDict(training["losses"])
        self.teacher = training["teacher"]
        self._optimizer = training["optimizer"]
        self._lr_scheduler = training["lr_scheduler"]
        self.chosen = {}

    @property
    def needs_teacher(self) -> bool:
        """Whether any loss reads a teacher."""
        return any(loss.needs_teacher for loss in self._losses())

    @property
    def needs_hidden(self) -> bool:
        """Whether any loss reads hidden states."""
        return any(loss.needs_hidden for loss in self._losses())

    @property
    def progress(self) -> float:
        """Share of the optimizer steps that are done, in [0, 1]."""
        return self.global_step / self.steps if self.steps else 1.0

    @property
    def alters(self) -> bool:
        """Whether the model that is trained computes something else than the one that came in."""
        return self.attaches

    @property
    def row_multiple(self) -> int:
        """Number that the length of its layers' rows must be a multiple of; 1 where any length will do."""
        return 1

    @property
    def cuts(self) -> Mapping[str, int | None]:
        """Width that it changes (``heads``, ``ffn``, ``hidden``) -> units that it leaves, ``None`` if it chooses."""
        return {}

    def require_row_multiple(self, multiple: int) -> None:
        """Have it leave rows whose length is a multiple of ``multiple``; called where it chooses their length."""

    def adapt(self, config: PreTrainedConfig, given: Conditions) -> None:
        """Choose values for settings that are ``auto``; see ``chosen``.

        Args:
            config: Configuration of the model that the run starts from.
            given: What the values depend on.
        """
        self._settle(given)
        if self._batch_size == AUTO:
            self.batch_size = self._batch_size = automatic.batch_size(given)
            self.chosen["batch_size"] = self.batch_size

    def adapt_rows(self, outline: Family, lengths: Mapping[str, int]) -> None:
        """The same for settings that depend on the rows of its layers.

        Args:
            outline: The run's model, on the meta device.
            lengths: Name of a layer -> length of its rows where an earlier stage changes it to a known one.
        """

    def _settle(self, given: Conditions) -> None:
        self._optimizer, self._lr_scheduler, chosen = automatic.settled(
            self._optimizer, self._lr_scheduler, given=given, steps=self.steps
        )
        self.chosen |= chosen

    def validate(self, config: PreTrainedConfig, before: Sequence["Finetune"]) -> None:
        """Refuse, before anything is trained, what this stage cannot do.

        Args:
            config: Configuration of the model that the run starts from.
            before: The stages before this one, in order.

        Raises:
            ValueError: Says what the stage cannot do, and the way out.
        """

    def inspect(self, outline: Family) -> None:
        """Refuse, before anything is measured, a model whose layers this stage cannot compress.

        Args:
            outline: The model that comes in, on the meta device: its layers have names and sizes, and no values.

        Raises:
            ValueError: Names the layer, and the way out.
        """

    def inspect_rows(self, outline: Family, changed: Collection[str]) -> None:
        """Refuse layers whose rows do not divide, where an earlier stage changes the model before this one sees it.

        Args:
            outline: The run's model before that stage, on the meta device.
            changed: Names of layers whose rows will have another length.

        Raises:
            ValueError: Names the layer, and the way out.
        """

    def prepare(self, family: Family, corpus: Corpus, teacher: Family | None) -> None:
        """Take over the model before training. Subclasses may change it here.

        Args:
            family: The model to train; it is changed in place.
            corpus: The text to train on.
            teacher: The teacher, in eval mode; present where ``needs_teacher``.

        Raises:
            ValueError: The teacher reads another vocabulary.
        """
        if teacher is not None:
            check_vocabularies(family.tokenizer, teacher.tokenizer)
        self.family = family
        self.corpus = corpus
        self.model = family.model
        # A Family is no nn.Module, so the teacher stays out of the module tree and of every checkpoint.
        self.teacher_family = teacher

    def compile(self) -> None:
        """Put the model, and the teacher's, through ``torch.compile``; the losses stay as they are."""
        self.model.compile()
        if self.teacher_family is not None:
            self.teacher_family.model.compile()

    def on_step(self, progress: float) -> None:
        """Called before the forward pass of every optimizer step."""

    def on_gradients(self) -> None:
        """Called before every optimizer step, with its gradients, which are finite and clipped."""

    def finish(self) -> dict[str, float]:
        """Called after the last step.

        Returns:
            ``share`` of the model's parameters that the technique touched, and figures of what it reached.
        """
        return {"share": 1.0}

    def train_dataloader(self) -> DataLoader[Batch]:
        return training_batches(
            self.corpus,
            self.family,
            batch_size=self.batch_size,
            seed=self.seed,
            start=self.global_step * self.accumulate,
            stop=self.steps * self.accumulate,
            workers=self.workers,
            multiple=self.pad_to,
            share=(process_group.rank(), process_group.size()),
        )

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW-like optimizers decay matrices only, not biases, norms or scales."""
        self._settle(Conditions(parameters=outside_embeddings(self.model)))  # where no pipeline did
        optimizer = self._optimizer([group for group in self.parameter_groups() if group["params"]])
        lr_scheduler = self._lr_scheduler(optimizer=optimizer, num_training_steps=self.steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": lr_scheduler, "interval": "step"}}

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Groups of trained parameters, with settings that differ from the optimizer's own."""
        trained = [p for p in self.parameters() if p.requires_grad]
        return [
            {"params": [p for p in trained if p.ndim > 1]},
            {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
        ]

    def configure_gradient_clipping(self, optimizer: Any, *_: Any, **__: Any) -> None:
        norm = whole(nn.utils.clip_grad_norm_(self.parameters(), self.clip_norm or math.inf))
        if norm.isfinite():
            self.on_gradients()
        elif self.trainer.precision != "16-mixed":  # its loss scaler skips such steps by itself
            raise NonFiniteLoss(_not_finite("norm of the gradient", norm.item(), self.global_step))

    def on_fit_start(self) -> None:
        self.model.train(self.dropout)  # the modes of a transformer differ in dropout alone
        if self.teacher_family is not None:
            nn.Module.to(self.teacher_family.model, self.device)
        self.share_buffers()
        self._rng = getattr(self, "_rng", {} if process_group.rank() else None)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        if batch_idx % self.accumulate == 0:
            self.on_step(self.progress)
        terms = across_devices(self.ratios(batch))
        total = self.total(terms)
        if not math.isfinite(total.item()):
            raise NonFiniteLoss(_not_finite("loss", total.item(), self.global_step))
        logged_every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if logged_every and (self.global_step + 1) % logged_every == 0 and batch_idx % self.accumulate == 0:
            self._log(total, terms)
        return total

    def terms(self, batch: Batch) -> dict[str, Tensor]:
        """Name -> loss term on one batch, unweighted, a scalar."""
        return {name: ratio.mean() for name, ratio in self.ratios(batch).items()}

    def ratios(self, batch: Batch) -> dict[str, Ratio]:
        """Name -> loss term on one batch, or on this device's share of it, as sums."""
        hidden = self.needs_hidden
        teacher = self._teacher_outputs(batch, hidden) if self.teacher_family is not None else None
        student = Outputs(*self.family.forward(batch, hidden=hidden))
        return {
            name: loss(student, teacher, batch["labels"], self.progress)
            for name, loss in zip(self.losses, self._losses(), strict=True)
        }

    def total(self, terms: Mapping[str, Tensor]) -> Tensor:
        """The objective: the weighted sum of ``terms``."""
        weights = [loss.weight for loss in self._losses()]
        return torch.stack([weight * term for weight, term in zip(weights, terms.values(), strict=True)]).sum()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["rng"] = random_state.save(self.device)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._rng = checkpoint["rng"]

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Dropout goes on where the checkpoint left it (restored here because starting a loader draws numbers)."""
        if (rng := self.__dict__.pop("_rng", None)) is not None:
            random_state.restore(rng, self.device, seed=[self.seed, self.global_step])

    def _device_for(self, family: Family) -> torch.device:
        return self.compute_device or family.device

    @torch.inference_mode()
    def _teacher_outputs(self, batch: Batch, hidden: bool) -> Outputs:
        assert self.teacher_family is not None
        self.teacher_family.model.eval()
        return Outputs(*self.teacher_family.forward(batch, hidden=hidden))

    def _losses(self) -> list[Loss]:
        return list(self.losses.values())  # type: ignore[arg-type]

    def _log(self, total: Tensor, terms: Mapping[str, Tensor]) -> None:
        values = {"lr": self.trainer.optimizers[0].param_groups[0]["lr"]}
        if len(terms) > 1:
            values |= {name: term.detach() for name, term in terms.items()}
        for loss in self._losses():
            values |= loss.scheduled(self.progress)
        self.log_dict(values)
        self.log("loss", total.detach(), prog_bar=True)


def _not_finite(what: str, value: float, step: int) -> str:
    return (
        f"{what} is {value} at step {step}: lower optimizer.lr or clip_norm, which trains this stage anew; "
        "no artifact is written, and the last checkpoint before it is kept for a look"
    )
