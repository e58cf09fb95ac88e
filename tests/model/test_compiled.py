"""Blocks are compiled once for all of a kind, and only for as long as it is asked for."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from slimexp.model.compiled import blocks_compiled, can_share

Make = Callable[..., Any]


@pytest.fixture(autouse=True)
def _reset() -> None:
    torch._dynamo.reset()


def eager(monkeypatch: pytest.MonkeyPatch) -> list[torch.fx.GraphModule]:
    """Graphs that the compiler is given; they run as they are."""
    graphs: list[torch.fx.GraphModule] = []
    compile = torch.compile

    def keep(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        graphs.append(graph)
        return graph

    monkeypatch.setattr(torch, "compile", lambda function, **options: compile(function, backend=keep, **options))
    return graphs


def test_blocks_of_student_and_teacher_share_what_is_compiled(tiny: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    graphs = eager(monkeypatch)
    family, teacher = tiny("causal_lm", num_hidden_layers=4), tiny("causal_lm", num_hidden_layers=6)
    batch = family.encode([("some text", None, None)])
    expected = family.forward(batch)[0], teacher.forward(batch)[0]
    with blocks_compiled(family, teacher), torch.no_grad():
        actual = family.forward(batch)[0], teacher.forward(batch)[0]
    for one, other in zip(actual, expected, strict=True):
        assert torch.allclose(one, other, atol=1e-6)
    assert len(graphs) == 1, "ten blocks, one graph"


def test_a_model_is_as_before_afterwards(tiny: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    eager(monkeypatch)
    family = tiny("seq2seq")
    blocks = [block for stack in family.blocks().values() for block in stack]
    with pytest.raises(KeyError), blocks_compiled(family):
        assert all("forward" in vars(block) for block in blocks)
        raise KeyError
    assert not any("forward" in vars(block) for block in blocks)


def test_hidden_states_are_seen_from_outside(tiny: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    eager(monkeypatch)
    family = tiny("causal_lm")
    batch = family.encode([("some text", None, None)])
    _, expected = family.forward(batch, hidden=True)
    with blocks_compiled(family), torch.no_grad():
        _, actual = family.forward(batch, hidden=True)
    for stack, hidden in expected.items():
        assert all(torch.allclose(one, other, atol=1e-6) for one, other in zip(actual[stack], hidden, strict=True))


class Halved(nn.Module):
    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight / 2


def test_parametrized_layers_are_not_alike(tiny: Make) -> None:
    family = tiny("causal_lm")
    assert can_share(family)
    parametrize.register_parametrization(next(iter(family.compressible().values())), "weight", Halved())
    assert not can_share(family)
