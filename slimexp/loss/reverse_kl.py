"""Reverse Kullback-Leibler divergence from student to teacher."""

from torch import Tensor

from slimexp.loss.divergence import Divergence, relative_entropy


class ReverseKl(Divergence):
    """``T^2 KL(q || p)``: p and q are the softmaxes of teacher and student at the temperature T.

    Gu et al. 2024, "MiniLLM", equation 1, whose expectation over the student's tokens is exact here, and over the
    student's texts that over the texts of the corpus. The student says what the teacher is sure of, and leaves out what
    it has no room for.
    """

    def between(self, student: Tensor, teacher: Tensor) -> Tensor:
        return relative_entropy(student, teacher)
