"""Forward Kullback-Leibler divergence from teacher to student."""

from torch import Tensor

from slimexp.loss.divergence import Divergence, relative_entropy


class ForwardKl(Divergence):
    """``T^2 KL(p || q)``: p and q are the softmaxes of teacher and student at the temperature T.

    Hinton et al. 2015, "Distilling the knowledge in a neural network". The student covers all that the teacher may say.
    """

    def between(self, student: Tensor, teacher: Tensor) -> Tensor:
        return relative_entropy(teacher, student)
