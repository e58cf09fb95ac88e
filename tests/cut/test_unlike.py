"""Of all numbers of neurons, or of heads, with the same sum, the ones of least added-up loss."""

from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from transformers import BertConfig, LlamaConfig, T5Config

from slimexp.architecture.base import FFN, HEADS, KV_HEADS
from slimexp.cut.keep import Keep, cut_stacks
from slimexp.cut.unlike import measure_unlike, spread, unlike_axes
from slimexp.model.attention import stacks
from slimexp.model.widths import widths_of

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

    found = measure_unlike(family, FFN, orders, loss, step=8)
    counts = found.counts({"decoder": [0, 1, 2]}, 24)
    assert counts["model.layers.2"] == 48 and sum(counts.values()) == 3 * 24
    assert found.counts({"decoder": [0, 2]}, 24) == {"model.layers.0": 8, "model.layers.1": 24, "model.layers.2": 40}


def test_groups_of_heads_go_whole(tiny: Tiny) -> None:
    """The first block loses nothing, the second for each key/value head that goes with its two query heads."""
    family = tiny("causal_lm", num_key_value_heads=2)
    orders = {f"model.layers.{index}": torch.tensor([1, 0]) for index in range(2)}
    seen = []

    def loss(layers: Any, retained: Any) -> float:
        rows = {axis: [len(kept) for kept in parts.values()] for axis, parts in retained.items()}
        seen.append(rows)
        return -float(rows[KV_HEADS][1])

    found = measure_unlike(family, HEADS, orders, loss, step=1)
    assert {HEADS: [16, 32], KV_HEADS: [8, 16]} in seen and len(seen) == 4
    assert found.counts({"decoder": [0, 1]}, 1) == {"model.layers.0": 1, "model.layers.1": 1}


def test_what_no_config_could_say() -> None:
    config = LlamaConfig()
    assert unlike_axes(config, {FFN: [48, 40], HEADS: [4, 2]}) == [HEADS, FFN]
    assert (
        unlike_axes(T5Config(), {FFN: [48, 40], HEADS: [4, 2]}) == unlike_axes(BertConfig(), {FFN: [48, 40]}) == [FFN]
    )
    with pytest.raises(ValueError, match="uniform=false is for heads and neurons, and none of them can go: let heads"):
        unlike_axes(config, {FFN: [48], HEADS: [4]})
    with pytest.raises(
        ValueError, match="uniform must be true where heads of a model of type t5 can go: the blocks of"
    ):
        unlike_axes(T5Config(), {HEADS: [4, 2]})
    config.model_type = "unheard_of"
    with pytest.raises(
        ValueError, match="uniform must be true where ffn of a model of type unheard_of can go: its par"
    ):
        unlike_axes(config, {FFN: [48, 40]})


def cut(**kept: Any) -> Keep:
    none = dict.fromkeys(name for name in Keep.__dataclass_fields__ if name != "calibration_batches")
    return Keep(**none | {"calibration_batches": 0} | kept)


@pytest.mark.parametrize(
    ("task", "heads", "message"),
    [
        ("seq2seq", {"encoder": [2, 4], "decoder": [4, 4]}, r"cut\.heads must be one number for .*t5: the blocks of a"),
        (
            "classification",
            {"encoder": [2, 4]},
            r"cut\.heads must be one number for .*bert: transformers",
        ),
        ("causal_lm", {"decoder": [1]}, r"cut\.heads must be one number, or one from 0 .*\(decoder: 2 numbers\)"),
        ("causal_lm", {"decoder": [1, 3]}, r"cut\.heads must be in 1\.\.2, the model's own; got 3"),
    ],
)
def test_lists_that_no_model_can_have(tiny: Tiny, task: str, heads: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cut(heads=heads).validate(tiny(task).model.config)


def test_a_cut_gives_each_block_its_heads(tiny: Tiny) -> None:
    """One list beside another, of the blocks that stay; losses on attention know what each block will have."""
    family = tiny("causal_lm", num_hidden_layers=3)
    kept = cut(decoder_layers=[0, 2], heads={"decoder": [2, 1]}, ffn={"decoder": [24, 48]})
    small = kept.apply(family, [])
    assert widths_of(small.model.config) == {HEADS: {"decoder": [2, 1]}, FFN: {"decoder": [24, 48]}}
    assert kept.divisors == {HEADS: 1, FFN: 24} and kept.is_unlike
    assert list(cut_stacks(stacks(family), kept, family.model.config)["decoder"].attention) == [
        (32, 16, 16),
        (16, 8, 8),
    ]
    assert stacks(small)["decoder"].attention == ((32, 16, 16), (16, 8, 8))
    with pytest.raises(ValueError, match=r"have unlike numbers of heads, ffn .*, and are taken to have one"):
        cut(heads=1).validate(small.model.config)


def test_a_loss_on_attention_knows_of_a_block_that_has_none(tiny: Tiny) -> None:
    family = tiny("causal_lm")
    kept = cut(heads={"decoder": [0, 2]}, ffn={"decoder": [0, 0]})
    planned = cut_stacks(stacks(family), kept, family.model.config)["decoder"].attention
    made = stacks(kept.apply(family, []))["decoder"].attention
    assert list(planned) == list(made) == [None, (32, 16, 16)]
    assert kept.divisors == {HEADS: 2, FFN: None}
