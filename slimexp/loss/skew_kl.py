"""Skew Kullback-Leibler divergence from teacher to student."""

from torch import Tensor

from slimexp.loss.divergence import mixture, relative_entropy
from slimexp.loss.skew import SkewDivergence


class SkewKl(SkewDivergence):
    """``T^2 KL(p || alpha p + (1 - alpha) q)``: p and q are the softmaxes of teacher and student at the temperature T.

    Ko et al. 2024, "DistiLLM: towards streamlined distillation for large language models", section 3.1.
    """

    def between(self, student: Tensor, teacher: Tensor) -> Tensor:
        return relative_entropy(teacher, mixture(teacher, student, self.alpha))
