import pytest

from slimexp.loss.base import Outputs
from slimexp.loss.skew_kl import SkewKl
from slimexp.schedule import Constant
from tests.loss.published import LABELS, STUDENT, TEACHER, kl, mean, mix

pytestmark = pytest.mark.fast


def skew_kl(alpha: float, temperature: float = 1.0) -> float:
    loss = SkewKl(weight=1.0, temperature=Constant(value=temperature), alpha=alpha, scale_by_temperature=True)
    return loss(Outputs(STUDENT), Outputs(TEACHER), LABELS, 0.0).mean().item()


@pytest.mark.parametrize("alpha", [0.0, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_equals_the_published_definition(alpha: float, temperature: float) -> None:
    """Ko et al. 2024: KL(p || alpha p + (1 - alpha) q), p the teacher; without skew it is the forward divergence."""
    expected = temperature**2 * mean(lambda p, q: kl(p, mix(p, q, alpha)), temperature)
    assert skew_kl(alpha, temperature) == pytest.approx(expected, rel=1e-4)


def test_skew_makes_it_smaller() -> None:
    values = [skew_kl(alpha) for alpha in (0.0, 0.1, 0.5, 0.9)]
    assert values == sorted(values, reverse=True) and values[-1] > 0


@pytest.mark.parametrize("alpha", [-0.1, 1.0])
def test_alpha_out_of_range(alpha: float) -> None:
    with pytest.raises(ValueError, match=rf"alpha must be in \[0, 1\), got {alpha}"):
        skew_kl(alpha)
