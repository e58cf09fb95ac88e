"""Losses: a scalar from the outputs of the student and, for some, of a teacher."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

from torch import Tensor, nn

IGNORE = -100  # label that no loss and no metric counts (the default of torch's cross_entropy)


@dataclass(frozen=True)
class Outputs:
    """Outputs of a forward pass.

    Attributes:
        logits: [B, T, V] aligned with the labels, or [B, C] for a classifier.
        hidden: Stack name -> outputs of the embedding and of every block at the N tokens that are no padding, each
            [N, D]; empty unless a loss needs them.
    """

    logits: Tensor
    hidden: dict[str, tuple[Tensor, ...]] = field(default_factory=dict)


class Loss(nn.Module, ABC):
    """A term of the training objective.

    Args:
        weight: Factor of the term in the objective, >= 0.

    Attributes:
        needs_teacher: Whether ``forward`` reads ``teacher``.
        needs_hidden: Whether ``forward`` reads ``Outputs.hidden``.
    """

    needs_teacher: bool = False
    needs_hidden: bool = False

    def __init__(self, *, weight: float) -> None:
        super().__init__()
        if weight < 0:
            raise ValueError(f"loss weight must be >= 0, got {weight}")
        self.weight = weight

    @abstractmethod
    def forward(self, student: Outputs, teacher: Outputs | None, labels: Tensor, progress: float) -> Tensor:
        """The unweighted term, averaged over labels other than -100 (for hidden states, over tokens but padding).

        Args:
            student: Outputs of the student, with gradient.
            teacher: Outputs of the teacher, without gradient; ``None`` only where ``needs_teacher`` is false.
            labels: [B, T] or [B]; -100 is ignored.
            progress: Optimizer step / total steps, in [0, 1].

        Returns:
            A scalar; 0 (with gradient) where every label is -100.
        """

    def logged(self, progress: float) -> dict[str, float]:
        """Scheduled quantities to be logged as curves: name -> value."""
        return {}
