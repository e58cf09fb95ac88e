"""Losses: quotients of sums over the outputs of the student and, for some, of a teacher."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

IGNORE = -100  # label that no loss and no metric counts (the default of torch's cross_entropy)
_LEAST = 1e-12  # of a denominator: a numerator over nothing is 0, and so is its quotient

Scheduled = Mapping[str, float | Tensor]  # name of a scheduled quantity -> its value, 0-dim where it is a tensor


@dataclass(frozen=True)
class Outputs:
    """Outputs of a forward pass.

    Attributes:
        logits: [B, T, V] aligned with the labels, or [B, C] for a classifier.
        hidden: Stack name -> outputs of the embedding and of every block at the N tokens that are no padding, each
            [N, D], and maybe at some that are, all zeros there; empty unless a loss needs them.
        labels: [B, T] of a teacher that reads the texts in tokens of its own; ``None`` where they are the student's.
        spans: [B, T] where teacher and student read unlike tokens: number of the span of its row's text that each label
            is of, the same of both models, and -1 for a label of none. ``None`` where each label is a span.
    """

    logits: Tensor
    hidden: dict[str, tuple[Tensor, ...]] = field(default_factory=dict)
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
        weight: Factor of the term in the objective, >= 0.

    Attributes:
        needs_teacher: Whether ``forward`` reads ``teacher``.
        needs_hidden: Whether ``forward`` reads ``Outputs.hidden``.
        needs_logits: Whether ``forward`` reads ``Outputs.logits``; where no loss does, they are not computed.
        aligns: Whether teacher and student may have unlike tokenizers: it compares ``Outputs.spans``.
    """

    needs_teacher: bool = False
    needs_hidden: bool = False
    needs_logits: bool = True
    aligns: bool = False

    def __init__(self, *, weight: float) -> None:
        super().__init__()
        if weight < 0:
            raise ValueError(f"loss weight must be >= 0, got {weight}")
        self.weight = weight

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
    """A mean over labels, each of which has logits of its own: any part of the labels can be summed by itself."""

    def forward(self, student: Outputs, teacher: Outputs | None, labels: Tensor, progress: float) -> Ratio:
        return self.of_outputs(student, teacher, labels, self.scheduled(progress))

    def of_outputs(self, student: Outputs, teacher: Outputs | None, labels: Tensor, scheduled: Scheduled) -> Ratio:
        """As ``forward``, given the quantities that ``scheduled`` names."""
        total = self.of_logits(
            student.logits.flatten(0, -2),
            None if teacher is None else teacher.logits.flatten(0, -2),
            labels.flatten(),
            scheduled,
        )
        return Ratio(total[None], counted_labels(labels)[None])

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


def counted_labels(labels: Tensor) -> Tensor:
    """Number of labels other than -100, a scalar in float32."""
    return (labels != IGNORE).sum(dtype=torch.float32)
