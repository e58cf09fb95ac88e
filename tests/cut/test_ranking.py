from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from slimexp.config.build import build
from slimexp.config.composition import compose
from slimexp.cut.ranking import Ranking, rank
from slimexp.cut.shape import whole
from slimexp.model.base import Batch

Tiny = Callable[..., Any]
ROWS = [("one", "two!", 0), ("three and four", "5", 1), ("six", "seven", 0)]


def ranked(family: Any, importance: str = "activation", *, norm: float = 2.0) -> Ranking:
    def objective(batch: Batch) -> torch.Tensor:
        logits, _ = family.forward(batch)
        return nn.functional.cross_entropy(logits.flatten(0, -2), batch["labels"].flatten())

    return rank(
        family,
        build(compose([f"+importance@measure.probe={importance}"]).measure.probe),
        norm=norm,
        widths=whole(family.model.config).keys() - {"encoder", "decoder"},
        batches=lambda rows: (family.encode([ROWS[row % 3]]) for row in range(min(rows, 3))),
        rows=3,
        objective=objective,
    )


@pytest.mark.parametrize("importance", ["activation", "magnitude", "wanda", "taylor", "random"])
def test_dead_neurons_and_heads_go_first(tiny: Tiny, importance: str) -> None:
    family = tiny("causal_lm")
    with torch.no_grad():
        for block in family.blocks()["decoder"]:
            block.mlp.down_proj.weight[:, :16] = 0
            block.self_attn.o_proj.weight[:, 16:] = 0  # the second of two groups of two heads
    ranking = ranked(family, importance)
    orders = ranking.units
    assert all(len(order) == 48 for order in orders["ffn"].values()) and len(orders["hidden"][""]) == 32
    if importance != "random":
        assert all(set(order[-16:].tolist()) == set(range(16)) for order in orders["ffn"].values())
        assert all(order.tolist() == [0, 1] for order in orders["heads"].values())
    assert ranked(family, importance).units["hidden"][""].equal(orders["hidden"][""])


def test_a_group_of_heads_goes_as_one(tiny: Tiny) -> None:
    family = tiny("causal_lm")
    with torch.no_grad():
        for block in family.blocks()["decoder"]:
            block.self_attn.o_proj.weight[:, :16] = 0
    ranking = ranked(family)
    kept = ranking.retained({"decoder": 2, "heads": 1, "ffn": 48, "hidden": 32})
    assert kept.keys() == {"heads", "kv_heads"}
    assert all(torch.equal(rows, torch.arange(16, 32)) for rows in kept["heads"].values())
    assert all(torch.equal(rows, torch.arange(8, 16)) for rows in kept["kv_heads"].values())


def test_every_layer_has_one_vote_on_channels(tiny: Tiny) -> None:
    """A layer of large weights does not outvote the others."""
    family = tiny("causal_lm")
    layers = [
        m for n, m in family.model.named_modules() if n.endswith(("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"))
    ]
    with torch.no_grad():
        for layer in layers:
            layer.weight[:, :16] = 0
        layers[0].weight[:, 16:] = 0
        layers[0].weight[:, :16] = 1000
    assert set(ranked(family, "magnitude").units["hidden"][""][:16].tolist()) == set(range(16, 32))


def test_l1_and_l2_differ(tiny: Tiny) -> None:
    family = tiny("causal_lm")
    with torch.no_grad():
        for block in family.blocks()["decoder"]:
            block.mlp.down_proj.weight.zero_()
            block.mlp.down_proj.weight[0, 0] = 3  # L1 3, L2 3
            block.mlp.down_proj.weight[:, 1] = 0.2  # L1 6.4, L2 1.1
    for norm, first in ((1.0, 1), (2.0, 0)):
        assert {int(order[0]) for order in ranked(family, "magnitude", norm=norm).units["ffn"].values()} == {first}


def test_blocks_that_turn_nothing_go_first(tiny: Tiny) -> None:
    family = tiny("seq2seq", num_layers=3, num_decoder_layers=3)
    for stack, idle in (("encoder", 1), ("decoder", 0)):
        for name, module in family.blocks()[stack][idle].named_modules():
            if name.endswith((".o", ".wo")):
                nn.init.zeros_(module.weight)
    ranking = ranked(family)
    assert ranking.blocks["encoder"][0] == 0 and ranking.blocks["encoder"][-1] == 1
    assert ranking.blocks["decoder"][0] == 0  # holds the position table of all
    assert ranking.layers({"encoder": 2, "decoder": 1}) == {"encoder": [0, 2], "decoder": [0]}
    assert not any(module._forward_hooks for module in family.model.modules())
