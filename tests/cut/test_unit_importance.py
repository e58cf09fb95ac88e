from collections.abc import Callable
from typing import Any

import pytest
import torch

from slimexp.architecture.base import FFN, HEADS, HIDDEN
from slimexp.architecture.model_type import architecture_of
from slimexp.cut.unit_importance import activity, by_scope, hidden_importance, reader_importance

Tiny = Callable[..., Any]
ROWS = [("one", "two!", 0), ("three and four", "5", 1), ("six", "seven", 0)]


def test_the_importance_of_a_neuron_is_its_mean_activation_times_the_norm_of_its_readers(tiny: Tiny) -> None:
    family = tiny("causal_lm")
    reader = family.blocks()["decoder"][0].mlp.down_proj
    inputs: list[torch.Tensor] = []
    handle = reader.register_forward_pre_hook(lambda _, x: inputs.append(x[0].detach()))
    with torch.no_grad():
        family.forward(family.encode(ROWS))
    handle.remove()
    norm = reader.weight.detach().norm(dim=0)
    expected = norm * inputs[0].abs().mean((0, 1))
    name = "model.layers.0.mlp.down_proj"
    seen = activity(family, [FFN, HIDDEN], [family.encode(ROWS)])
    torch.testing.assert_close(reader_importance(family, FFN, seen)[name], expected)
    assert torch.equal(reader_importance(family, FFN, {})[name], norm)


def test_weights_of_gpt2_hold_inputs_first(tiny: Tiny) -> None:
    family = tiny("causal_lm", model_type="gpt2", n_inner=40)
    scores = reader_importance(family, FFN, {})
    assert {len(score) for score in scores.values()} == {40}


def test_every_norm_has_one_vote_on_channels(tiny: Tiny) -> None:
    family = tiny("causal_lm")
    scores = hidden_importance(family, activity(family, [HIDDEN, FFN], [family.encode(ROWS)]))
    assert scores.shape == (32,) and float(scores.mean()) == pytest.approx(5, rel=1e-5)  # two norms a block, one behind


def test_layers_that_share_a_scope_count_alike(tiny: Tiny) -> None:
    architecture = architecture_of(tiny("seq2seq").model.config)
    names = [f"encoder.block.{i}.layer.0.SelfAttention.o" for i in (0, 1)]
    scores = dict(zip(names, (torch.tensor([1.0, 3.0]), torch.tensor([300.0, 100.0])), strict=True))
    assert {name: score.tolist() for name, score in by_scope(scores, HEADS, architecture).items()} == {
        "encoder": [2.0, 2.0]
    }
    alone = {"encoder.block.1.layer.1.DenseReluDense.wo": torch.tensor([5.0, 7.0])}
    assert by_scope(alone, FFN, architecture)["encoder.block.1"].tolist() == [5.0, 7.0]
