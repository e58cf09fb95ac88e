"""Showing an importance what it observes: the inputs of layers, or the gradients of weights, over training rows."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from slimexp.importance.base import Calibrated
from slimexp.model.base import Batch, Family
from slimexp.technique.coverage import Layer, latent, matrix, place


def calibrate(
    importance: Calibrated,
    family: Family,
    layers: Mapping[str, Layer],
    batches: Iterable[Batch],
    *,
    objective: Callable[[Batch], Tensor],
) -> dict[str, Tensor]:
    """Layer -> the sum of what the importance made of every batch.

    The model runs without dropout and in the precision of its weights, with the masks and quantizers that are on it.
    It is left as it was, gradients and random state included.

    Args:
        importance: Says what it observes.
        family: The model.
        layers: The layers to look at, by name.
        batches: Training text without padding, on any device.
        objective: The training loss of a batch; read where gradients are observed.

    Raises:
        ValueError: A layer was never used (an expert that no token went to, say).
    """
    sums: dict[str, Tensor] = {}

    def add(name: str, observed: Tensor) -> None:
        part = importance.observe(matrix(layers[name], latent(layers[name]).detach()), observed.detach())
        sums[name] = sums[name].add_(part) if name in sums else part

    with undisturbed(family):
        on_device = ({name: tensor.to(family.device) for name, tensor in batch.items()} for batch in batches)
        if importance.observes == "input":
            _show_inputs(family, layers, on_device, add)
        else:
            _show_gradients(layers, on_device, add, objective)
    if unseen := layers.keys() - sums.keys():
        raise ValueError(
            f"layer '{min(unseen)}' had no part in the {importance.rows} rows that {type(importance).__name__} was "
            "calibrated on: raise importance.rows"
        )
    return sums


@torch.no_grad()
def _show_inputs(
    family: Family, layers: Mapping[str, Layer], batches: Iterable[Batch], add: Callable[[str, Tensor], None]
) -> None:
    def look(name: str, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        add(name, inputs[0].flatten(0, -2))

    hooks = [place(layer)[0].register_forward_pre_hook(partial(look, name)) for name, layer in layers.items()]
    try:
        for batch in batches:
            family.forward(batch)
    finally:
        for hook in hooks:
            hook.remove()


@torch.enable_grad()
def _show_gradients(
    layers: Mapping[str, Layer],
    batches: Iterable[Batch],
    add: Callable[[str, Tensor], None],
    objective: Callable[[Batch], Tensor],
) -> None:
    weights = [latent(layer) for layer in layers.values()]
    for batch in batches:
        gradients = torch.autograd.grad(objective(batch), weights, allow_unused=True)
        for name, gradient in zip(layers, gradients, strict=True):
            if gradient is not None:
                add(name, matrix(layers[name], gradient))


@contextmanager
def undisturbed(family: Family) -> Iterator[None]:
    """Eval mode and no autocast; eager too, for a compiled model does not notice new hooks."""
    training = family.model.training
    family.model.eval()
    try:
        with torch.compiler.set_stance("force_eager"), torch.autocast(family.device.type, enabled=False):
            yield
    finally:
        family.model.train(training)
