"""Universal logit distance against sorted probabilities in float64."""

import math

import pytest
import torch
from torch import Tensor

from slimexp.loss.base import Outputs
from slimexp.loss.universal_logit import UniversalLogit

pytestmark = pytest.mark.fast
GENERATOR = torch.Generator().manual_seed(0)
STUDENT = 3 * torch.randn(2, 4, 9, generator=GENERATOR)
TEACHER = 3 * torch.randn(2, 5, 6, generator=GENERATOR)
LABELS = torch.tensor([[1, 8, 2, 3], [5, 0, -100, -100]])
TEACHER_LABELS = torch.tensor([[1, 2, 3, 4, 5], [5, 0, 1, -100, -100]])
SPANS = torch.tensor([[0, 0, 1, 2], [0, 1, -1, -1]])
TEACHER_SPANS = torch.tensor([[0, 1, 1, 1, -1], [0, 0, 1, -1, -1]])
PAIRS = [((0, 0), (0, 0)), ((0, 2), (0, 1)), ((1, 0), (1, 0)), ((1, 1), (1, 2))]  # first labels of spans of both


def loss(student: Tensor = STUDENT, teacher: Tensor = TEACHER) -> Tensor:
    given = Outputs(teacher, labels=TEACHER_LABELS, spans=TEACHER_SPANS)
    return UniversalLogit(weight=1.0)(Outputs(student, spans=SPANS), given, LABELS, 0.0).mean()


def ordered(logits: list[float]) -> list[float]:
    powers = [math.exp(value) for value in logits]
    return sorted((power / sum(powers) for power in powers), reverse=True)


def distance(student: list[float], teacher: list[float]) -> float:
    one, other = ordered(student), ordered(teacher)
    width = max(len(one), len(other))
    one, other = (side + [0.0] * (width - len(side)) for side in (one, other))
    return sum(abs(p - q) for p, q in zip(one, other, strict=True))


def test_equals_the_reference() -> None:
    student, teacher = STUDENT.double().tolist(), TEACHER.double().tolist()
    expected = [distance(student[i][s], teacher[j][t]) for (i, s), (j, t) in PAIRS]
    assert loss().item() == pytest.approx(sum(expected) / len(expected), rel=1e-5)


def test_tokens_have_no_names() -> None:
    shuffled = TEACHER[..., torch.randperm(6, generator=GENERATOR)]
    assert loss(teacher=shuffled).item() == pytest.approx(loss().item(), rel=1e-6)


def test_a_vocabulary_with_tokens_that_are_never_said_is_the_same() -> None:
    wider = torch.cat([TEACHER, torch.full((2, 5, 20), -1e4)], dim=-1)
    assert loss(teacher=wider).item() == pytest.approx(loss().item(), rel=1e-6)


def test_places_that_are_no_beginning_of_a_span_do_not_matter() -> None:
    changed = STUDENT.clone()
    changed[0, 1], changed[0, 3], changed[1, 2:] = 50.0, -7.0, 3.0
    assert torch.equal(loss(changed), loss())


def test_gradient_descends_to_the_teachers_order() -> None:
    student = torch.zeros(2, 4, 9, requires_grad=True)
    optimizer = torch.optim.Adam([student], lr=0.1)
    for _ in range(200):
        optimizer.zero_grad()
        loss(student).backward()
        optimizer.step()
    assert loss(student).item() < 0.05 < loss(torch.zeros(2, 4, 9)).item()


def test_no_span_at_all_is_zero_with_a_gradient() -> None:
    student = STUDENT.clone().requires_grad_()
    none = torch.full_like(SPANS, -1)
    given = Outputs(TEACHER, labels=TEACHER_LABELS, spans=torch.full_like(TEACHER_SPANS, -1))
    value = UniversalLogit(weight=1.0)(Outputs(student, spans=none), given, LABELS, 0.0).mean()
    value.backward()
    assert value.item() == 0 and student.grad is not None and (student.grad == 0).all()
