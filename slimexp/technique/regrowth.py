"""Gradients of masked weights, which show where regrowth would help."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from slimexp.model.base import Batch, Family
from slimexp.model.layer import Layer, latent
from slimexp.weight.mask import Mask


@torch.enable_grad()
def dense_gradients(
    family: Family,
    layers: Mapping[str, Layer],
    masks: Mapping[str, Mask],
    batches: Iterable[Batch],
    *,
    objective: Callable[[Batch], Iterable[Callable[[], tuple[Tensor, Any]]]],
) -> dict[str, Tensor]:
    """Layer -> gradient of the objective with respect to every weight, masked ones included, summed over ``batches``.

    The model computes with its masks; only the gradient passes through them.

    Args:
        family: The model.
        layers: The layers, by name.
        masks: Layer -> the mask on its weight.
        batches: Training text, on any device.
        objective: Batch -> what computes parts of its training loss, and more of each; they add up to it.
    """
    weights = {name: latent(layer) for name, layer in layers.items()}
    sums = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    with _passing(masks.values()), torch.compiler.set_stance("force_eager"):
        for batch in batches:
            on_device = {name: tensor.to(family.device) for name, tensor in batch.items()}
            for part in objective(on_device):
                gradients = torch.autograd.grad(part()[0], list(weights.values()), allow_unused=True)
                for total, gradient in zip(sums.values(), gradients, strict=True):
                    if gradient is not None:  # an expert that no token was routed to has none
                        total += gradient
    return sums


@contextmanager
def _passing(masks: Collection[Mask]) -> Iterator[None]:
    """Masks pass the gradient of masked entries within the context."""
    for mask in masks:
        mask.passes_gradient = True
    try:
        yield
    finally:
        for mask in masks:
            mask.passes_gradient = False
