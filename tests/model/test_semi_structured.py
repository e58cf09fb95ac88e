"""Which layers go to sparse kernels, and that they compute the same there."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from slimexp.model.semi_structured import is_2_4, supported, use_sparse_kernels


def prune_2_4(weight: torch.Tensor) -> None:
    with torch.no_grad():
        weight.unflatten(-1, (-1, 4))[..., 2:] = 0


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ([1.0, 2, 0, 0, 0, 0, 3, 4], True),
        ([0.0] * 8, True),
        ([1.0, 2, 3, 0, 0, 0, 0, 0], False),  # half zeros, but three of four
        ([1.0, 0, 1, 0, 1, 0], False),  # a row of six has no fours
    ],
)
def test_2_4_counts_every_four_neighbours(row: list[float], expected: bool) -> None:
    assert is_2_4(torch.tensor([row, row])) is expected


def test_what_kernels_do_not_take_stays_dense(tiny: Callable[..., Any]) -> None:
    model = tiny("causal_lm").model
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            prune_2_4(module.weight)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert use_sparse_kernels(model) == {}  # on the CPU
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.gpu
@pytest.mark.skipif(not supported(), reason="needs a GPU with semi-structured kernels")
def test_sparse_kernels_compute_the_same(tiny: Callable[..., Any]) -> None:
    sizes = {"hidden_size": 128, "intermediate_size": 256, "tie_word_embeddings": True}
    model = tiny("causal_lm", **sizes).model.to("cuda", torch.bfloat16)
    first, *others = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    for name in others:
        prune_2_4(model.get_submodule(name).weight)
    ids = torch.randint(3, 200, (2, 16), device="cuda")
    with torch.no_grad():
        expected = model(input_ids=ids).logits.float()
        moved = use_sparse_kernels(model)
        seen = model(input_ids=ids).logits.float()
    assert first not in moved and "lm_head" not in moved and set(moved) == {*others} - {"lm_head"}
    torch.testing.assert_close(seen, expected, atol=0.02 * expected.abs().max().item(), rtol=0.02)
