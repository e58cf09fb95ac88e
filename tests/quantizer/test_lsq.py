import math
from typing import Any

import pytest
import torch
from torch import Tensor

from slimexp.quantizer.grid import rounded
from slimexp.quantizer.lsq import Lsq
from slimexp.quantizer.mse import Mse

WEIGHT = torch.randn(4, 16, generator=torch.Generator().manual_seed(0))
UPSTREAM = torch.randn(4, 16, generator=torch.Generator().manual_seed(1))


SETTINGS: dict[str, Any] = {"candidates": 20, "smallest": 0.4, "rate": 30.0}


def started(x: Tensor = WEIGHT, *, rate: float = 30.0) -> Lsq:
    quantizer = Lsq(bits=3, group_size=8, **SETTINGS | {"rate": rate})
    quantizer.start(x)
    return quantizer


@pytest.mark.fast
def test_gradients_are_those_of_the_paper() -> None:
    quantizer, x = started(), WEIGHT.clone().requires_grad_()
    quantizer(x).backward(UPSTREAM)
    for row in range(4):
        for group in range(2):
            entries = slice(8 * group, 8 * group + 8)
            scale = quantizer.grid(WEIGHT).scale[row, group]
            of_step = 0.0
            parts = (WEIGHT[row, entries], UPSTREAM[row, entries], x.grad[row, entries])
            for w, upstream, of_weight in zip(*parts, strict=True):
                v = w / scale
                slope = -4.0 if v < -4 else 3.0 if v > 3 else v.round() - v
                of_step += slope * upstream
                assert of_weight == (upstream if -4 <= v <= 3 else 0)
            of_moved = float(of_step) / math.sqrt(8 * 3) * float(scale) * 30  # a step is first * exp(30 * moved)
            assert quantizer.moved.grad[2 * row + group] == pytest.approx(of_moved, rel=1e-4)


@pytest.mark.fast
def test_the_first_grid_is_that_of_least_squared_error_and_no_level_lies_idle() -> None:
    for bits in (2, 3, 4):
        settings = {"bits": bits, "group_size": 8}
        learned, least = Lsq(**settings, **SETTINGS), Mse(**settings, candidates=20, smallest=0.4)
        learned.start(WEIGHT)
        assert torch.equal(learned(WEIGHT), least(WEIGHT))
    highest = WEIGHT.unflatten(-1, (-1, 8)).max(-1).values > WEIGHT.unflatten(-1, (-1, 8)).min(-1).values.abs()
    assert torch.equal(learned.grid(WEIGHT).scale < 0, highest)


@pytest.mark.fast
def test_the_step_that_is_used_has_few_digits() -> None:
    quantizer = started()
    quantizer.moved.data.fill_(0.01)
    exact = quantizer.first * math.exp(0.3)
    assert torch.equal(quantizer.grid(WEIGHT).scale.flatten(), rounded(exact, digits=6))


@pytest.mark.fast
def test_under_adam_large_and_small_steps_change_by_the_same_share() -> None:
    weight = WEIGHT * torch.tensor([0.01, 0.1, 1.0, 10.0]).unsqueeze(-1)
    quantizer = started(weight)
    optimizer = torch.optim.Adam([quantizer.moved], lr=1e-3, eps=1e-16)
    quantizer(weight).backward(UPSTREAM)
    optimizer.step()
    assert torch.allclose((30 * quantizer.moved).abs(), torch.tensor(0.03), rtol=1e-3)


@pytest.mark.fast
def test_a_step_that_learns_lowers_the_error() -> None:
    quantizer = started(0.2 * WEIGHT, rate=1.0)
    optimizer = torch.optim.Adam([quantizer.moved], lr=0.05)
    errors = []
    for _ in range(60):
        optimizer.zero_grad()
        (error := (quantizer(WEIGHT) - WEIGHT).square().sum()).backward()
        optimizer.step()
        errors.append(error.item())
    assert errors[-1] < 0.5 * errors[0]


@pytest.mark.fast
def test_steps_are_loaded_again_and_freeze() -> None:
    quantizer = started()
    quantizer.moved.data.fill_(0.02)
    again = Lsq(**quantizer.arguments())
    again.load_state_dict(quantizer.state_dict())
    assert torch.equal(again(WEIGHT), quantizer(WEIGHT))
    again.freeze(WEIGHT)
    again.moved.data.mul_(2)
    assert torch.equal(again(WEIGHT), quantizer(WEIGHT))


@pytest.mark.fast
def test_one_step_for_all_entries_of_an_activation() -> None:
    quantizer = Lsq(bits=8, group_size=None, **SETTINGS)
    quantizer.start(WEIGHT.flatten())
    quantizer(WEIGHT.view(2, 2, 16)).sum().backward()
    assert quantizer.moved.grad.shape == (1,)
    assert quantizer.first > 0


@pytest.mark.fast
def test_rate_out_of_range() -> None:
    with pytest.raises(ValueError, match="rate must be > 0, got 0"):
        Lsq(bits=4, group_size=None, **SETTINGS | {"rate": 0.0})
