from typing import Any

import pytest
import torch

from slimexp.loss.base import Outputs, Stack
from slimexp.loss.hidden import HiddenStates, matched

LABELS = torch.zeros(1, 4, dtype=torch.long)

pytestmark = pytest.mark.fast


def states(*values: float, width: int = 3) -> Outputs:
    """One stack whose layers are constant."""
    return Outputs(torch.zeros(1, 4, 2), {"decoder": tuple(torch.full((4, width), value) for value in values)})


def random(seed: int, layers: int, width: int = 8, tokens: int = 6) -> Outputs:
    generator = torch.Generator().manual_seed(seed)
    hidden = tuple(torch.randn(tokens, width, generator=generator, dtype=torch.float64) for _ in range(layers))
    return Outputs(torch.zeros(1, 4, 2), {"decoder": hidden})


def stack(width: int, depth: int) -> Stack:
    return Stack(width, [(width, width, width)] * depth)


def value(loss: HiddenStates, student: Outputs, teacher: Outputs) -> float:
    return loss(student, teacher, LABELS, 0.0).mean().item()


def test_layers_are_matched_evenly_first_to_first_and_last_to_last() -> None:
    teacher = states(1.0, 2.0, 3.0, 4.0, 5.0)  # embedding and four blocks
    loss = HiddenStates(weight=1.0)
    assert value(loss, states(1.0, 3.0, 5.0), teacher) == 0
    assert value(loss, states(1.0, 5.0), teacher) == 0
    assert value(loss, states(1.0, 2.0, 4.0, 5.0), teacher) == 0


def test_is_relative_to_the_teacher() -> None:
    found = value(HiddenStates(weight=1.0), states(1.0, 8.0), states(2.0, 10.0))
    assert found == pytest.approx((0.25 + 0.04) / 2)


def test_the_last_layer_alone() -> None:
    loss = HiddenStates(weight=1.0, layers="last")
    assert value(loss, states(9.0, 9.0, 8.0), states(2.0, 1.0, 1.0, 10.0)) == pytest.approx(0.04)


def test_blocks_of_the_teacher_are_numbered_as_a_cut_numbers_them() -> None:
    """Blocks 0, 1 and 3 of four: a student that was cut out of them is where its teacher is."""
    teacher = states(1.0, 2.0, 3.0, 4.0, 5.0)
    assert value(HiddenStates(weight=1.0, layers=[0, 1, 3]), states(1.0, 2.0, 3.0, 5.0), teacher) == 0
    assert value(HiddenStates(weight=1.0, layers={"decoder": [1, 1, 3]}), states(1.0, 3.0, 3.0, 5.0), teacher) == 0
    assert matched([0, 2], "decoder", 2, 3) == [(0, 0), (1, 1), (2, 3)]
    assert matched({"encoder": [0]}, "decoder", 2, 4) == [(0, 0), (1, 2), (2, 4)]


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([0, 4], r"layers must be blocks 0\.\.3 of the teacher \(decoder\), got 4"),
        ([-1, 2], r"layers must be blocks 0\.\.3 of the teacher \(decoder\), got -1"),
        ([0], r"layers must name a block of the teacher for each of the student's 2 \(decoder\), got \[0\]"),
        ({"encode": [0, 1]}, "layers names the stack 'encode', the model has decoder"),
    ],
)
def test_a_map_that_does_not_fit_is_refused_before_training(layers: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HiddenStates(weight=1.0, layers=layers).prepare({"decoder": stack(3, 2)}, {"decoder": stack(3, 4)}, seed=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": "first"}, "layers must be even, last, or a list of the teacher's blocks, got 'first'"),
        ({"distance": "l1"}, "distance must be mse or cosine, got 'l1'"),
    ],
)
def test_words_that_name_nothing(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HiddenStates(weight=1.0, **options)


def test_cosine_distance_is_a_mean_over_tokens_and_blind_to_length() -> None:
    """DistilBERT's: 1 - cos, here by hand in float64."""
    student, teacher = random(0, 3), random(1, 3)
    pairs = zip(student.hidden["decoder"], teacher.hidden["decoder"], strict=True)
    by_hand = [1 - (s * t).sum(1) / (s.square().sum(1) * t.square().sum(1)).sqrt() for s, t in pairs]
    loss = HiddenStates(weight=1.0, distance="cosine")
    assert value(loss, student, teacher) == pytest.approx(torch.stack(by_hand).mean().item(), rel=1e-6)
    longer = Outputs(student.logits, {"decoder": tuple(7 * state for state in student.hidden["decoder"])})
    assert value(loss, longer, teacher) == pytest.approx(value(loss, student, teacher), rel=1e-6)


@pytest.mark.parametrize("distance", ["mse", "cosine"])
def test_tokens_that_are_all_zeros_count_for_nothing(distance: str) -> None:
    """Recorded passes fill up with them."""
    student, teacher = random(0, 3), random(1, 3)

    def filled(given: Outputs) -> Outputs:
        hidden = tuple(torch.cat([state, torch.zeros(2, 8)]).requires_grad_() for state in given.hidden["decoder"])
        return Outputs(given.logits, {"decoder": hidden})

    loss, padded = HiddenStates(weight=1.0, distance=distance), filled(student)
    found = loss(padded, filled(teacher), LABELS, 0.0).mean()
    assert found.item() == pytest.approx(value(loss, student, teacher), rel=1e-6)
    found.backward()
    for state in padded.hidden["decoder"]:
        assert state.grad is not None and state.grad.isfinite().all() and (state.grad[-2:] == 0).all()


def test_other_widths_are_refused_with_a_way_out() -> None:
    match = r"width 3 cannot be held against .* width 6: set projection=true of the loss"
    with pytest.raises(ValueError, match=match):
        HiddenStates(weight=1.0)(states(1.0, 2.0), states(1.0, 2.0, width=6), LABELS, 0.0)
    with pytest.raises(ValueError, match=match):
        HiddenStates(weight=1.0).prepare({"decoder": stack(3, 1)}, {"decoder": stack(6, 1)}, seed=0)


def projected(seed: int = 0) -> HiddenStates:
    loss = HiddenStates(weight=1.0, projection=True)
    loss.prepare({"decoder": stack(3, 2)}, {"decoder": stack(8, 2)}, seed=seed)
    return loss


def test_a_projection_is_one_matrix_per_stack_and_the_same_for_a_seed() -> None:
    loss = projected()
    assert {name: tuple(p.shape) for name, p in loss.named_parameters()} == {"projections.decoder.weight": (8, 3)}
    (weight,) = loss.parameters()
    assert torch.allclose(weight.T @ weight, torch.eye(3), atol=1e-6)  # lengths are kept
    before = torch.get_rng_state()
    assert torch.equal(weight, *projected().parameters())
    assert not torch.equal(weight, *projected(seed=1).parameters())
    assert torch.equal(before, torch.get_rng_state())


def test_a_projection_is_learned_to_where_the_teacher_is_a_map_of_the_student() -> None:
    student = random(0, 3, width=3, tokens=40)
    true = torch.randn(8, 3, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    teacher = Outputs(student.logits, {"decoder": tuple(state @ true.T for state in student.hidden["decoder"])})
    loss = projected().double()
    optimizer = torch.optim.Adam(loss.parameters(), lr=0.1)
    first = value(loss, student, teacher)
    for _ in range(200):
        optimizer.zero_grad()
        loss(student, teacher, LABELS, 0.0).mean().backward()
        optimizer.step()
    assert value(loss, student, teacher) < 1e-4 < 0.5 < first
    (learned,) = loss.parameters()
    assert torch.allclose(learned, true, atol=0.05)
