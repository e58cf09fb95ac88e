"""Gradients of masked weights are those of the same weights without a mask, at zero."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from slimexp.technique.masking import mask_of
from slimexp.technique.regrowth import dense_gradients

Make = Callable[..., Any]
ROWS = [("one two", None, None), ("three", None, None)]


def objective(family: Any) -> Callable[[dict[str, Tensor]], Tensor]:
    def loss(batch: dict[str, Tensor]) -> Tensor:
        return F.cross_entropy(family.forward(batch)[0].flatten(0, -2), batch["labels"].flatten())

    return loss


def masked(family: Any) -> dict[str, Any]:
    masks = {name: mask_of(layer) for name, layer in family.compressible().items()}
    for mask in masks.values():
        mask.mask.view(-1)[::2] = False
    return masks


def test_as_without_masks_at_the_same_weights(tiny: Make) -> None:
    family, plain = tiny("causal_lm"), tiny("causal_lm")
    masks = masked(family)
    layers = family.compressible()
    batches = [family.encode([row]) for row in ROWS]
    loss = objective(family)

    def parts(batch: dict[str, Tensor]) -> list[Any]:
        return [lambda: (loss(batch), {})]

    gradients = dense_gradients(family, layers, masks, batches, objective=parts)
    for name, layer in plain.compressible().items():
        layer.weight.data.copy_(layers[name].weight.detach())
    sum(objective(plain)(batch) for batch in batches).backward()
    for name, layer in plain.compressible().items():
        torch.testing.assert_close(gradients[name], layer.weight.grad)
        assert gradients[name][~masks[name].mask].abs().sum() > 0
    assert not any(mask.passes_gradient for mask in masks.values())
    assert all(parameter.grad is None for parameter in family.model.parameters())


def test_masks_stop_the_gradient_again_after_a_failure(tiny: Make) -> None:
    family = tiny("causal_lm")
    masks = masked(family)

    def fails() -> tuple[Tensor, Any]:
        assert all(mask.passes_gradient for mask in masks.values())
        raise KeyError

    with pytest.raises(KeyError):
        batches = [family.encode(ROWS[:1])]
        dense_gradients(family, family.compressible(), masks, batches, objective=lambda batch: [fails])
    assert not any(mask.passes_gradient for mask in masks.values())
