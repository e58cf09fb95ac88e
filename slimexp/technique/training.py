"""Constructor arguments that every technique takes, and the values that they may have."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NotRequired, TypedDict

import torch

from slimexp.completion.base import Completion
from slimexp.loss.base import Loss
from slimexp.model.base import Source
from slimexp.teacher_cache.base import TeacherCache
from slimexp.technique import optimization
from slimexp.technique.automatic import AUTO, Auto

LEAST = {"steps": 0, "batch_size": 1, "accumulate": 1, "clip_norm": 0, "workers": 0, "pad_to": 1}
AUTOMATIC = ("batch_size", "workers")  # of those that may be ``auto``


@dataclass(frozen=True, kw_only=True)
class Execution:
    """How steps are executed; it changes results by no more than rounding, but for padding.

    Attributes:
        pad_to: What lengths are padded to a multiple of, where the technique does not say.
        compiled: Whether blocks and losses go through ``torch.compile``.
        fused: Whether an optimizer that can do so updates all weights in one kernel, on a GPU.
        logits_at_once: Number of logits in memory at once, of student and of teacher.
        recorded: Whether passes are recorded as CUDA graphs, and replayed.
        recomputed: Whether activations within blocks of the student are computed anew in the backward pass.
    """

    pad_to: int = 1
    compiled: bool = False
    fused: bool = False
    logits_at_once: int = 2**22
    recorded: bool = False
    recomputed: bool = False


class Training(TypedDict):
    """Constructor arguments that every technique takes.

    Attributes:
        steps: Number of optimizer steps; 0 trains nothing and makes a technique one-shot.
        batch_size: Number of rows per batch; ``"auto"``: 32, or as many as the memory holds.
        accumulate: Number of batches per optimizer step; each weighs the same, however many tokens it has.
        clip_norm: Largest norm of the gradient; 0 for no limit.
        dropout: Whether the model's dropout is active while it trains.
        workers: Number of processes that load data; 0 loads in the training process, ``auto`` suits the machine.
        pad_to: Lengths are padded to a multiple of it (128 gives a compiler few distinct shapes), up to ``max_length``;
            ``None`` for the trainer's.
        packing: Whether several texts share a row of ``max_length`` tokens, kept apart by positions and masks; ``auto``
            where the text is causal, the same in every epoch, and the model keeps texts apart.
        seed: Seed of the order of the data.
        losses: Name -> term of the objective.
        optimizer: Partial of a torch optimizer, awaiting the parameters; an ``lr`` that is ``"auto"`` suits the model.
        lr_scheduler: Partial of a learning-rate schedule, awaiting optimizer and ``num_training_steps``;
            ``num_warmup_steps`` may be ``"auto"``.
        teacher: Where the teacher comes from; ``None`` for the run's dense model, if a loss needs one.
        cache: How its outputs are kept for other trainings on the same text; absent or ``None``: they are not.
        completion: Who writes targets in place of the gold ones; absent or ``None``: nobody.
    """

    steps: int
    batch_size: int | Auto
    accumulate: int
    clip_norm: float
    dropout: bool
    workers: int | Auto
    pad_to: int | None
    packing: bool | Auto
    seed: int
    losses: Mapping[str, Loss]
    optimizer: Callable[..., torch.optim.Optimizer]
    lr_scheduler: Callable[..., torch.optim.lr_scheduler.LRScheduler]
    teacher: Source | None
    cache: NotRequired[TeacherCache | None]
    completion: NotRequired[Completion | None]


def check(training: Training) -> None:
    """Refuse values that no technique can train with.

    Raises:
        ValueError: A number is too small, a loss is none or missing, the optimizer or the schedule refuses its
            settings, or no loss reads the teacher.
    """
    for name, least in LEAST.items():
        value = training[name]  # type: ignore[literal-required]
        if (value is None and name == "pad_to") or (value == AUTO and name in AUTOMATIC):
            continue
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or (isinstance(value, float) and name != "clip_norm"):
            kind = "a number" if name == "clip_norm" else "a whole number"
            raise ValueError(f"{name} must be {kind} >= {least}, got {value}")
        if value < least:
            raise ValueError(f"{name} must be >= {least}, got {value}")
    for name, loss in training["losses"].items():
        if not isinstance(loss, Loss):
            raise ValueError(
                f"losses.{name} must be a loss, got {loss!r}: ~pipeline.<stage>.losses.{name} leaves it out"
            )
    optimization.check(training["optimizer"], training["lr_scheduler"], steps=training["steps"])
    if training["steps"] and not training["losses"]:
        raise ValueError(
            "training needs at least one loss: add one, e.g. +loss@pipeline.<stage>.losses.ce=cross_entropy"
        )
    # a schedule goes one way, so that it is 0 throughout where both of its ends are
    if training["steps"] and not any(loss.weight_at(end) for loss in training["losses"].values() for end in (0.0, 1.0)):
        raise ValueError(
            "the weights of all losses are 0, so that nothing would be learned: give one of them a weight "
            f"(losses.{next(iter(training['losses']))}.weight=1), or set steps=0 to train nothing"
        )
    losses, completion = training["losses"].values(), training.get("completion")
    if completion is not None:
        completion.check_losses(losses)
    writes = completion is not None and completion.needs_teacher
    if training["teacher"] is not None and not writes and not any(loss.needs_teacher for loss in losses):
        raise ValueError(
            "no loss reads the teacher: add one that does, e.g. +loss@pipeline.<stage>.losses.kl=kl, or drop it"
        )
    if (cache := training.get("cache")) is not None:
        cache.check(training["losses"])
        if completion is not None and completion.on_policy:
            raise ValueError(
                "a teacher cache keeps what the teacher says of the corpus, and the student writes texts of its own: "
                "leave out the cache (~pipeline.<stage>.cache) or the completion (~pipeline.<stage>.completion)"
            )
