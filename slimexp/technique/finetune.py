"""The base technique: train a model on a corpus with any losses and an optional teacher."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any, Unpack

import torch
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PreTrainedConfig

from slimexp.data.base import Corpus
from slimexp.host import process_group
from slimexp.loss.base import scheduled
from slimexp.model.base import Batch, Family
from slimexp.model.cache import rounds_cache
from slimexp.model.recomputed import blocks_recomputed
from slimexp.teacher_cache.cached import CachedTeacher
from slimexp.technique import packing, random_state
from slimexp.technique.automatic import ROWS, Adaptive, Conditions, outside_embeddings
from slimexp.technique.batches import training_batches
from slimexp.technique.contract import Contract
from slimexp.technique.finite import FiniteCheck
from slimexp.technique.objective import Objective, counted
from slimexp.technique.optimization import clip, fused
from slimexp.technique.parts import Divisible
from slimexp.technique.step_graphs import StepGraphs
from slimexp.technique.teacher import fit_losses, low_precision, reading_like, reads_alike
from slimexp.technique.training import Execution, Training, check
from slimexp.weight.shard import whole

_SHARES = 4  # of the labels of a batch that count, where passes are recorded: each number of them is another recording


class Finetune(Adaptive, Contract, Divisible):
    """Train every weight.

    Subclasses override what else happens: ``prepare`` before, ``on_step`` at every optimizer step, ``finish`` after.

    Args:
        training: See ``Training``.

    Attributes:
        compute_device: Device to compute on outside of training; ``None`` for the model's own.
        choice: File that keeps what the stage chose to retain, for a training that is resumed; ``None`` for none.
        execution: How its steps are executed; the trainer's choice.
        cached: What stands in for the teacher, where ``cache`` keeps its outputs.
    """

    compute_device: torch.device | None = None
    choice: Path | None = None
    execution: Execution = Execution()
    cached: CachedTeacher | None = None

    def __init__(self, **training: Unpack[Training]) -> None:
        super().__init__()
        check(training)
        self.steps = training["steps"]
        self._batch_size = training["batch_size"]
        self.batch_size = ROWS if isinstance(self._batch_size, str) else self._batch_size
        self.accumulate = training["accumulate"]
        self.clip_norm = training["clip_norm"]
        self.dropout = training["dropout"]
        self.workers = training["workers"]
        self._pad_to = training["pad_to"]
        self.packing = training["packing"]
        self.seed = training["seed"]
        self.losses = nn.ModuleDict(training["losses"])
        self.teacher = training["teacher"]
        self.cache = training.get("cache")
        self.cache_figures: dict[str, float] = {}
        self.completion = training.get("completion")
        self._optimizer = training["optimizer"]
        self._lr_scheduler = training["lr_scheduler"]
        self._objective: Objective | None = None
        self._finite = FiniteCheck()
        self._within_fit = ExitStack()
        self.chosen = {}

    @property
    def recordable(self) -> bool:
        """Whether a pass depends on nothing but tensors, switches of attachments, and what losses schedule."""
        # makes a new cache in every pass; follows numbers of the host; draws on the host which layers there are
        varies = rounds_cache(self.model) or self.penalty() is not None or self.drops_layers(self.model.config)
        return not varies

    @property
    def records(self) -> bool:
        known = self.objective.of_labels or process_group.size() == 1  # what a device divides by, before its pass
        # what is computed anew asks for the state of random numbers, which a recording has not
        return self.execution.recorded and not self.execution.recomputed and self.recordable and known

    @property
    def maps_weights(self) -> bool:
        return type(self).prepare is Finetune.prepare

    @property
    def progress(self) -> float:
        """Share of the optimizer steps that are done, in [0, 1]."""
        return self.global_step / self.steps if self.steps else 1.0

    @property
    def pad_to(self) -> int:
        """Number that lengths are padded to a multiple of."""
        return self._pad_to or self.execution.pad_to

    def validate(self, config: PreTrainedConfig, before: Sequence["Finetune"]) -> None:
        """Refuse, before anything is trained, what this stage cannot do.

        Args:
            config: Configuration of the model that the run starts from.
            before: The stages before this one, in order.

        Raises:
            ValueError: Says what the stage cannot do, and the way out.
        """

    def prepare(self, family: Family, corpus: Corpus, teacher: Family | None) -> None:
        """Take over the model before training. Subclasses may change it here.

        Args:
            family: The model to train; it is changed in place.
            corpus: The text to train on.
            teacher: The teacher, in eval mode; present where ``needs_teacher``.

        Raises:
            ValueError: The teacher reads another vocabulary, a loss does not fit the two, or rows are to be packed and
                cannot be.
        """
        self.unlike = None
        if teacher is not None:
            teacher = reading_like(family, teacher, self.named_losses)
            self.unlike = None if reads_alike(family.tokenizer, teacher.tokenizer) else teacher
        self.family = family
        self.corpus = corpus
        self.model = family.model
        # A Family is no nn.Module, so the teacher stays out of the module tree and of every checkpoint.
        self.teacher_family = teacher
        models = [family] if teacher is None else [family, teacher]
        fit_losses(self._losses(), family, teacher, seed=self.seed)
        self.packs = self.steps > 0 and self.unlike is None and packing.chosen(self.packing, corpus, models)

    def on_step(self, progress: float) -> None:
        """Called before the forward pass of every optimizer step."""

    def on_gradients(self) -> None:
        """Called before every optimizer step, with its gradients, which are clipped.

        They are finite but in a run that is about to end, of which nothing more is kept.
        """

    def finish(self) -> dict[str, float]:
        """Called after the last step.

        Returns:
            ``share`` of the model's parameters that the technique touched, and figures of what it reached.
        """
        return {"share": 1.0}

    def train_dataloader(self) -> DataLoader[Batch]:
        devices = self.trainer.num_devices if self._trainer is not None else 1
        share = (process_group.rank(), process_group.size())
        return self.batches(self.global_step, self.steps, workers=self.workers, devices=devices, share=share)

    def batches(self, start: int, stop: int, **loading: Any) -> DataLoader[Batch]:
        """Batches of the steps ``start`` to ``stop - 1``.

        Args:
            start: The first step.
            stop: One past the last step.
            loading: How ``training_batches`` loads them.
        """
        return training_batches(
            self.corpus,
            self.family,
            batch_size=self.batch_size,
            seed=self.seed,
            start=start * self.accumulate,
            stop=stop * self.accumulate,
            multiple=self.pad_to,
            packing=self.packs,
            unlike=self.unlike,
            epochs=None if self.cache is None else self.cache.epochs,
            taught=None if self.cached is None else self.cached.taught,
            **loading,
        )

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW-like optimizers decay matrices only, not biases, norms or scales."""
        self.settle(Conditions(parameters=outside_embeddings(self.model)))  # where no pipeline did
        groups = [group for group in self.parameter_groups() if group["params"]]
        # a fused one would undo the scaling of float16 itself, after gradients are clipped
        able = self.execution.fused and self.trainer.precision != "16-mixed"
        optimizer = self._optimizer(groups, **(fused(self._optimizer, groups) if able else {}))
        lr_scheduler = self._lr_scheduler(optimizer=optimizer, num_training_steps=self.steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": lr_scheduler, "interval": "step"}}

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Groups of trained parameters, with settings that differ from the optimizer's own."""
        trained = [p for p in self.parameters() if p.requires_grad]
        vectors = {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0}
        return [{"params": [p for p in trained if p.ndim > 1]}, vectors]

    @cached_property
    def _all_parameters(self) -> list[nn.Parameter]:
        """Those of a training, looked for at its first step alone: in a model of 30 blocks that takes a millisecond."""
        return list(self.parameters())

    def configure_gradient_clipping(self, optimizer: Any, *_: Any, **__: Any) -> None:
        norm = whole(clip(self._all_parameters, self.clip_norm))
        if self.trainer.precision == "16-mixed":  # its loss scaler skips steps that are not finite by itself
            if norm.isfinite():
                self.on_gradients()
            self._finite.look(norm, self.global_step)
            return
        self._finite.norm(norm, self.global_step)
        self.on_gradients()

    def on_fit_start(self) -> None:
        self.model.train(self.dropout)  # the modes of a transformer differ in dropout alone
        if self.teacher_family is not None:
            nn.Module.to(self.teacher_family.model, self.device)
        self.broadcast_buffers()
        self.start_random_state()
        half = low_precision(str(self.trainer.precision), self.device, sharded=self._are_shards)
        if self.cached is not None:
            self.cached.form.to(self.device, half)
            self._objective = None  # which holds what was left of the teacher where it was
        accelerated = self.objective.accelerated(compiled=self.execution.compiled, teacher_type=half)
        self._within_fit.enter_context(accelerated)
        if self.execution.recomputed:
            self._within_fit.enter_context(blocks_recomputed(self.family))
        if self.records:
            self._graphs = self._step_graphs()

    def _step_graphs(self) -> StepGraphs:
        teacher = [] if self.teacher_family is None else [self.teacher_family.model]
        modules = [self.model, self.losses, *teacher, *([] if self.cached is None else self.cached.modules)]
        return StepGraphs(self.compute, modules, constants=lambda: self.objective.constants(self.progress))

    def release(self) -> None:
        """Undo what was done to the models for the training."""
        self._graphs, self._batches = None, []
        if self.completion is not None:
            self.completion.release()
        self._within_fit.close()

    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Have targets written where the student writes them, and add what is known of a batch while it is on the host.

        So nothing waits for the device to count.
        """
        if self.completion is not None:
            number = self.trainer.fit_loop.epoch_loop.batch_progress.current.ready
            if self.completion.writes(seed=self.seed, number=number, progress=self.progress):
                self._finite.settle()  # nobody draws from weights that are not finite
            batch = self.completion.batch(
                batch, self.family, seed=self.seed, number=number, progress=self.progress, multiple=self.pad_to
            )
        of_decoder = ["labels"] if self.model.config.is_encoder_decoder else []
        read = ["attention_mask", *of_decoder] if self.needs_hidden else []
        return counted(
            batch, read=read, shares=_SHARES if self._graphs is not None and not self._graphs.gave_up else None
        )

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        try:
            if batch_idx % self.accumulate == 0:
                with torch.compiler.set_stance("force_eager") if self.execution.compiled else nullcontext():
                    self.on_step(self.progress)  # calibration hooks into blocks, which compiled ones do not see
            total, terms = self.differentiated(batch, first=batch_idx % self.accumulate == 0)
        except ValueError:
            self._finite.settle()  # the cause, where a number was not finite some steps ago
            raise
        self._finite.loss(total, self.global_step)
        logged_every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if logged_every and (self.global_step + 1) % logged_every == 0 and batch_idx % self.accumulate == 0:
            self._log(total, terms)
        return total

    @property
    def objective(self) -> Objective:
        """The objective of the model as it stands."""
        parts = (self.losses, self.family, self.teacher_family, self.cached)
        if self._objective is None or self._objective.parts != parts:
            self._objective = Objective(
                self.losses, self.family, self.teacher_family, cached=self.cached,
                logits_at_once=self.execution.logits_at_once, shared=self.shared_denominator,
            )  # fmt: skip
        return self._objective

    def on_train_end(self) -> None:
        self._finite.settle()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._finite.settle()  # nothing is written after a step that was not finite
        checkpoint["rng"] = random_state.save(self.device)
        checkpoint["rows_at_once"] = self.rows_at_once

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        known = [rows for rows in (self.rows_at_once, checkpoint.get("rows_at_once")) if rows]
        self.rows_at_once = min(known, default=None)

    def _device_for(self, family: Family) -> torch.device:
        return self.compute_device or family.device

    def _log(self, total: Tensor, terms: Mapping[str, Tensor]) -> None:
        total, *shown = self.means([total, *terms.values()])
        terms = dict(zip(terms, shown, strict=True))
        values = {"lr": self.trainer.optimizers[0].param_groups[0]["lr"], **(terms if len(terms) > 1 else {})}
        values |= scheduled(self.named_losses, self.progress)
        self.log_dict(values | ({} if self.completion is None else self.completion.scheduled(self.progress)))
        self.log("loss", total.detach(), prog_bar=True)
