"""Generalized Jensen-Shannon divergence."""

from torch import Tensor

from slimexp.loss.divergence import Divergence, mixture, relative_entropy
from slimexp.schedule import Schedule


class GeneralizedJsd(Divergence):
    """``T^2 (beta KL(p || m) + (1 - beta) KL(q || m))`` with ``m = beta p + (1 - beta) q``.

    p and q are the softmaxes of teacher and student at the temperature T (Agarwal et al. 2024, "On-policy distillation
    of language models" (GKD), equation 1). Without the factor T^2 it is at most ``log 2``. Divided by beta it tends to
    ``KL(p || q)`` as beta tends to 0, and divided by ``1 - beta`` to ``KL(q || p)`` as beta tends to 1 (Huszár 2015).

    Args:
        weight: See ``Divergence``.
        temperature: See ``Divergence``.
        beta: Share of the teacher in the mixture, in (0, 1); 0.5 is the Jensen-Shannon divergence.
        scale_by_temperature: See ``Divergence``.

    Raises:
        ValueError: ``beta`` is out of range.
    """

    def __init__(
        self, *, weight: float | Schedule, temperature: float | Schedule, beta: float, scale_by_temperature: bool
    ) -> None:
        super().__init__(weight=weight, temperature=temperature, scale_by_temperature=scale_by_temperature)
        if not 0 < beta < 1:
            raise ValueError(f"beta must be in (0, 1), got {beta}: the losses at its ends are kl and reverse_kl")
        self.beta = beta

    def between(self, student: Tensor, teacher: Tensor) -> Tensor:
        middle = mixture(teacher, student, self.beta)
        return self.beta * relative_entropy(teacher, middle) + (1 - self.beta) * relative_entropy(student, middle)
