"""What every loss of conf/ keeps to: ignored labels, empty batches, half precision, a teacher without gradient."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from slimexp.config import binding
from slimexp.config.build import build
from slimexp.config.composition import CONF_DIR, compose
from slimexp.loss.base import Attention, LabelLoss, Loss, Outputs, Ratio, scheduled
from slimexp.loss.cross_entropy import CrossEntropy
from slimexp.loss.kl import ForwardKl
from slimexp.schedule import Constant, Linear

IGNORE = -100
NAMES = sorted(path.stem for path in (CONF_DIR / "loss").glob("*.yaml"))
BUILT: dict[str, Loss] = {}


def loss_named(name: str) -> Loss:
    if name not in BUILT:
        BUILT[name] = build(compose([f"+loss@measure.probe={name}"]).measure.probe)
    return BUILT[name]


def outputs(seed: int, *, dtype: torch.dtype = torch.float32, classes: bool = False) -> Outputs:
    """Logits [3, 5, 11] (or [6, 4]), of two stacks hidden states [13, 8] and self-attention [3, 5, 16]."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(*((6, 4) if classes else (3, 5, 11)), generator=generator)
    hidden = {
        stack: tuple(torch.randn(13, 8, generator=generator).to(dtype).requires_grad_() for _ in range(3))
        for stack in ("encoder", "decoder")
    }
    attention = {
        (stack, -1): Attention(
            *(torch.randn(3, 5, 16, generator=generator).to(dtype).requires_grad_() for _ in range(3)), sees=sees()
        )
        for stack in ("encoder", "decoder")
    }
    return Outputs(logits.to(dtype).requires_grad_(), hidden, attention)


def sees() -> Tensor:
    """Rows of 5, 3 and 4 tokens, each of which sees those before it, [3, 5, 5]."""
    real = torch.arange(5) < torch.tensor([5, 3, 4])[:, None]
    return (real[:, :, None] & real[:, None, :]).tril()


def states(given: Outputs) -> list[Tensor]:
    """All that is of blocks."""
    of_attention = [part for block in given.attention.values() for part in (block.queries, block.keys, block.values)]
    return [state for stack in given.hidden.values() for state in stack] + of_attention


def labels(*, classes: bool = False) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    found = torch.randint(0, 4, (6,) if classes else (3, 5), generator=generator)
    found.view(-1)[[1, 4]] = IGNORE
    return found


def teacher_of(loss: Loss, seed: int, **options: Any) -> Outputs | None:
    if not loss.needs_teacher:
        return None
    return detached(outputs(seed, **options))


def detached(given: Outputs, dtype: torch.dtype | None = None) -> Outputs:
    hidden = {stack: tuple(state.detach().to(dtype) for state in states) for stack, states in given.hidden.items()}
    attention = {
        key: Attention(
            *(part.detach().to(dtype) for part in (block.queries, block.keys, block.values)), sees=block.sees
        )
        for key, block in given.attention.items()
    }
    return Outputs(given.logits.detach().to(dtype), hidden, attention)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("progress", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("classes", [False, True])
def test_a_divergence_of_equals_is_zero(name: str, progress: float, classes: bool) -> None:
    loss = loss_named(name)
    if not loss.needs_teacher:
        pytest.skip("no divergence")
    value = loss(
        outputs(0, classes=classes), teacher_of(loss, 0, classes=classes), labels(classes=classes), progress
    ).mean()
    assert abs(value.item()) < 1e-5


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("classes", [False, True])
def test_is_a_positive_scalar_with_a_gradient_for_the_student_alone(name: str, classes: bool) -> None:
    loss, student = loss_named(name), outputs(0, classes=classes)
    teacher = teacher_of(loss, 1, classes=classes)
    value = loss(student, teacher, labels(classes=classes), 0.5).mean()
    assert value.shape == () and value.item() > 0
    value.backward()
    for tensor in (student.logits, *states(student)):
        assert tensor.grad is None or tensor.grad.isfinite().all()
    read = [state for state in states(student) if state.grad is not None and (state.grad != 0).any()]
    expected = {"hidden": loss.needs_hidden, "attention": loss.student_block is not None}
    assert len(read) == 6 * sum(expected.values()) and bool(read) == loss.compares_blocks
    if student.logits.grad is not None:
        ignored = labels(classes=classes) == IGNORE
        assert (student.logits.grad[ignored] == 0).all() and (student.logits.grad[~ignored] != 0).any()
    assert teacher is None or not teacher.logits.requires_grad


@pytest.mark.parametrize("name", NAMES)
def test_reads_logits_or_blocks(name: str) -> None:
    loss, student = loss_named(name), outputs(0)
    loss(student, teacher_of(loss, 1), labels(), 0.5).mean().backward()
    assert student.logits.grad is not None or loss.compares_blocks
    assert (student.logits.grad is not None) == loss.needs_logits


@pytest.mark.parametrize("name", NAMES)
def test_what_is_said_at_ignored_places_does_not_matter(name: str) -> None:
    loss, student = loss_named(name), outputs(0)
    teacher = teacher_of(loss, 1)
    expected = loss(student, teacher, labels(), 0.5).mean()
    ignored = labels() == IGNORE
    for given in (student, teacher):
        if given is not None:
            given.logits.data[ignored] = 1e4
    assert torch.equal(loss(student, teacher, labels(), 0.5).mean(), expected)


@pytest.mark.parametrize("name", NAMES)
def test_is_a_mean_over_real_labels(name: str) -> None:
    """Padding a batch, or repeating it, leaves the value where it was."""
    loss, student = loss_named(name), outputs(0)
    teacher = teacher_of(loss, 1)
    expected = loss(student, teacher, labels(), 0.5).mean()

    def twice(given: Outputs | None) -> Outputs | None:
        if given is None:
            return None
        hidden = {stack: tuple(torch.cat([s, s]) for s in states) for stack, states in given.hidden.items()}
        attention = {
            key: Attention(*(torch.cat([part, part]) for part in (block.queries, block.keys, block.values, block.sees)))
            for key, block in given.attention.items()
        }
        return Outputs(torch.cat([given.logits, given.logits]), hidden, attention)

    repeated = loss(twice(student), twice(teacher), torch.cat([labels(), labels()]), 0.5).mean()
    padded = loss(twice(student), twice(teacher), torch.cat([labels(), torch.full_like(labels(), IGNORE)]), 0.5).mean()
    assert repeated.item() == pytest.approx(expected.item(), rel=1e-5)
    assert padded.item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_sums_over_parts_of_a_batch_are_those_of_the_whole(name: str) -> None:
    loss, student = loss_named(name), outputs(0)
    teacher = teacher_of(loss, 1)

    def part(given: Outputs | None, rows: slice, tokens: slice) -> Outputs | None:
        if given is None:
            return None
        attention = {
            key: Attention(*(part[rows] for part in (block.queries, block.keys, block.values, block.sees)))
            for key, block in given.attention.items()
        }
        hidden = {stack: tuple(s[tokens] for s in given.hidden[stack]) for stack in given.hidden}
        return Outputs(given.logits[rows], hidden, attention)

    whole = loss(student, teacher, labels(), 0.5)
    parts = [
        loss(part(student, rows, tokens), part(teacher, rows, tokens), labels()[rows], 0.5)
        for rows, tokens in ((slice(0, 1), slice(0, 4)), (slice(1, 3), slice(4, None)))
    ]
    added = Ratio(sum(p.numerator for p in parts), sum(p.denominator for p in parts))
    assert torch.allclose(added.numerator, whole.numerator, rtol=1e-5)
    assert torch.allclose(added.denominator, whole.denominator, rtol=1e-5)
    assert added.mean().item() == pytest.approx(whole.mean().item(), rel=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_a_sum_over_labels_takes_scheduled_quantities_as_tensors(name: str) -> None:
    loss, student = loss_named(name), outputs(0)
    if not isinstance(loss, LabelLoss):
        pytest.skip("no sum over labels")
    teacher, scheduled = teacher_of(loss, 1), loss.scheduled(0.25)
    given = student.logits.flatten(0, 1), None if teacher is None else teacher.logits.flatten(0, 1), labels().flatten()
    expected = loss.of_logits(*given, scheduled)
    tensors = {name: torch.tensor(value) for name, value in scheduled.items()}
    assert torch.allclose(loss.of_logits(*given, tensors), expected, rtol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_without_labels_gives_zero_and_a_zero_gradient(name: str) -> None:
    loss, student = loss_named(name), outputs(0)
    hidden = {stack: tuple(s[:0] for s in states) for stack, states in student.hidden.items()}
    padding = {key: replace(block, sees=sees() & False) for key, block in student.attention.items()}
    none = Outputs(student.logits, hidden, padding)
    teacher = replace(none, logits=student.logits.detach()) if loss.needs_teacher else None
    value = loss(none, teacher, torch.full_like(labels(), IGNORE), 0.5).mean()
    assert value.item() == 0
    value.backward()
    assert all(tensor.grad is None or (tensor.grad == 0).all() for tensor in (student.logits, *states(student)))


@pytest.mark.parametrize("name", NAMES)
def test_half_precision_logits_are_weighed_in_float32(name: str) -> None:
    loss, half = loss_named(name), outputs(0, dtype=torch.bfloat16)
    teacher = teacher_of(loss, 1, dtype=torch.bfloat16)

    def full(given: Outputs | None) -> Outputs | None:
        return None if given is None else detached(given, torch.float32)

    value = loss(half, teacher, labels(), 0.5).mean()
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(loss(full(half), full(teacher), labels(), 0.5).mean().item(), rel=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_scheduled_quantities_are_finite_numbers(name: str) -> None:
    logged = loss_named(name).scheduled(0.5)
    assert all(isinstance(value, float) and value == value for value in logged.values())


@pytest.mark.parametrize("name", NAMES)
def test_a_negative_weight_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"loss weight must be >= 0, got -1"):
        build(compose([f"+loss@measure.probe={name}", "measure.probe.weight=-1.0"]).measure.probe)


@pytest.mark.parametrize("name", NAMES)
def test_a_weight_may_follow_a_schedule(name: str) -> None:
    place = "measure.probe.weight"
    lines = [f"+loss@measure.probe={name}", f"+schedule@{place}=linear", f"{place}.start=2", f"{place}.end=0"]
    node = compose(lines).measure.probe
    assert [*binding.faults("probe", node._get_parent(), "probe")] == []
    loss: Loss = build(node)
    assert [loss.weight_at(progress) for progress in (0.0, 0.25, 1.0)] == [2.0, 1.5, 0.0]
    with pytest.raises(ValueError, match=r"loss weight must be >= 0, got -1"):
        build(compose([*lines, f"{place}.end=-1"]).measure.probe)


def test_curves_are_quantities_by_their_name_and_weights_by_that_of_their_loss() -> None:
    falls, five = Linear(start=5.0, end=1.0), Constant(value=5.0)
    ce = CrossEntropy(weight=Linear(start=0.0, end=1.0), label_smoothing=0.0)
    kl, other = (ForwardKl(weight=1.0, temperature=falls) for _ in range(2))
    assert scheduled({"ce": ce, "kl": kl, "other": other}, 0.5) == {"temperature": 3.0, "ce_weight": 0.5}
    fixed = ForwardKl(weight=1.0, temperature=five)
    assert scheduled({"kl": kl, "fixed": fixed}, 0.5) == {"kl_temperature": 3.0, "fixed_temperature": 5.0}
