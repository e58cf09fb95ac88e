from typing import Any

import pytest
import torch

from slimexp.host import process_group
from slimexp.technique import random_state

CPU = torch.device("cpu")


def as_process(monkeypatch: pytest.MonkeyPatch, rank: int) -> None:
    monkeypatch.setattr(process_group, "rank", lambda: rank)


def test_one_process_goes_on_where_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(3)
    saved = random_state.save(CPU)
    assert set(saved) == {"cpu"}
    first = torch.rand(4)
    random_state.restore(saved, CPU, seed=[0, 5])
    assert torch.equal(torch.rand(4), first)


def test_every_process_goes_on_where_it_was_and_new_ones_draw_others(monkeypatch: pytest.MonkeyPatch) -> None:
    states = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        states.append({"cpu": torch.get_rng_state()})
    monkeypatch.setattr(process_group, "all_gather", lambda value: states)
    saved = random_state.save(CPU)

    def drawn(rank: int, saved: dict[str, Any], seed: list[int]) -> torch.Tensor:
        as_process(monkeypatch, rank)
        random_state.restore(saved, CPU, seed=seed)
        return torch.rand(4)

    for rank, seed in enumerate((1, 2)):
        torch.manual_seed(seed)
        assert torch.equal(torch.rand(4), drawn(rank, saved, [0, 5]))
    new = drawn(2, saved, [0, 5])
    assert torch.equal(new, drawn(2, saved, [0, 5]))
    assert torch.equal(new, drawn(2, {}, [0, 5]))
    for other in (drawn(3, saved, [0, 5]), drawn(2, saved, [0, 6]), drawn(1, saved, [0, 5])):
        assert not torch.equal(new, other)
