"""Passes behind unchanged blocks: the same numbers as passes through all, in every type of model."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from slimexp.calibration.divergence import Divergence
from slimexp.model.base import Batch, Family
from tests.cut.test_model_types import MODELS, model

ROWS = [("one", "two!", 0), ("three and four", "5", 1), ("six", "seven", 0)]


def batches(family: Family) -> list[Batch]:
    return [family.encode(ROWS[:2]), family.encode(ROWS[2:])]


def change(block: nn.Module) -> None:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.3)


@pytest.mark.parametrize("name", MODELS)
def test_changes_of_one_block_after_another_cost_what_whole_passes_tell(tiny: Callable[..., Any], name: str) -> None:
    family = model(tiny, name)
    one, other = Divergence(family, batches(family), blockwise=True), Divergence(family, batches(family))
    assert one._replay is not None
    costs = []
    for blocks in family.blocks().values():
        for block in [*blocks, blocks[0]]:  # backwards too
            before = {key: value.clone() for key, value in block.state_dict().items()}
            change(block)
            expected = other()
            assert [one(since=block), one(since=block), one()] == [expected] * 3
            costs.append(expected)
            block.load_state_dict(before)
    assert one() == 0
    assert all(costs)


def test_blocks_before_the_first_that_changed_do_not_run(tiny: Callable[..., Any]) -> None:
    family = model(tiny, "llama")
    one, ran = Divergence(family, batches(family), blockwise=True), []
    blocks = list(family.blocks()["decoder"])
    for index, block in enumerate(blocks):
        block.self_attn.register_forward_hook(lambda *_, index=index: ran.append(index))
    one(since=blocks[1])
    ran.clear()
    one(since=blocks[1])
    assert ran == [1, 2, 1, 2]
    ran.clear()
    one(since=blocks[2])
    assert ran == [1, 2, 1, 2]  # the outputs of 1 are kept from now on
    ran.clear()
    one(since=blocks[2])
    assert ran == [2, 2]


def test_a_model_whose_blocks_leave_things_for_each_other_runs_whole(tiny: Callable[..., Any]) -> None:
    family = model(tiny, "llama")
    blocks = family.blocks()["decoder"]
    shelf = {}
    blocks[0].self_attn.register_forward_hook(lambda *_: shelf.update(left=torch.randn(())))
    blocks[2].register_forward_hook(lambda *_: shelf.pop("left") and None)
    one = Divergence(family, batches(family), blockwise=True)
    assert one._replay is None
    assert one(since=blocks[2]) == 0


def test_a_block_whose_forward_was_replaced_keeps_it(tiny: Callable[..., Any]) -> None:
    family = model(tiny, "llama")
    divergence = Divergence(family, batches(family), blockwise=True)
    first, *_, last = next(iter(family.blocks().values()))
    own = first.forward = first.forward  # as a patch of another library
    divergence(since=last)
    divergence(since=last)
    assert first.forward is own and "forward" not in vars(last)
