import pytest
import torch

from slimexp.loss.base import Outputs
from slimexp.loss.skew_reverse_kl import SkewReverseKl
from slimexp.schedule import Constant
from tests.loss.published import LABELS, STUDENT, TEACHER, kl, mean, mix

pytestmark = pytest.mark.fast


def made(alpha: float, temperature: float = 1.0) -> SkewReverseKl:
    return SkewReverseKl(weight=1.0, temperature=Constant(value=temperature), alpha=alpha, scale_by_temperature=True)


@pytest.mark.parametrize("alpha", [0.0, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_equals_the_published_definition(alpha: float, temperature: float) -> None:
    """Ko et al. 2024: KL(q || (1 - alpha) p + alpha q), q the student; without skew it is the reverse divergence."""
    found = made(alpha, temperature)(Outputs(STUDENT), Outputs(TEACHER), LABELS, 0.0).mean().item()
    expected = temperature**2 * mean(lambda p, q: kl(q, mix(q, p, alpha)), temperature)
    assert found == pytest.approx(expected, rel=1e-4)


def test_skew_bounds_the_gradient_where_the_teacher_denies_what_the_student_says() -> None:
    student = torch.tensor([[[5.0, 5.0, 0.0]]])
    teacher = torch.tensor([[[9.0, -1e4, 0.0]]])
    norms = []
    for alpha in (0.0, 0.1):
        own = student.clone().requires_grad_()
        value = made(alpha)(Outputs(own), Outputs(teacher), torch.zeros(1, 1, dtype=torch.long), 0.0).mean()
        norms.append(torch.autograd.grad(value, own)[0].norm().item())
    assert norms[0] > 1000 > 1 > norms[1]


@pytest.mark.parametrize("alpha", [-0.1, 1.0])
def test_alpha_out_of_range(alpha: float) -> None:
    with pytest.raises(ValueError, match=rf"alpha must be in \[0, 1\), got {alpha}"):
        made(alpha)
