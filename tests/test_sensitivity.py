"""One layer at a time, and the model is left as it was."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from slimexp.config import build, compose
from slimexp.importance.magnitude import Magnitude
from slimexp.loss.base import Loss
from slimexp.loss.cross_entropy import CrossEntropy
from slimexp.sensitivity import mean_loss, pruned, sensitivity

LOSS = CrossEntropy(weight=1.0, label_smoothing=0.0)
ROWS = [("one two", "one 2", 0), ("three", "3", 1), ("four and five", "four & 5", 1)]


@pytest.fixture(params=["seq2seq", "causal_lm", "classification"])
def family(request: pytest.FixtureRequest, tiny: Callable[..., Any]) -> Any:
    return tiny(request.param)


def batches(family: Any) -> list[Any]:
    return [family.encode(ROWS[:2]), family.encode(ROWS[2:])]


def test_every_layer_by_itself_and_nothing_is_left_of_it(family: Any) -> None:
    before = {name: tensor.clone() for name, tensor in family.model.state_dict().items()}
    growth = sensitivity(family, batches(family), loss=LOSS, importance=Magnitude(), sparsity=0.9)
    assert growth.keys() == family.compressible().keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in family.model.state_dict().items())
    name = max(growth, key=lambda name: abs(growth[name]))
    with pruned(family, importance=Magnitude(), sparsity={name: 0.9}):
        weight = family.compressible()[name].weight
        assert (weight == 0).float().mean().item() == pytest.approx(0.9, abs=1 / weight.numel())
        changed = [key for key, tensor in family.model.state_dict().items() if not torch.equal(tensor, before[key])]
        assert changed == [f"{name}.weight"]
        by_hand = mean_loss(family, batches(family), loss=LOSS)
    assert growth[name] == pytest.approx(by_hand - mean_loss(family, batches(family), loss=LOSS)) != 0


def test_nothing_pruned_nothing_grows(family: Any) -> None:
    growth = sensitivity(family, batches(family), loss=LOSS, importance=Magnitude(), sparsity=0.0)
    assert set(growth.values()) == {0.0}


def test_the_mean_is_over_tokens_and_not_over_batches(family: Any) -> None:
    together = mean_loss(family, [family.encode(ROWS)], loss=LOSS)
    assert mean_loss(family, batches(family), loss=LOSS) == pytest.approx(together, rel=1e-5)


@pytest.mark.parametrize("name", ["kl", "hidden"])
def test_a_loss_with_a_teacher_is_given_the_model_before(tiny: Callable[..., Any], name: str) -> None:
    loss: Loss = build(compose([f"+loss@pipeline.own={name}"]).pipeline.own)
    family = tiny("seq2seq")
    growth = sensitivity(family, batches(family), loss=loss, importance=Magnitude(), sparsity=0.5)
    assert all(value > 0 for value in growth.values())


def test_weights_come_back_after_an_error(tiny: Callable[..., Any]) -> None:
    family = tiny("causal_lm")
    name, layer = next(iter(family.compressible().items()))
    before = layer.weight.clone()
    with pytest.raises(RuntimeError), pruned(family, importance=Magnitude(), sparsity={name: 0.5}):
        raise RuntimeError
    assert torch.equal(layer.weight, before)


@pytest.mark.parametrize(
    ("sparsity", "message"),
    [({"no.layer": 0.5}, "no compressible layer 'no.layer'; there are "), ({None: 1.0}, r"must be in \[0, 1\), got")],
)
def test_what_cannot_be_is_said(tiny: Callable[..., Any], sparsity: dict[Any, float], message: str) -> None:
    family = tiny("causal_lm")
    named = {name or next(iter(family.compressible())): share for name, share in sparsity.items()}
    with pytest.raises(ValueError, match=message), pruned(family, importance=Magnitude(), sparsity=named):
        pass
