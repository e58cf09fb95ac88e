"""Forward Kullback-Leibler divergence from teacher to student."""

import torch
from torch import Tensor
from torch.nn import functional as F

from slimexp.loss.base import IGNORE, LabelLoss, Scheduled
from slimexp.loss.sample import Sample
from slimexp.schedule import Schedule


class ForwardKl(LabelLoss):
    """``T^2 KL(softmax(teacher / T) || softmax(student / T))`` per label other than -100, in nats.

    Hinton et al. 2015, "Distilling the knowledge in a neural network": the factor T^2 keeps the size
    of the gradient while T changes. Vocabulary rows that only one of the two models has (padding
    behind the same tokenizer) are left out on both sides.

    Args:
        weight: Weight of the term.
        temperature: Temperature T as a function of training progress, > 0.
    """

    needs_teacher = True
    reads_samples = True

    def __init__(self, *, weight: float, temperature: Schedule) -> None:
        super().__init__(weight=weight)
        lowest = min(temperature(0.0), temperature(1.0))
        if lowest <= 0:
            raise ValueError(f"temperature must be > 0 throughout, got {lowest}")
        self.temperature = temperature

    def of_logits(self, student: Tensor, teacher: Tensor | None, labels: Tensor, scheduled: Scheduled) -> Tensor:
        assert teacher is not None
        temperature = scheduled["temperature"]
        width = min(student.shape[-1], teacher.shape[-1])
        divergence = F.kl_div(
            F.log_softmax(student[:, :width].float() / temperature, dim=-1),
            F.log_softmax(teacher[:, :width].float() / temperature, dim=-1),
            log_target=True,
            reduction="none",
        ).sum(-1)
        return temperature**2 * torch.where(labels != IGNORE, divergence, 0.0).sum()

    def of_sample(self, student: Tensor, teacher: Sample, labels: Tensor, scheduled: Scheduled) -> Tensor:
        temperature = scheduled["temperature"]
        divergence = teacher.divergence(student, temperature)
        return temperature**2 * torch.where(labels != IGNORE, divergence, 0.0).sum()

    def scheduled(self, progress: float) -> dict[str, float]:
        return {"temperature": self.temperature(progress)}
