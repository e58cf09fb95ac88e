"""Estimates from samples of a teacher: right in the mean at every temperature, in value and in gradient."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from slimexp.loss.base import IGNORE
from slimexp.loss.kl import ForwardKl
from slimexp.loss.sample import Layout
from slimexp.schedule import Constant
from slimexp.teacher_cache.compact import draw

VOCABULARY = 300
LAYOUT = Layout(vocabulary=VOCABULARY, head=4, samples=8, nodes=6, lowest=1.0, highest=8.0)
TEMPERATURES = (1.0, 1.4, 2.0, 4.0, 8.0)
DRAWS = 2000


def logits(seed: int, spread: float, rows: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return spread * torch.randn(rows, VOCABULARY, generator=generator, dtype=torch.float64)


TEACHER = logits(0, 3.0)
STUDENTS = {"near": TEACHER + logits(1, 0.5), "far": logits(2, 1.0)}


def samples(teacher: Tensor, layout: Layout = LAYOUT, seed: int = 0) -> Tensor:
    noise = 1 + layout.nodes + layout.head + layout.samples
    return draw(teacher, layout, torch.rand(len(teacher), noise, generator=torch.Generator().manual_seed(seed)))


def exact(teacher: Tensor, student: Tensor, temperature: float) -> Tensor:
    logs = (F.log_softmax(x.double() / temperature, dim=-1) for x in (student, teacher))
    return F.kl_div(*logs, log_target=True, reduction="none").sum(-1)  # type: ignore[misc]


@pytest.mark.fast
@pytest.mark.parametrize(("vocabulary", "most"), [(259, 100), (49_152, 100), (128_256, 118)])
def test_a_label_takes_so_many_bytes(vocabulary: int, most: int) -> None:
    layout = Layout(vocabulary, head=8, samples=12, nodes=6, lowest=1.0, highest=8.0)
    raw = samples(torch.zeros(3, vocabulary), layout)
    assert raw.dtype == torch.uint8 and raw.shape == (3, layout.bytes) and layout.bytes <= most


@pytest.mark.fast
def test_what_is_written_is_read() -> None:
    layout = Layout(100_000, head=1, samples=2, nodes=2, lowest=1.0, highest=8.0)
    ids, log_p = torch.tensor([[99_999, 0, 65_536]]), torch.tensor([[-0.5, -127.0, -20.25]])
    tail = torch.tensor([[-30.0, 11.5]])
    sample = layout.read(layout.write(ids, log_p, tail, torch.full((1, 5), 0.5)))
    assert torch.equal(sample.ids, ids)
    assert torch.allclose(sample.log_p, log_p, atol=1 / 512) and torch.allclose(sample.tail, tail, atol=1e-5)


@pytest.mark.fast
@pytest.mark.parametrize("temperature", [1.0, 1.05, 1.3, 1.7, 2.5, 3.0, 5.0, 7.0, 8.0])
def test_the_mass_of_the_tail_is_right_between_the_nodes(temperature: float) -> None:
    teacher = logits(3, 3.0, rows=400)
    top = teacher.topk(LAYOUT.head, dim=-1).indices
    p = F.softmax(teacher / temperature, dim=-1)
    mass = LAYOUT.read(samples(teacher))._at(temperature)[2]
    error = mass.double() - p.scatter(1, top, 0.0).sum(-1)
    assert error.abs().max() < 5e-3 and abs(error.mean()) < 1e-4


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("name", STUDENTS)
def test_value_and_gradient_are_unbiased(name: str, temperature: float) -> None:
    """Of many draws the mean is the exact one, within what its standard error allows, at every logit."""
    student = STUDENTS[name].clone().requires_grad_()
    value = exact(TEACHER, student, temperature).sum()
    (gradient,) = torch.autograd.grad(value, student)
    many = STUDENTS[name].float().expand(DRAWS, -1).clone().requires_grad_()
    estimates = LAYOUT.read(samples(TEACHER.expand(DRAWS, -1))).divergence(many, temperature)
    (gradients,) = torch.autograd.grad(estimates.sum(), many)
    assert abs(_deviations(estimates[:, None].double(), value[None])) < 4
    deviations = _deviations(gradients.double(), gradient[0])
    assert deviations.abs().max() < 5 and deviations.square().mean() < 1.5


def _deviations(draws: Tensor, expected: Tensor) -> Tensor:
    """How many standard errors the mean of draws [R, N] is from what it should be; float32 rounds a little."""
    errors = (draws.std(0) / math.sqrt(len(draws))).clamp(min=2e-7)
    return (draws.mean(0) - expected) / errors


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_leaving_out_the_tail_would_be_seen(temperature: float) -> None:
    """The test above has the power to see the bias of a top-k."""
    raw = samples(TEACHER.expand(DRAWS, -1))
    sample = LAYOUT.read(raw)
    log_p = sample.log_p[:, : LAYOUT.head]
    p = F.softmax(log_p / temperature, dim=-1)
    log_s = F.log_softmax(STUDENTS["near"].float() / temperature, dim=-1).expand(DRAWS, -1).gather(1, sample.ids)
    biased = (p * (p.log() - log_s[:, : LAYOUT.head])).sum(1)
    value = exact(TEACHER, STUDENTS["near"], temperature)
    assert abs(_deviations(biased[:, None].double(), value)) > 10


@pytest.mark.fast
def test_the_students_own_distribution_takes_away_most_of_the_noise() -> None:
    many = STUDENTS["near"].float().expand(DRAWS, -1)
    sample, value = LAYOUT.read(samples(TEACHER.expand(DRAWS, -1))), exact(TEACHER, STUDENTS["near"], 8.0)
    log_p, log_q, _ = sample._at(8.0)
    log_s = F.log_softmax(many / 8, dim=-1).gather(1, sample.ids)
    p, ratio = log_p.exp(), log_p - log_s
    plain = (p * ratio)[:, :4].sum(1) + ((log_p[:, 4:] - log_q).exp() / 8 * ratio[:, 4:]).sum(1)
    assert sample.divergence(many, 8.0).std() < 0.2 * plain.std()
    assert abs(plain.mean() - value) < 5 * plain.std() / math.sqrt(DRAWS)


@pytest.mark.fast
def test_the_loss_counts_labels_and_scales_with_the_temperature() -> None:
    teacher, student = logits(4, 3.0, rows=6), logits(5, 3.0, rows=6)
    wider = torch.cat([student, torch.full((6, 20), 5.0)], dim=1)  # rows of padding that the teacher has not
    labels = torch.tensor([1, IGNORE, 3, 4, IGNORE, 5])
    sample = LAYOUT.read(samples(teacher))
    loss = ForwardKl(weight=1.0, temperature=Constant(value=2.0))
    total = loss.of_sample(wider.float(), sample, labels, {"temperature": torch.tensor(2.0)})
    each = sample.divergence(student.float(), 2.0)
    assert torch.allclose(total, 4 * each[labels != IGNORE].sum(), rtol=1e-5)


@pytest.mark.fast
@pytest.mark.parametrize("teacher", [torch.zeros(1, 300), 100 * F.one_hot(torch.tensor([7]), 300).double()])
def test_flat_and_certain_teachers_are_finite(teacher: Tensor) -> None:
    student = logits(6, 1.0).float().requires_grad_()
    for temperature in (1.0, 8.0):
        value = LAYOUT.read(samples(teacher)).divergence(student, temperature)
        value.sum().backward()
        assert value.isfinite().all() and student.grad is not None and student.grad.isfinite().all()
        assert value.item() == pytest.approx(exact(teacher, student.detach(), temperature).item(), rel=0.5)
