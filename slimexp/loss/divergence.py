"""The base of divergences between the distributions of student and teacher, and what they are made of."""

import math
from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from slimexp.loss.base import IGNORE, LabelLoss, Scheduled, check_temperature
from slimexp.schedule import Constant, Schedule

# Logits are at least this: a token that is ruled out by -infinity, or by the lowest number of a type over a temperature
# below 1, has the probability 0, and what is multiplied by it stays a number.
_LOWEST = -1e30


class Divergence(LabelLoss):
    """A divergence between the softmaxes of teacher and student at a temperature, per label other than -100, in nats.

    Vocabulary rows that only one of the two models has (padding behind the same tokenizer) are left out on both sides.

    Args:
        weight: Weight of the term.
        temperature: Temperature T that both models' logits are divided by, >= 0.01: a number, or a function of
            progress.
        scale_by_temperature: Whether the term is multiplied by ``T ** order``, which keeps the size of the gradient
            while T changes (Hinton et al. 2015, "Distilling the knowledge in a neural network", section 2).

    Attributes:
        order: Power of 1/T that the gradient shrinks with at a high temperature.

    Raises:
        ValueError: The temperature is too low at some time.
    """

    needs_teacher = True
    order: ClassVar[int] = 2

    # the default: configurations that are older than the choice did so
    def __init__(
        self, *, weight: float | Schedule, temperature: float | Schedule, scale_by_temperature: bool = True
    ) -> None:
        super().__init__(weight=weight)
        temperature = temperature if isinstance(temperature, Schedule) else Constant(value=temperature)
        check_temperature(temperature)
        self.temperature = temperature
        self.scale_by_temperature = scale_by_temperature

    @abstractmethod
    def between(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The divergence at each of N labels, [N].

        Args:
            student: Log-probabilities of the student, [N, V], with gradient.
            teacher: Log-probabilities of the teacher, [N, V].
        """

    def of_logits(self, student: Tensor, teacher: Tensor | None, labels: Tensor, scheduled: Scheduled) -> Tensor:
        assert teacher is not None
        temperature = scheduled["temperature"]
        width = min(student.shape[-1], teacher.shape[-1])
        divergence = self.between(
            _log_probabilities(student[:, :width], temperature), _log_probabilities(teacher[:, :width], temperature)
        )
        return self.summed(divergence, labels, temperature)

    def summed(self, divergence: Tensor, labels: Tensor, temperature: float | Tensor) -> Tensor:
        """The sum over labels other than -100 of a divergence at each, [N], scaled as was asked for."""
        total = torch.where(labels != IGNORE, divergence, 0.0).sum()
        return temperature**self.order * total if self.scale_by_temperature else total

    def scheduled(self, progress: float) -> dict[str, float]:
        return {"temperature": self.temperature(progress)}


def _log_probabilities(logits: Tensor, temperature: float | Tensor) -> Tensor:
    """Logarithms of the softmax of logits over a temperature, in float32."""
    return F.log_softmax((logits.float() / temperature).clamp(min=_LOWEST), dim=-1)


def relative_entropy(p: Tensor, q: Tensor) -> Tensor:
    """``KL(p || q) = sum_v p_v (log p_v - log q_v)`` of log-probabilities [..., V], in nats, [...]."""
    return F.kl_div(q, p, log_target=True, reduction="none").sum(-1)


def mixture(p: Tensor, q: Tensor, share: float) -> Tensor:
    """``log(share p + (1 - share) q)`` of log-probabilities, which underflows nowhere; ``share`` is in [0, 1)."""
    return torch.logaddexp(p + math.log(share), q + math.log1p(-share)) if share else q
