"""Numbers that are not finite are noticed, at the first step that has one, whenever they are looked at."""

import pytest
import torch

from slimexp.technique.finite import EVERY, FiniteCheck, NonFiniteLoss

pytestmark = pytest.mark.fast
BAD = [float("nan"), float("inf"), float("-inf")]


@pytest.mark.parametrize("value", BAD)
def test_on_a_cpu_at_once(value: float) -> None:
    check = FiniteCheck()
    check.loss(torch.tensor(1.0), 0)
    check.norm(torch.tensor(2.0), 0)
    with pytest.raises(NonFiniteLoss, match=rf"^loss is {value} at step 1: lower optimizer\.lr"):
        check.loss(torch.tensor(value), 1)
    with pytest.raises(NonFiniteLoss, match=rf"^loss is {value} at step 1"):
        check.settle()


def test_what_is_finite_passes() -> None:
    check = FiniteCheck()
    check.settle()
    for step in range(3):
        check.loss(torch.tensor(1e30), step)
        check.norm(torch.tensor(0.0, dtype=torch.bfloat16), step)
    check.settle()


@pytest.mark.parametrize("value", BAD)
def test_on_another_device_by_and_by_and_the_first_is_named(monkeypatch: pytest.MonkeyPatch, value: float) -> None:
    """As on a GPU: nothing is read until it is asked for, or a look finds that it has arrived."""
    looks: list[int] = []
    monkeypatch.setattr(FiniteCheck, "_is_far", staticmethod(lambda tensor: True))
    monkeypatch.setattr(FiniteCheck, "_look", lambda self, step: looks.append(step))
    check = FiniteCheck()
    for step in range(6):
        check.loss(torch.tensor(value if step == 4 else 1.0), step)
        check.norm(torch.tensor(value if step >= 3 else 1.0), step)
    assert looks == list(range(6))
    with pytest.raises(NonFiniteLoss, match=rf"^norm of the gradient is {value} at step 3: .* the last checkpoint"):
        check.settle()


def test_the_loss_is_named_before_its_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FiniteCheck, "_is_far", staticmethod(lambda tensor: True))
    monkeypatch.setattr(FiniteCheck, "_look", lambda self, step: None)
    check = FiniteCheck()
    check.loss(torch.tensor(float("nan")), 2)
    check.norm(torch.tensor(float("nan")), 2)
    with pytest.raises(NonFiniteLoss, match=r"^loss is nan at step 2"):
        check.settle()


@pytest.mark.gpu
def test_on_a_gpu_within_two_looks_without_waiting() -> None:
    check = FiniteCheck()
    one, bad = torch.tensor(1.0, device="cuda"), torch.tensor(float("nan"), device="cuda")
    with pytest.raises(NonFiniteLoss, match=r"^loss is nan at step 5"):
        for step in range(3 * EVERY):
            with torch.cuda.device(0):
                torch.cuda.set_sync_debug_mode("error")
                try:
                    check.loss(bad if step == 5 else one, step)
                    check.norm(one, step)
                finally:
                    torch.cuda.set_sync_debug_mode("default")
            if step == EVERY:
                torch.cuda.synchronize()
