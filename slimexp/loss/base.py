"""What every loss is: a scalar from what the student, and perhaps a teacher, put out."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

from torch import Tensor, nn

IGNORE = -100  # label that no loss and no metric counts (the value of torch's cross_entropy)


@dataclass(frozen=True)
class Outputs:
    """What a forward pass gave.

    Attributes:
        logits: [B, T, V] lined up with the labels, or [B, C] for a classifier.
        hidden: Stack name -> outputs of the embedding and of every block at the N real tokens, each
            [N, D]; empty unless a loss asked for them.
    """

    logits: Tensor
    hidden: dict[str, tuple[Tensor, ...]] = field(default_factory=dict)


class Loss(nn.Module, ABC):
    """A term of the training objective.

    Args:
        weight: What the technique multiplies the term with.

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
        """The unweighted term, averaged over labels other than -100 (or over real tokens, for hidden states).

        Args:
            student: Outputs with gradient.
            teacher: Outputs without gradient; ``None`` only where ``needs_teacher`` is false.
            labels: [B, T] or [B]; -100 is ignored.
            progress: Optimizer step / total steps, in [0, 1].

        Returns:
            A scalar; 0 (with gradient) where every label is -100.
        """

    def logged(self, progress: float) -> dict[str, float]:
        """Scheduled quantities worth a curve, by name (temperature, ...)."""
        return {}
