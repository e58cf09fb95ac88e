"""Of all numbers of neurons with the same sum, the ones of least added-up loss."""

from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig

from slimexp.architecture.base import FFN
from slimexp.cut.unlike import check_unlike, measure_unlike, spread

Tiny = Callable[..., Any]


@pytest.mark.parametrize("total", [3, 7, 12])
def test_no_other_numbers_lose_less(total: int) -> None:
    losses = np.random.default_rng(0).random((3, 4))
    found = spread(losses, total)
    others = [counts for counts in product(range(1, 5), repeat=3) if sum(counts) == total]

    def loss(counts: Any) -> float:
        return float(losses[range(3), np.array(counts) - 1].sum())

    assert sum(found) == total and loss(found) == pytest.approx(min(map(loss, others)))


def test_a_block_that_loses_more_keeps_more(tiny: Tiny) -> None:
    """The loss is told by the neurons of the last block alone; blocks that go have no say."""
    family = tiny("causal_lm", num_hidden_layers=3)
    orders = {f"model.layers.{index}": torch.arange(48).flip(0) for index in range(3)}

    def loss(layers: Any, retained: Any) -> float:
        assert [len(blocks) for blocks in layers.values()] == [3]
        assert all(torch.equal(kept, torch.arange(48 - len(kept), 48)) for kept in retained[FFN].values())
        return -float(len(retained[FFN]["model.layers.2"]))

    found = measure_unlike(family, orders, loss, step=8)
    counts = found.counts({"decoder": [0, 1, 2]}, 24)
    assert counts["model.layers.2"] == 48 and sum(counts.values()) == 3 * 24
    assert found.counts({"decoder": [0, 2]}, 24) == {"model.layers.0": 8, "model.layers.1": 24, "model.layers.2": 40}


def test_what_no_config_could_say() -> None:
    config = LlamaConfig()
    check_unlike(config, {FFN: [48, 40]})
    with pytest.raises(ValueError, match="uniform=false is for neurons, and none can go: let ffn be cut too"):
        check_unlike(config, {FFN: [48]})
    config.model_type = "unheard_of"
    with pytest.raises(ValueError, match="uniform must be true for a model of type unheard_of"):
        check_unlike(config, {FFN: [48, 40]})
