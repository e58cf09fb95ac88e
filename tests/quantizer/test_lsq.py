import math

import pytest
import torch
from torch import Tensor

from slimexp.quantizer.base import rounded
from slimexp.quantizer.lsq import Lsq

WEIGHT = torch.randn(4, 16, generator=torch.Generator().manual_seed(0))
UPSTREAM = torch.randn(4, 16, generator=torch.Generator().manual_seed(1))


def started(x: Tensor = WEIGHT) -> Lsq:
    quantizer = Lsq(bits=3, group_size=8)
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
            assert quantizer.step.grad[2 * row + group] == pytest.approx(float(of_step) / math.sqrt(8 * 3), rel=1e-4)


@pytest.mark.fast
def test_the_step_that_is_used_has_few_digits() -> None:
    quantizer = started()
    quantizer.step.data.mul_(1.2345)
    assert torch.equal(quantizer.grid(WEIGHT).scale.flatten(), rounded(quantizer.step.detach(), digits=6))


@pytest.mark.fast
def test_a_step_that_learns_lowers_the_error() -> None:
    quantizer = started(0.2 * WEIGHT)
    optimizer = torch.optim.Adam([quantizer.step], lr=0.05)
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
    quantizer.step.data.mul_(2)
    again = Lsq(bits=3, group_size=8)
    again.load_state_dict(quantizer.state_dict())
    assert torch.equal(again(WEIGHT), quantizer(WEIGHT))
    again.freeze(WEIGHT)
    again.step.data.mul_(2)
    assert torch.equal(again(WEIGHT), quantizer(WEIGHT))


@pytest.mark.fast
def test_one_step_for_all_entries_of_an_activation() -> None:
    quantizer = Lsq(bits=8, group_size=None)
    quantizer.start(WEIGHT.flatten())
    quantizer(WEIGHT.view(2, 2, 16)).sum().backward()
    assert quantizer.step.grad.shape == (1,)
