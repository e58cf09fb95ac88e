"""Sums over labels in chunks: gradients against float64, and where the sum of a head's gradient is added up."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from slimexp.loss.base import IGNORE
from slimexp.loss.cross_entropy import CrossEntropy
from slimexp.loss.kl import ForwardKl
from slimexp.model.head import Head
from slimexp.schedule import Constant
from slimexp.technique.label_sums import LabelSums
from slimexp.weight import product

TOKENS, WIDTH, VOCABULARY, TEMPERATURE = 12, 16, 40, 2.0
WEIGHTS = 0.7, 0.3  # of cross-entropy and of the divergence
Made = tuple[LabelSums, Tensor, Tensor, Tensor]


@pytest.fixture
def make() -> Callable[..., Made]:
    """Type (and logits at once) -> sums, states of student and teacher, labels; two of them do not count."""

    def build(dtype: torch.dtype, at_once: int = 3 * VOCABULARY, bias: bool = False, device: str = "cpu") -> Made:
        torch.manual_seed(0)
        student, teacher = (nn.Linear(WIDTH, VOCABULARY, bias=bias).to(device, dtype) for _ in range(2))
        losses = {
            "ce": CrossEntropy(weight=WEIGHTS[0], label_smoothing=0.0),
            "kl": ForwardKl(weight=WEIGHTS[1], temperature=Constant(value=TEMPERATURE)),
        }
        sums = LabelSums(losses, student=Head(student), teacher=Head(teacher), logits_at_once=at_once)
        states, taught = (torch.randn(TOKENS, WIDTH).to(device, dtype) for _ in range(2))
        labels = torch.randint(VOCABULARY, (TOKENS,), device=device)
        labels[[1, 7]] = IGNORE
        return sums, states.requires_grad_(), taught, labels

    return build


def total(sums: LabelSums, states: Tensor, taught: Tensor, labels: Tensor) -> Tensor:
    coefficients = torch.tensor(WEIGHTS, device=states.device) / 10
    temperature = torch.tensor(TEMPERATURE, device=states.device)
    value, _ = sums(states, taught, labels, coefficients, {"ce": {}, "kl": {"temperature": temperature}})
    return value


def exact(sums: LabelSums, states: Tensor, taught: Tensor, labels: Tensor) -> list[Tensor]:
    """Value and gradients of states, weight and bias in float64, on whole logits."""
    states = states.detach().double().requires_grad_()
    layer = sums.student.module
    weight = layer.weight.detach().double().requires_grad_()
    bias = None if layer.bias is None else layer.bias.detach().double().requires_grad_()
    assert sums.teacher is not None
    teacher = sums.teacher.module
    expected = F.linear(
        taught.double(), teacher.weight.double(), None if teacher.bias is None else teacher.bias.double()
    )
    logits, counting = F.linear(states, weight, bias), labels != IGNORE
    log, target = F.log_softmax(logits / TEMPERATURE, -1), F.softmax(expected / TEMPERATURE, -1)
    divergence = (target * (target.log() - log)).sum(-1)[counting].sum() * TEMPERATURE**2
    value = (
        WEIGHTS[0] * F.cross_entropy(logits[counting], labels[counting], reduction="sum") + WEIGHTS[1] * divergence
    ) / 10
    wanted = [states, weight] + ([] if bias is None else [bias])
    return [value.detach(), *torch.autograd.grad(value, wanted)]


def computed(sums: LabelSums, states: Tensor, taught: Tensor, labels: Tensor) -> list[Tensor]:
    layer = sums.student.module
    value = total(sums, states, taught, labels)
    wanted = [states, layer.weight] + ([] if layer.bias is None else [layer.bias])
    return [value.detach(), *torch.autograd.grad(value, wanted)]


def near(actual: Tensor, expected: Tensor, tolerance: float) -> bool:
    return bool((actual.double() - expected).norm() <= tolerance * expected.norm())


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("at_once", [1, 5 * VOCABULARY, 10**9])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.02)])
def test_gradients_are_those_of_whole_logits(
    make: Callable[..., Made], dtype: torch.dtype, tolerance: float, at_once: int, bias: bool
) -> None:
    made = make(dtype, at_once, bias)
    for actual, expected in zip(computed(*made), exact(*made), strict=True):
        assert near(actual, expected, tolerance)
    assert {gradient.dtype for gradient in computed(*made)[1:]} == {dtype}


def test_a_product_of_16_bits_is_added_where_it_is_computed_if_the_device_can(
    make: Callable[..., Made], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU's kernel, in float32 here: it rounds once where the other way rounds each product."""
    made = make(torch.bfloat16, at_once=2 * VOCABULARY)
    apart, reference = computed(*made)[2], exact(*made)[2]
    added: list[float] = []

    def addmm(into: Tensor, first: Tensor, second: Tensor, dtype: torch.dtype, *, beta: float, out: Tensor) -> Tensor:
        assert into is out and dtype == torch.float32
        added.append(beta)
        return out.addmm_(first.float(), second.float(), beta=beta)

    monkeypatch.setattr(product, "_sums_in_float32", lambda device, dtype: True)
    monkeypatch.setattr(torch, "addmm", addmm)
    together = computed(*made)[2]
    assert added == [0, 1, 1, 1, 1, 1]
    assert near(together, reference, 0.02)
    assert (together.double() - reference).norm() <= (apart.double() - reference).norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_are_scaled_once(make: Callable[..., Made], dtype: torch.dtype) -> None:
    made = make(dtype)
    once = computed(*made)[1:]
    tripled = torch.autograd.grad(total(*made) * 3, [made[1], made[0].student.module.weight])
    for gradient, expected in zip(tripled, once, strict=True):
        assert near(gradient, 3 * expected.double(), 0.01)


def test_who_asks_twice_gets_an_error_and_no_wrong_gradient(make: Callable[..., Made]) -> None:
    made = make(torch.float32)
    value = total(*made)
    value.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.backward()


def test_no_token_at_all_is_zero_with_zero_gradients(make: Callable[..., Made]) -> None:
    sums, states, taught, labels = make(torch.float32)
    none: tuple[Any, ...] = (states[:0].detach().requires_grad_(), taught[:0], labels[:0])
    value = total(sums, *none)
    (gradient,) = torch.autograd.grad(value, [sums.student.module.weight])
    assert value == 0 and (gradient == 0).all()


@pytest.mark.gpu
@pytest.mark.parametrize("at_once", [5 * VOCABULARY, 10**9])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_on_a_gpu_sums_are_in_float32(make: Callable[..., Made], dtype: torch.dtype, at_once: int) -> None:
    made = make(dtype, at_once, device="cuda")
    for actual, expected in zip(computed(*made), exact(*made), strict=True):
        assert near(actual, expected, 0.02)
