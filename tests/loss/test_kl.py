import math

import pytest
import torch
from torch import Tensor

from slimexp.loss.base import Outputs
from slimexp.loss.kl import ForwardKl
from slimexp.schedule import Constant, Cosine, Linear, Schedule

GENERATOR = torch.Generator().manual_seed(0)
STUDENT = 4 * torch.randn(2, 6, 9, generator=GENERATOR)
TEACHER = 4 * torch.randn(2, 6, 9, generator=GENERATOR)
LABELS = torch.tensor([[1, 8, -100, 3, 0, -100], [5, 5, 2, -100, -100, -100]])

pytestmark = pytest.mark.fast


def softmax(scores: list[float], temperature: float) -> list[float]:
    powers = [math.exp(score / temperature) for score in scores]
    return [power / sum(powers) for power in powers]


def reference(temperature: float) -> float:
    """By hand, in float64: T^2 sum_v p_v (log p_v - log q_v), p the teacher, averaged over real labels."""
    total, count = 0.0, 0
    for student, teacher, label in zip(
        STUDENT.double().flatten(0, 1).tolist(), TEACHER.double().flatten(0, 1).tolist(), LABELS.flatten().tolist(),
        strict=True,
    ):  # fmt: skip
        if label == -100:
            continue
        p, q = softmax(teacher, temperature), softmax(student, temperature)
        total += temperature**2 * sum(a * (math.log(a) - math.log(b)) for a, b in zip(p, q, strict=True))
        count += 1
    return total / count


def kl(temperature: Schedule, progress: float = 0.0, *, student: Tensor = STUDENT, teacher: Tensor = TEACHER) -> float:
    return ForwardKl(weight=1.0, temperature=temperature)(
        Outputs(student), Outputs(teacher), LABELS, progress
    ).mean().item()  # fmt: skip


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 5.0])
def test_equals_the_reference_with_its_squared_temperature(temperature: float) -> None:
    assert kl(Constant(value=temperature)) == pytest.approx(reference(temperature), rel=1e-5)


@pytest.mark.parametrize("schedule", [Linear(start=5.0, end=1.0), Cosine(start=5.0, end=1.0)])
@pytest.mark.parametrize("progress", [0.0, 0.25, 0.5, 1.0])
def test_temperature_follows_its_schedule(schedule: Schedule, progress: float) -> None:
    assert kl(schedule, progress) == pytest.approx(reference(schedule(progress)), rel=1e-5)
    assert ForwardKl(weight=1.0, temperature=schedule).scheduled(progress) == {"temperature": schedule(progress)}


def test_squared_temperature_keeps_the_size_of_the_gradient() -> None:
    """At high temperature the gradient tends to (student - teacher) / V, logits centred, whatever T (Hinton, eq. 4)."""
    norms = []
    for temperature in (20.0, 200.0):
        student = STUDENT.clone().requires_grad_()
        loss = ForwardKl(weight=1.0, temperature=Constant(value=temperature))
        loss(Outputs(student), Outputs(TEACHER), LABELS, 0.0).mean().backward()
        assert student.grad is not None
        norms.append(student.grad.norm().item())
    assert norms[0] == pytest.approx(norms[1], rel=0.2)


def test_teaches_the_teacher_and_not_the_mean_of_both() -> None:
    """Forward KL: infinite where the student denies what the teacher says, small the other way round."""
    sure, torn = torch.tensor([[[9.0, -9.0, -9.0]]]), torch.tensor([[[9.0, 9.0, -9.0]]])
    loss = ForwardKl(weight=1.0, temperature=Constant(value=1.0))
    label = torch.zeros(1, 1, dtype=torch.long)
    assert loss(Outputs(torn), Outputs(sure), label, 0.0).mean().item() == pytest.approx(math.log(2), rel=1e-3)
    assert loss(Outputs(sure), Outputs(torn), label, 0.0).mean().item() > 5
