"""Losses: quotients of sums over the outputs of the student and, for some, of a teacher."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from slimexp.loss.sample import Sample
from slimexp.schedule import Schedule

IGNORE = -100  # label that no loss and no metric counts (the default of torch's cross_entropy)
LEAST_TEMPERATURE = 0.01  # a softmax at less is the likeliest token alone, and gradients are divided by it
_LEAST = 1e-12  # of a denominator: a numerator over nothing is 0, and so is its quotient

Scheduled = Mapping[str, float | Tensor]  # name of a scheduled quantity -> its value, 0-dim where it is a tensor


@dataclass(frozen=True)
class Stack:
    """What a loss may have to know of a stack of blocks before it is trained with.

    Attributes:
        width: Number of channels of its hidden states.
        attention: Widths of queries, keys and values of each block, in order; ``None`` for a block where they cannot be
            told apart.
    """

    width: int
    attention: Sequence[tuple[int, int, int] | None]

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return len(self.attention)


Stacks = Mapping[str, Stack]  # stack name -> what it is like


@dataclass(frozen=True)
class Attention:
    """What the self-attention of a block reads tokens as, as it leaves the projections: before norms and rotations.

    Attributes:
        queries: [B, T, D], all heads side by side.
        keys: [B, T, D'].
        values: [B, T, D'].
        sees: Whether a token (row) may see another, [B, T, T]; padding sees nothing, any other token itself.
    """

    queries: Tensor
    keys: Tensor
    values: Tensor
    sees: Tensor


@dataclass(frozen=True)
class Outputs:
    """Outputs of a forward pass.

    Attributes:
        logits: [B, T, V] aligned with the labels, or [B, C] for a classifier.
        hidden: Stack name -> outputs of the embedding and of every block at the N tokens that are no padding, each
            [N, D], and maybe at some that are, all zeros there; empty unless a loss needs them.
        attention: Stack name and index of a block, as it was asked for -> its self-attention; those that a loss needs.
        sample: Of a teacher, in place of logits: samples of its distributions at all B T labels.
        labels: [B, T] of a teacher that reads the texts in tokens of its own; ``None`` where they are the student's.
        spans: [B, T] where teacher and student read unlike tokens: number of the span of its row's text that each label
            is of, the same of both models, and -1 for a label of none. ``None`` where each label is a span.
    """

    logits: Tensor
    hidden: dict[str, tuple[Tensor, ...]] = field(default_factory=dict)
    attention: Mapping[tuple[str, int], Attention] = field(default_factory=dict)
    sample: Sample | None = None
    labels: Tensor | None = None
    spans: Tensor | None = None


@dataclass(frozen=True)
class Ratio:
    """Sums over a batch whose quotients make up a term of the objective.

    A batch may be in parts, on several devices or one after the other: the sums of the parts add up, which their
    quotients do not.

    Attributes:
        numerator: [K], with gradient.
        denominator: [K], without gradient; 0 only where the numerator is.
    """

    numerator: Tensor
    denominator: Tensor

    def mean(self) -> Tensor:
        """The term, a scalar: the mean of the K quotients; 0 (with gradient) where nothing was summed."""
        return (self.numerator / self.denominator.clamp(min=_LEAST)).mean()


class Loss(nn.Module, ABC):
    """A term of the training objective.

    Args:
        weight: Factor of the term in the objective, >= 0; a schedule for one that changes with training progress.

    Attributes:
        needs_teacher: Whether ``forward`` reads ``teacher``.
        needs_hidden: Whether ``forward`` reads ``Outputs.hidden``.
        needs_width: Whether hidden states of student and teacher must be equally wide.
        needs_logits: Whether ``forward`` reads ``Outputs.logits``; where no loss does, they are not computed.
        student_block: Index of the student's block whose ``Outputs.attention`` it reads, -1 for the last; ``None``
            where it reads none.
        teacher_block: The same of the teacher.
        learns: Whether it has parameters, which are trained with the student and dropped with the loss.
        aligns: Whether teacher and student may have unlike tokenizers: it compares ``Outputs.spans``.
    """

    needs_teacher: bool = False
    needs_hidden: bool = False
    needs_width: bool = False
    needs_logits: bool = True
    student_block: int | None = None
    teacher_block: int | None = None
    learns: bool = False
    aligns: bool = False

    def __init__(self, *, weight: float | Schedule) -> None:
        super().__init__()
        ends = (weight.start, weight.end) if isinstance(weight, Schedule) else (weight,)
        if min(ends) < 0:
            raise ValueError(f"loss weight must be >= 0, got {min(ends)}")
        self.weight = weight

    def weight_at(self, progress: float) -> float:
        """The weight at ``progress``, in [0, 1]."""
        return self.weight(progress) if isinstance(self.weight, Schedule) else self.weight

    def prepare(self, student: Stacks, teacher: Stacks, *, seed: int) -> None:
        """Take note of the models before anything is trained; parameters of its own are made here.

        Args:
            student: The student's stacks.
            teacher: The teacher's stacks; empty where there is no teacher.
            seed: Seed of the parameters.

        Raises:
            ValueError: The loss does not fit the models.
        """

    @property
    def compares_blocks(self) -> bool:
        """Whether it reads of blocks what is in no logits."""
        return self.needs_hidden or self.student_block is not None

    @abstractmethod
    def forward(self, student: Outputs, teacher: Outputs | None, labels: Tensor, progress: float) -> Ratio:
        """The unweighted term, as sums over labels other than -100 (for hidden states, over tokens but padding).

        Args:
            student: Outputs of the student, with gradient.
            teacher: Outputs of the teacher, without gradient; ``None`` only where ``needs_teacher`` is false.
            labels: [B, T] or [B]; -100 is ignored.
            progress: Optimizer step / total steps, in [0, 1].
        """

    def scheduled(self, progress: float) -> dict[str, float]:
        """Quantities that a schedule gives at ``progress``, which are logged as curves: name -> value."""
        return {}


class LabelLoss(Loss):
    """A mean over labels, each of which has logits of its own: any part of the labels can be summed by itself.

    Attributes:
        reads_samples: Whether ``of_sample`` estimates it, without bias, from a sample of the teacher's distribution.
    """

    reads_samples: bool = False

    def forward(self, student: Outputs, teacher: Outputs | None, labels: Tensor, progress: float) -> Ratio:
        return self.of_outputs(student, teacher, labels, self.scheduled(progress))

    def of_outputs(self, student: Outputs, teacher: Outputs | None, labels: Tensor, scheduled: Scheduled) -> Ratio:
        """As ``forward``, given the quantities that ``scheduled`` names."""
        taught = None if teacher is None else teacher.sample or teacher.logits.flatten(0, -2)
        total = self.of_logits_or_sample(student.logits.flatten(0, -2), taught, labels.flatten(), scheduled)
        return Ratio(total[None], counted_labels(labels)[None])

    def of_logits_or_sample(
        self, student: Tensor, teacher: Tensor | Sample | None, labels: Tensor, scheduled: Scheduled
    ) -> Tensor:
        """``of_logits``, or ``of_sample`` where the teacher is given by samples."""
        if not isinstance(teacher, Sample):
            return self.of_logits(student, teacher, labels, scheduled)
        if not self.needs_teacher:
            return self.of_logits(student, None, labels, scheduled)
        return self.of_sample(student, teacher, labels, scheduled)

    def of_sample(self, student: Tensor, teacher: Sample, labels: Tensor, scheduled: Scheduled) -> Tensor:
        """An unbiased estimate of ``of_logits``, in value and gradient, where ``reads_samples``.

        Args:
            student: Logits of the student, [N, V].
            teacher: Samples of the teacher's N distributions.
            labels: [N]; -100 is ignored.
            scheduled: The quantities that ``scheduled`` names.
        """
        raise NotImplementedError(f"{type(self).__name__} is not estimated from samples")

    @abstractmethod
    def of_logits(self, student: Tensor, teacher: Tensor | None, labels: Tensor, scheduled: Scheduled) -> Tensor:
        """The sum of the term over labels other than -100, a scalar in float32.

        No branch depends on values, so that it can be compiled once and be part of a CUDA graph.

        Args:
            student: Logits of the student, [N, V].
            teacher: Logits of the teacher, [N, V'], without gradient; ``None`` only where ``needs_teacher`` is false.
            labels: [N]; -100 is ignored.
            scheduled: The quantities that ``scheduled`` names.
        """


def scheduled(losses: Mapping[str, Loss], progress: float) -> dict[str, float]:
    """Curves of what schedules give at ``progress``: quantities by their name, weights by that of their loss.

    Where losses disagree on a quantity, its name has that of the loss before it.
    """
    values = {(name, key): value for name, loss in losses.items() for key, value in loss.scheduled(progress).items()}
    of_key: dict[str, set[float]] = {}
    for (_, key), value in values.items():
        of_key.setdefault(key, set()).add(value)
    curves = {f"{name}_{key}" if len(of_key[key]) > 1 else key: value for (name, key), value in values.items()}
    weights = {name: loss.weight for name, loss in losses.items() if isinstance(loss.weight, Schedule)}
    return curves | {f"{name}_weight": weight(progress) for name, weight in weights.items()}


def check_temperature(temperature: float | Schedule) -> None:
    """Refuse a temperature that is too low at any time.

    Raises:
        ValueError: It is below ``LEAST_TEMPERATURE``.
    """
    ends = (temperature(0.0), temperature(1.0)) if isinstance(temperature, Schedule) else (temperature,)
    if not (lowest := min(ends)) >= LEAST_TEMPERATURE:
        raise ValueError(
            f"temperature must be >= {LEAST_TEMPERATURE} throughout, got {lowest}: 1 compares the models' own "
            "distributions, less sharpens them"
        )


def counted_labels(labels: Tensor) -> Tensor:
    """Number of labels other than -100, a scalar in float32."""
    return (labels != IGNORE).sum(dtype=torch.float32)
