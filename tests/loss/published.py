"""Divergences as they are published, number by number in Python's own arithmetic: what losses are held against."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Distribution = Sequence[float]
LABELS = torch.tensor([[1, 8, -100, 3, 0, -100], [5, 5, 2, -100, -100, -100]])
GENERATOR = torch.Generator().manual_seed(0)
STUDENT = 4 * torch.randn(2, 6, 9, generator=GENERATOR)
TEACHER = 4 * torch.randn(2, 6, 9, generator=GENERATOR)


def kl(p: Distribution, q: Distribution) -> float:
    """``KL(p || q)``."""
    return sum(a * (math.log(a) - math.log(b)) for a, b in zip(p, q, strict=True))


def mix(p: Distribution, q: Distribution, share: float) -> list[float]:
    """``share p + (1 - share) q``."""
    return [share * a + (1 - share) * b for a, b in zip(p, q, strict=True)]


def mean(
    divergence: Callable[[Distribution, Distribution], float],
    temperature: float,
    *,
    student: Tensor = STUDENT,
    teacher: Tensor = TEACHER,
) -> float:
    """Mean over real labels of a divergence of the teacher's distribution and the student's."""
    rows = zip(
        student.double().flatten(0, 1).tolist(), teacher.double().flatten(0, 1).tolist(), LABELS.flatten().tolist(),
        strict=True,
    )  # fmt: skip
    values = [divergence(_softmax(p, temperature), _softmax(q, temperature)) for q, p, label in rows if label != -100]
    return sum(values) / len(values)


def _softmax(scores: Sequence[float], temperature: float) -> list[float]:
    powers = [math.exp(score / temperature) for score in scores]
    return [power / sum(powers) for power in powers]
