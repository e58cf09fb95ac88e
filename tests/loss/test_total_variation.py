import pytest
import torch

from slimexp.loss.base import Outputs
from slimexp.loss.total_variation import TotalVariation
from slimexp.schedule import Constant
from tests.loss.published import LABELS, STUDENT, TEACHER, Distribution, mean

pytestmark = pytest.mark.fast


def total_variation(temperature: float, student: torch.Tensor = STUDENT, teacher: torch.Tensor = TEACHER) -> float:
    loss = TotalVariation(weight=1.0, temperature=Constant(value=temperature))
    return loss(Outputs(student), Outputs(teacher), LABELS, 0.0).mean().item()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 5.0])
def test_equals_the_reference(temperature: float) -> None:
    def half_the_sum(p: Distribution, q: Distribution) -> float:
        return sum(abs(a - b) for a, b in zip(p, q, strict=True)) / 2

    assert total_variation(temperature) == pytest.approx(temperature * mean(half_the_sum, temperature), rel=1e-5)


def test_is_symmetric_and_1_where_nothing_is_in_common() -> None:
    assert total_variation(1.0) == pytest.approx(total_variation(1.0, TEACHER, STUDENT), rel=1e-6)
    apart = 100 * torch.eye(9)[torch.arange(12) % 9].view(2, 6, 9)
    assert total_variation(1.0, apart, apart.roll(1, -1)) == pytest.approx(1.0)
