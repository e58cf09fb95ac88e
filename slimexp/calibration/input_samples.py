"""Samples of the values that layers read over training rows, for the ranges of activations."""

from collections.abc import Iterable, Mapping
from functools import partial

import torch
from torch import Tensor, nn

from slimexp.calibration.observe import undisturbed
from slimexp.host.progress import counted
from slimexp.model.base import Batch, Family

PER_BATCH = 2048  # quantiles per layer and batch, smallest and largest value included


@torch.no_grad()
def input_values(family: Family, layers: Mapping[str, nn.Module], batches: Iterable[Batch]) -> dict[str, Tensor]:
    """Layer -> values of its inputs, flat: of every batch ``PER_BATCH`` quantiles, or all if they are fewer.

    Args:
        family: The model, which runs as it stands.
        layers: The layers, by name.
        batches: Training text without padding, on any device.

    Raises:
        ValueError: A layer read NaN or infinity, or nothing at all.
    """
    samples: dict[str, list[Tensor]] = {name: [] for name in layers}

    def sample(name: str, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if not inputs[0].isfinite().all():
            raise ValueError(
                f"layer '{name}': its input holds NaN or infinity in calibration batch {len(samples[name])}"
            )
        samples[name].append(_quantiles(inputs[0]))

    hooks = [layer.register_forward_pre_hook(partial(sample, name)) for name, layer in layers.items()]
    try:
        with undisturbed(family):
            for batch in counted(batches, "calibration row"):
                family.run({key: tensor.to(family.device) for key, tensor in batch.items()})
    finally:
        for hook in hooks:
            hook.remove()
    if unseen := [name for name, parts in samples.items() if not parts]:
        raise ValueError(f"layer '{unseen[0]}' was never used in calibration: raise calibration_rows, or exclude it")
    return {name: torch.cat(parts) for name, parts in samples.items()}


def _quantiles(x: Tensor) -> Tensor:
    values = x.detach().float().flatten().sort().values
    if len(values) <= PER_BATCH:
        return values
    return values[torch.linspace(0, len(values) - 1, PER_BATCH, device=x.device).round().long()]
