"""Functions of tensors that are recorded on a GPU and replayed."""

import pytest
import torch
from torch import Tensor

from slimexp.kernel.cuda_graph import Recorded

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def work(a: Tensor, b: Tensor) -> tuple[Tensor, ...]:
    return a + b, a * 2


@pytest.mark.fast
@pytest.mark.parametrize("device", DEVICES)
def test_what_is_recorded_follows_its_arguments(device: str) -> None:
    recorded = Recorded(work)
    for size in (3, 5, 3):  # and shapes
        for step in range(3):
            a, b = (torch.arange(float(size), device=device) + number + step for number in range(2))
            before = a.clone()
            added, doubled = recorded(a, b)
            assert torch.equal(added, a + b) and torch.equal(doubled, 2 * a)
            assert torch.equal(a, before)


@pytest.mark.gpu
def test_python_runs_twice_for_each_list_of_shapes() -> None:
    calls: list[torch.Size] = []

    def counted(a: Tensor) -> tuple[Tensor, ...]:
        calls.append(a.shape)
        return (a + 1,)

    recorded = Recorded(counted)
    for size in (3, 4, 3, 4, 3):
        assert torch.equal(recorded(torch.zeros(size, device="cuda"))[0], torch.ones(size, device="cuda"))
    assert calls == [torch.Size([3])] * 2 + [torch.Size([4])] * 2
