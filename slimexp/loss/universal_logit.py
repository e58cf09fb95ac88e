"""Universal logit distance: between sorted probabilities of models whose tokens are unlike."""

import torch
from torch import Tensor
from torch.nn import functional as F

from slimexp.loss.base import Loss, Outputs, Ratio
from slimexp.loss.spans import spans_of
from slimexp.schedule import Schedule


class UniversalLogit(Loss):
    """``sum_i |p_(i) - q_(i)|``, p_(i) and q_(i) being the i-th largest probabilities of teacher and student.

    That is the Wasserstein distance of the two where all transports cost the same; the smaller vocabulary has
    probabilities of 0 in its missing places (Boizard et al. 2024, "Towards cross-tokenizer distillation: the universal
    logit distillation loss for LLMs", the closed form). It is a mean over the places where both models have read the
    same text and are about to go on: the first tokens of the spans that are whole tokens of both. (The paper pairs the
    t-th token of one with the t-th of the other, whatever text they are of.) Which token has which probability is not
    compared, so that labels must say it: leave a cross-entropy beside it.

    Args:
        weight: Weight of the term.
    """

    needs_teacher = True
    aligns = True

    def __init__(self, *, weight: float | Schedule) -> None:
        super().__init__(weight=weight)

    def forward(self, student: Outputs, teacher: Outputs | None, labels: Tensor, progress: float) -> Ratio:
        assert teacher is not None
        own, others, _ = spans_of(student, teacher, labels)
        places, other_places = own.firsts(), others.firsts()
        both = (places < len(own.slots)) & (other_places < len(others.slots))
        distances = _distances(_chosen(student.logits, places), _chosen(teacher.logits, other_places))
        total = torch.where(both, distances, 0.0).sum()
        return Ratio(total[None], both.sum(dtype=torch.float32)[None])


def _chosen(logits: Tensor, places: Tensor) -> Tensor:
    """Logits [..., V] at places of all labels, [K, V]; at any where there is none."""
    flat = logits.flatten(0, -2)
    return flat.index_select(0, places.clamp(max=len(flat) - 1))


def _distances(student: Tensor, teacher: Tensor) -> Tensor:
    """Distance of logits [K, V] from logits [K, V'], [K]."""
    widest = max(student.shape[-1], teacher.shape[-1])
    ordered = [
        F.pad(logits.float().softmax(-1).sort(dim=-1, descending=True).values, (0, widest - logits.shape[-1]))
        for logits in (student, teacher)
    ]
    return (ordered[0] - ordered[1]).abs().sum(-1)
