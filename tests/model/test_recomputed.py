"""Activations that are computed anew give the same gradients, with dropout and hidden states, for less memory."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor

from slimexp.model.base import Family
from slimexp.model.recomputed import blocks_recomputed
from slimexp.quantizer.minmax import MinMax
from slimexp.weight.attachment import attach

Make = Callable[..., Any]
TEXTS = [("some text", "another", 0), ("a", "two words", 1)]
DROPOUT = {"seq2seq": {"dropout_rate": 0.3}, "causal_lm": {"attention_dropout": 0.3},
           "classification": {"hidden_dropout_prob": 0.3}}  # fmt: skip


def gradients(family: Family, *, recomputed: bool, hidden: bool = False) -> tuple[dict[str, Tensor], int]:
    """Gradients of a sum of outputs; and bytes that are kept for them, parameters aside."""
    torch.manual_seed(0)
    family.model.zero_grad()
    own = {parameter.data_ptr() for parameter in family.model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in own:
            kept[tensor.data_ptr()] = tensor.nbytes
        return tensor

    with blocks_recomputed(family) if recomputed else nullcontext():
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            logits, states = family.forward(family.encode(TEXTS), hidden=hidden)
        total = logits.square().sum() + sum(state.square().sum() for stack in states.values() for state in stack)
        total.backward()
    found = {name: p.grad.clone() for name, p in family.model.named_parameters() if p.grad is not None}
    return found, sum(kept.values())


@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("task", ["seq2seq", "causal_lm", "classification"])
def test_gradients_are_the_same_and_less_is_kept(tiny: Make, task: str, train: bool, hidden: bool) -> None:
    family = tiny(task, **DROPOUT[task])
    family.model.train(train)
    plain, plain_bytes = gradients(family, recomputed=False, hidden=hidden)
    anew, anew_bytes = gradients(family, recomputed=True, hidden=hidden)
    assert plain.keys() == anew.keys() and all(torch.equal(plain[name], anew[name]) for name in plain)
    assert anew_bytes < 0.7 * plain_bytes


def test_through_quantizers(tiny: Make) -> None:
    family = tiny("causal_lm")
    for layer in family.compressible().values():
        attach(layer, "weight", MinMax(bits=4, group_size=None))
    plain, _ = gradients(family, recomputed=False)
    anew, _ = gradients(family, recomputed=True)
    assert all(torch.equal(plain[name], anew[name]) for name in plain)


def test_blocks_are_left_as_they_were(tiny: Make) -> None:
    family = tiny("causal_lm")
    (blocks,) = family.blocks().values()
    of_compiler = blocks[0].forward = lambda *inputs, **more: type(blocks[0]).forward(blocks[0], *inputs, **more)
    gradients(family, recomputed=True)
    assert blocks[0].forward is of_compiler and "forward" not in vars(blocks[1])


def test_without_gradient_nothing_is_computed_anew(tiny: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    family = tiny("causal_lm")
    monkeypatch.setattr("slimexp.model.recomputed.checkpoint", lambda *_, **__: pytest.fail("not needed"))
    with blocks_recomputed(family), torch.no_grad():
        family.forward(family.encode(TEXTS))
