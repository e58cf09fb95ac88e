"""Likelihoods of spans against sums of logarithms in float64."""

import math

import pytest
import torch
from torch import Tensor

from slimexp.loss.base import Outputs
from slimexp.loss.byte_span import ByteSpan, binary_divergence

pytestmark = pytest.mark.fast
GENERATOR = torch.Generator().manual_seed(0)
STUDENT = 2 * torch.randn(2, 4, 9, generator=GENERATOR)
TEACHER = 2 * torch.randn(2, 5, 6, generator=GENERATOR)
LABELS = torch.tensor([[1, 8, 2, 3], [5, 0, -100, -100]])
TEACHER_LABELS = torch.tensor([[1, 2, 3, 4, 5], [5, 0, 1, -100, -100]])
SPANS = torch.tensor([[0, 0, 1, 2], [0, 1, -1, -1]])
TEACHER_SPANS = torch.tensor([[0, 1, 1, 1, -1], [0, 0, 1, -1, -1]])
BOTH = [(0, 0), (0, 1), (1, 0), (1, 1)]  # row and span that both models have


def loss(student: Tensor = STUDENT, teacher: Tensor = TEACHER, temperature: float = 1.0) -> Tensor:
    given = Outputs(teacher, labels=TEACHER_LABELS, spans=TEACHER_SPANS)
    own = ByteSpan(weight=1.0, temperature=temperature)
    return own(Outputs(student, spans=SPANS), given, LABELS, 0.0).mean()


def likelihood(logits: Tensor, labels: Tensor, spans: Tensor, row: int, span: int) -> float:
    total = 0.0
    for place, label in enumerate(labels[row].tolist()):
        if label != -100 and spans[row, place] == span:
            scores = logits[row, place].double().tolist()
            total += scores[label] - math.log(sum(math.exp(score) for score in scores))
    return math.exp(total)


def divergence(p: float, q: float, temperature: float) -> float:
    p, q = p ** (1 / temperature), q ** (1 / temperature)
    return temperature * (p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q)))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 10.0, 100.0])
def test_equals_the_reference(temperature: float) -> None:
    expected = [
        divergence(
            likelihood(TEACHER, TEACHER_LABELS, TEACHER_SPANS, *place),
            likelihood(STUDENT, LABELS, SPANS, *place),
            temperature,
        )
        for place in BOTH
    ]
    assert loss(temperature=temperature).item() == pytest.approx(sum(expected) / len(expected), rel=1e-4)


def test_a_span_is_as_likely_however_it_is_cut() -> None:
    """A student whose two tokens are as likely together as the teacher's one has nothing to learn there."""
    student, teacher = torch.zeros(1, 2, 4), torch.zeros(1, 1, 16)
    labels, other_labels = torch.tensor([[1, 2]]), torch.tensor([[3]])
    given = Outputs(teacher, labels=other_labels, spans=torch.tensor([[0]]))
    own = Outputs(student.requires_grad_(), spans=torch.tensor([[0, 0]]))
    value = ByteSpan(weight=1.0, temperature=1.0)(own, given, labels, 0.0).mean()
    value.backward()
    assert abs(value.item()) < 1e-6 and student.grad is not None and student.grad.abs().max() < 1e-6


@pytest.mark.parametrize("log_p", [0.0, -1e-9, -1e-3, -1.0, -50.0, -1e4])
@pytest.mark.parametrize("log_q", [0.0, -1e-9, -1e-3, -1.0, -50.0, -1e4])
def test_it_is_finite_and_zero_for_equals_whatever_the_likelihoods(log_p: float, log_q: float) -> None:
    q = torch.tensor(log_q, requires_grad=True)
    value = binary_divergence(torch.tensor(log_p), q, 1.0)
    value.backward()
    assert value.isfinite() and q.grad is not None and q.grad.isfinite() and value >= -1e-6
    if log_p == log_q:
        assert value == 0


def test_the_gradient_raises_what_is_too_unlikely() -> None:
    q = torch.tensor([-3.0, -0.1], requires_grad=True)
    binary_divergence(torch.tensor([-0.1, -3.0]), q, 1.0).sum().backward()
    assert q.grad is not None and q.grad[0] < 0 < q.grad[1]


def test_no_span_at_all_is_zero_with_a_gradient() -> None:
    student = STUDENT.clone().requires_grad_()
    given = Outputs(TEACHER, labels=TEACHER_LABELS, spans=torch.full_like(TEACHER_SPANS, -1))
    own = Outputs(student, spans=torch.full_like(SPANS, -1))
    value = ByteSpan(weight=1.0, temperature=1.0)(own, given, LABELS, 0.0).mean()
    value.backward()
    assert value.item() == 0 and student.grad is not None and (student.grad == 0).all()


def test_temperature_must_be_positive() -> None:
    with pytest.raises(ValueError, match=r"temperature must be >= 0.01 throughout, got 0: 1 compares"):
        ByteSpan(weight=1.0, temperature=0)
