"""Forward Kullback-Leibler divergence from teacher to student."""

from torch import Tensor

from slimexp.loss.base import Scheduled
from slimexp.loss.divergence import Divergence, relative_entropy
from slimexp.loss.sample import Sample


class ForwardKl(Divergence):
    """``T^2 KL(p || q)``: p and q are the softmaxes of teacher and student at the temperature T.

    Hinton et al. 2015, "Distilling the knowledge in a neural network". The student covers all that the teacher may say.
    """

    reads_samples = True

    def between(self, student: Tensor, teacher: Tensor) -> Tensor:
        return relative_entropy(teacher, student)

    def of_sample(self, student: Tensor, teacher: Sample, labels: Tensor, scheduled: Scheduled) -> Tensor:
        temperature = scheduled["temperature"]
        return self.summed(teacher.divergence(student, temperature), labels, temperature)
