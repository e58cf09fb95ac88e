"""Total variation distance."""

from typing import ClassVar

from torch import Tensor

from slimexp.loss.divergence import Divergence


class TotalVariation(Divergence):
    """``T / 2 sum_v |p_v - q_v|``: p and q are the softmaxes of teacher and student at the temperature T.

    Wen et al. 2023, "f-divergence minimization for sequence-level knowledge distillation", token by token. Without
    the factor it is at most 1. Near 0 it is linear where the others are quadratic, so that its gradient shrinks with
    1 / T, and T is the factor that makes up for it.
    """

    order: ClassVar[int] = 1

    def between(self, student: Tensor, teacher: Tensor) -> Tensor:
        return (teacher.exp() - student.exp()).abs().sum(-1) / 2
