"""Forward Kullback-Leibler divergence from teacher to student."""

from torch import Tensor
from torch.nn import functional as F

from slimexp.loss.base import IGNORE, Loss, Outputs
from slimexp.schedule import Schedule


class ForwardKl(Loss):
    """``T^2 KL(softmax(teacher / T) || softmax(student / T))`` per label other than -100, in nats.

    Hinton et al. 2015, "Distilling the knowledge in a neural network": the factor T^2 keeps the size
    of the gradient while T changes. Vocabulary rows that only one of the two models has (padding
    behind the same tokenizer) are left out on both sides.

    Args:
        weight: Weight of the term.
        temperature: Temperature T as a function of training progress, > 0.
    """

    needs_teacher = True

    def __init__(self, *, weight: float, temperature: Schedule) -> None:
        super().__init__(weight=weight)
        lowest = min(temperature(0.0), temperature(1.0))
        if lowest <= 0:
            raise ValueError(f"temperature must be > 0 throughout, got {lowest}")
        self.temperature = temperature

    def forward(self, student: Outputs, teacher: Outputs | None, labels: Tensor, progress: float) -> Tensor:
        assert teacher is not None
        temperature = self.temperature(progress)
        real = labels.flatten() != IGNORE
        width = min(student.logits.shape[-1], teacher.logits.shape[-1])
        student_logits = student.logits[..., :width].flatten(0, -2)[real].float()
        teacher_logits = teacher.logits[..., :width].flatten(0, -2)[real].float()
        divergence = F.kl_div(
            F.log_softmax(student_logits / temperature, dim=-1),
            F.log_softmax(teacher_logits / temperature, dim=-1),
            log_target=True,
            reduction="sum",
        )
        return temperature**2 * divergence / real.sum().clamp(min=1)

    def logged(self, progress: float) -> dict[str, float]:
        return {"temperature": self.temperature(progress)}
