import math

import pytest
import torch
from torch import Tensor

from slimexp.loss.base import Outputs
from slimexp.loss.jsd import GeneralizedJsd
from slimexp.schedule import Constant
from tests.loss.published import LABELS, STUDENT, TEACHER, Distribution, kl, mean, mix

pytestmark = pytest.mark.fast


def jsd(beta: float, temperature: float = 1.0, student: Tensor = STUDENT, teacher: Tensor = TEACHER) -> float:
    loss = GeneralizedJsd(
        weight=1.0, temperature=Constant(value=temperature), beta=beta, scale_by_temperature=True
    )  # fmt: skip
    return loss(Outputs(student), Outputs(teacher), LABELS, 0.0).mean().item()


@pytest.mark.parametrize("beta", [0.01, 0.1, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_equals_the_published_definition(beta: float, temperature: float) -> None:
    """Agarwal et al. 2024: D(P || Q) = beta KL(P || M) + (1 - beta) KL(Q || M), M = beta P + (1 - beta) Q."""

    def published(p: Distribution, q: Distribution) -> float:
        middle = mix(p, q, beta)
        return beta * kl(p, middle) + (1 - beta) * kl(q, middle)

    assert jsd(beta, temperature) == pytest.approx(temperature**2 * mean(published, temperature), rel=1e-4)


def test_tends_to_the_forward_divergence_and_to_the_reverse_one() -> None:
    student, teacher = STUDENT.double() / 4, TEACHER.double() / 4  # as near that linear terms decide
    near = jsd(1e-4, student=student, teacher=teacher) / 1e-4
    far = jsd(1 - 1e-4, student=student, teacher=teacher) / 1e-4
    assert near == pytest.approx(mean(kl, 1.0, student=student, teacher=teacher), rel=5e-3)
    assert far == pytest.approx(mean(lambda p, q: kl(q, p), 1.0, student=student, teacher=teacher), rel=5e-3)


def test_is_symmetric_at_one_half_and_at_most_log_2() -> None:
    assert jsd(0.5) == pytest.approx(jsd(0.5, student=TEACHER, teacher=STUDENT), rel=1e-5)
    assert jsd(0.3) == pytest.approx(jsd(0.7, student=TEACHER, teacher=STUDENT), rel=1e-5)
    apart = 100 * torch.eye(9)[torch.arange(12) % 9].view(2, 6, 9)
    assert jsd(0.5, student=apart, teacher=apart.roll(1, -1)) == pytest.approx(math.log(2), rel=1e-5)


@pytest.mark.parametrize("beta", [0.0, 1.0, -0.5])
def test_ends_are_other_losses(beta: float) -> None:
    with pytest.raises(ValueError, match=rf"beta must be in \(0, 1\), got {beta}: the losses at its ends are kl and"):
        jsd(beta)
