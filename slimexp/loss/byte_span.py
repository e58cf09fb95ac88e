"""Likelihoods of the same stretches of text under two models, whatever tokens they are made of."""

import torch
from torch import Tensor

from slimexp.loss.base import IGNORE, Loss, Outputs, Ratio, check_temperature
from slimexp.loss.spans import spans_of
from slimexp.schedule import Schedule

_LEAST = 1e-6  # of -log p: at p = 1 the logarithm of 1 - p is infinite


class ByteSpan(Loss):
    """``T KL(Bernoulli(p^(1/T)) || Bernoulli(q^(1/T)))``, p and q being the likelihoods of a span of text.

    A span is the smallest stretch of text that is whole tokens of both teacher and student, and its likelihood the
    product of those of its tokens (Minixhofer et al. 2025, "Universal cross-tokenizer distillation via approximate
    likelihood matching", the binarised divergence: the text goes on so, or otherwise). The likelihood of a token says
    nothing of how text might go on otherwise, as a distribution does, so that this is for tokenizers that differ. The
    factor T, which is not in the paper, keeps the size of the gradient while T changes. What the paper does about
    tokens whose end says that no longer token follows (debiasing of outcomes) is left out.

    Args:
        weight: Weight of the term.
        temperature: T, >= 0.01; above 1, unlikely spans count more.
    """

    needs_teacher = True
    aligns = True

    def __init__(self, *, weight: float | Schedule, temperature: float) -> None:
        super().__init__(weight=weight)
        check_temperature(temperature)
        self.temperature = temperature

    def forward(self, student: Outputs, teacher: Outputs | None, labels: Tensor, progress: float) -> Ratio:
        assert teacher is not None
        own, others, other_labels = spans_of(student, teacher, labels)
        log_q, counts = _likelihoods(student.logits, labels)
        log_p, other_counts = _likelihoods(teacher.logits, other_labels)
        both = (own.sums(counts) > 0) & (others.sums(other_counts) > 0)
        divergence = binary_divergence(others.sums(log_p), own.sums(log_q), self.temperature)
        return Ratio(torch.where(both, divergence, 0.0).sum()[None], both.sum(dtype=torch.float32)[None])


def binary_divergence(log_p: Tensor, log_q: Tensor, temperature: float) -> Tensor:
    """``T KL`` of two events, one by one, by the logarithms of their likelihoods."""
    log_p, log_q = ((-log / temperature).clamp(min=_LEAST).neg() for log in (log_p, log_q))
    happens = log_p.exp() * (log_p - log_q)
    does_not = -torch.expm1(log_p) * (_log_otherwise(log_p) - _log_otherwise(log_q))
    return temperature * (happens + does_not)


def _log_otherwise(log: Tensor) -> Tensor:
    """Logarithm of 1 - p."""
    return torch.log(-torch.expm1(log))


def _likelihoods(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Log-likelihood of each label, [N], 0 for -100; and 1 for each that counts."""
    flat, wanted = logits.flatten(0, -2), labels.flatten()
    counts = wanted != IGNORE
    log = flat.float().log_softmax(-1).gather(1, wanted.clamp(min=0)[:, None]).squeeze(1)
    return torch.where(counts, log, 0.0), counts.float()
