"""What every divergence of conf/ keeps to: temperature and factor, padded vocabularies, extreme logits, gradients."""

import math
from copy import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from slimexp.config.build import build
from slimexp.config.composition import CONF_DIR, compose
from slimexp.loss.base import Outputs
from slimexp.loss.divergence import Divergence, mixture, relative_entropy
from slimexp.loss.kl import ForwardKl
from slimexp.schedule import Constant, Linear
from tests.loss.published import LABELS, STUDENT, TEACHER

pytestmark = pytest.mark.fast

BUILT: dict[str, Divergence] = {}
for _path in sorted((CONF_DIR / "loss").glob("*.yaml")):
    _loss = build(compose([f"+loss@measure.probe={_path.stem}"]).measure.probe)
    if isinstance(_loss, Divergence):
        BUILT[_path.stem] = _loss
NAMES = list(BUILT)
ONE = torch.zeros(1, 1, dtype=torch.long)


def made(name: str, temperature: float, *, scale: bool = True) -> Divergence:
    """A divergence at a fixed temperature."""
    loss = copy(BUILT[name])
    loss.temperature, loss.scale_by_temperature = Constant(value=temperature), scale
    return loss


def value(loss: Divergence, student: Tensor = STUDENT, teacher: Tensor = TEACHER, labels: Tensor = LABELS) -> Tensor:
    return loss(Outputs(student), Outputs(teacher), labels, 0.0).mean()


def test_the_family_is_complete() -> None:
    assert NAMES == ["jsd", "kl", "reverse_kl", "skew_kl", "skew_reverse_kl", "total_variation"]


@pytest.mark.parametrize("name", NAMES)
def test_the_temperature_divides_logits_and_its_power_is_a_factor(name: str) -> None:
    plain, scaled = (made(name, 3.0, scale=scale) for scale in (False, True))
    expected = value(made(name, 1.0), STUDENT / 3, TEACHER / 3)
    assert value(plain).item() == pytest.approx(expected.item(), rel=1e-5)
    assert value(scaled).item() == pytest.approx(3**scaled.order * expected.item(), rel=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_the_factor_keeps_the_size_of_the_gradient(name: str) -> None:
    """At high temperatures it does not depend on T (Hinton et al. 2015, equation 4)."""
    norms = []
    for temperature in (100.0, 1000.0):
        student = STUDENT.double().requires_grad_()
        (gradient,) = torch.autograd.grad(value(made(name, temperature), student, TEACHER.double()), student)
        norms.append(gradient.norm().item())
    assert norms[0] == pytest.approx(norms[1], rel=0.05) and norms[0] > 1e-3


@pytest.mark.parametrize("name", NAMES)
def test_configurations_without_the_choice_have_the_factor(name: str) -> None:
    """Those of kl are older than it."""
    assert BUILT[name].scale_by_temperature
    assert ForwardKl(weight=1.0, temperature=Constant(value=2.0)).scale_by_temperature


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("wider", ["student", "teacher"])
def test_rows_that_pad_one_vocabulary_are_left_out(name: str, wider: str) -> None:
    given = {"student": STUDENT, "teacher": TEACHER}
    given[wider] = torch.cat([given[wider], torch.full((2, 6, 7), 50.0)], dim=-1)
    assert value(BUILT[name], **given).item() == pytest.approx(value(BUILT[name]).item(), rel=1e-6)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 5.0])
@pytest.mark.parametrize("lowest", [-1e4, None, -math.inf])
def test_tokens_that_a_model_rules_out_leave_value_and_gradient_finite(
    name: str, dtype: torch.dtype, temperature: float, lowest: float | None
) -> None:
    ruled_out = torch.finfo(dtype).min if lowest is None else lowest
    for places in ({"teacher"}, {"student"}, {"teacher", "student"}):
        given = {"student": STUDENT.to(dtype), "teacher": TEACHER.to(dtype)}
        for place in places:
            given[place] = given[place].clone()
            given[place][..., 0] = ruled_out
        student = given["student"].requires_grad_()
        found = value(made(name, temperature), student, given["teacher"])
        (gradient,) = torch.autograd.grad(found, student)
        assert found.isfinite() and gradient.isfinite().all(), places


@pytest.mark.parametrize("name", NAMES)
def test_sure_models_that_disagree_are_finite(name: str) -> None:
    """Probabilities that underflow: logits of 1e4 apart, at the lowest temperature."""
    student = torch.tensor([[[1e4, 0.0, -1e4]]]).requires_grad_()
    found = value(made(name, 0.1), student, -student.detach(), ONE)
    (gradient,) = torch.autograd.grad(found, student)
    assert found.isfinite() and found > 0 and gradient.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("temperature", [0.7, 4.0])
def test_gradients_are_those_of_float64(name: str, temperature: float) -> None:
    """Of the formula in probabilities, which is exact enough in float64."""
    single, double = STUDENT.clone().requires_grad_(), STUDENT.double().requires_grad_()
    loss = made(name, temperature)
    (gradient,) = torch.autograd.grad(value(loss, single), single)
    p, q = (F.softmax(logits[LABELS != -100] / temperature, -1) for logits in (TEACHER.double(), double))
    (expected,) = torch.autograd.grad(temperature**loss.order * plain(name, p, q).mean(), double)
    assert torch.allclose(gradient.double(), expected, rtol=1e-4, atol=1e-6)


def plain(name: str, p: Tensor, q: Tensor) -> Tensor:
    """Divergences of the teacher's p and the student's q at the values of conf/, [N]."""

    def kl(one: Tensor, other: Tensor) -> Tensor:
        return (one * (one / other).log()).sum(-1)

    return {
        "kl": lambda: kl(p, q),
        "reverse_kl": lambda: kl(q, p),
        "jsd": lambda: (kl(p, (p + q) / 2) + kl(q, (p + q) / 2)) / 2,
        "skew_kl": lambda: kl(p, 0.1 * p + 0.9 * q),
        "skew_reverse_kl": lambda: kl(q, 0.1 * q + 0.9 * p),
        "total_variation": lambda: (p - q).abs().sum(-1) / 2,
    }[name]()


@pytest.mark.parametrize(
    "schedule", [Constant(value=0.0), Linear(start=1.0, end=0.0), Linear(start=-1.0, end=1.0), 1e-9]
)
def test_temperature_must_stay_positive(schedule: Any) -> None:
    with pytest.raises(ValueError, match=r"temperature must be >= 0\.01 throughout, got .*: 1 compares"):
        ForwardKl(weight=1.0, temperature=schedule)


def test_a_mixture_of_logarithms_underflows_nowhere() -> None:
    p, q = torch.tensor([-1000.0, -1e30, 0.0]), torch.tensor([-1001.0, -1e30, -5.0])
    expected = -1000 + math.log(0.3 + 0.7 * math.exp(-1))
    assert mixture(p, q, 0.3)[0].item() == pytest.approx(expected, rel=1e-6)
    assert mixture(p, q, 0.3).isfinite().all() and torch.equal(mixture(p, q, 0.0), q)


def test_relative_entropy_of_a_token_that_neither_says_is_zero() -> None:
    p = torch.tensor([0.0, -1e30])
    assert relative_entropy(p, p).item() == 0
