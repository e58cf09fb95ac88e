"""Skew reverse Kullback-Leibler divergence from student to teacher."""

from torch import Tensor

from slimexp.loss.divergence import mixture, relative_entropy
from slimexp.loss.skew import SkewDivergence


class SkewReverseKl(SkewDivergence):
    """``T^2 KL(q || alpha q + (1 - alpha) p)``: p and q are the softmaxes of teacher and student at the temperature T.

    Ko et al. 2024, "DistiLLM: towards streamlined distillation for large language models", section 3.1.
    """

    def between(self, student: Tensor, teacher: Tensor) -> Tensor:
        return relative_entropy(student, mixture(student, teacher, self.alpha))
