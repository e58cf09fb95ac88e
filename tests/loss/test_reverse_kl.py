import math

import pytest
import torch

from slimexp.loss.base import Outputs
from slimexp.loss.reverse_kl import ReverseKl
from slimexp.schedule import Constant
from tests.loss.published import LABELS, STUDENT, TEACHER, kl, mean

pytestmark = pytest.mark.fast


def reverse_kl(temperature: float) -> ReverseKl:
    return ReverseKl(weight=1.0, temperature=Constant(value=temperature))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 5.0])
def test_equals_the_reference(temperature: float) -> None:
    found = reverse_kl(temperature)(Outputs(STUDENT), Outputs(TEACHER), LABELS, 0.0).mean().item()
    assert found == pytest.approx(temperature**2 * mean(lambda p, q: kl(q, p), temperature), rel=1e-5)


def test_a_student_may_leave_out_what_the_teacher_says_and_not_say_what_it_denies() -> None:
    sure, torn = torch.tensor([[[9.0, -9.0, -9.0]]]), torch.tensor([[[9.0, 9.0, -9.0]]])
    label = torch.zeros(1, 1, dtype=torch.long)
    left_out = reverse_kl(1.0)(Outputs(sure), Outputs(torn), label, 0.0).mean().item()
    assert left_out == pytest.approx(math.log(2), rel=1e-3)
    assert reverse_kl(1.0)(Outputs(torn), Outputs(sure), label, 0.0).mean().item() > 5
