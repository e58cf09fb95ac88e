"""What the layers of a model read: a sketch of their inputs over training rows."""

from collections.abc import Iterable, Mapping
from functools import partial

import torch
from torch import Tensor, nn

from slimexp.calibration.observe import undisturbed
from slimexp.model.base import Batch, Family

PER_BATCH = 2048  # values kept of a layer and batch: its quantiles, the extremes among them


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
    seen: dict[str, list[Tensor]] = {name: [] for name in layers}

    def look(name: str, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if not inputs[0].isfinite().all():
            raise ValueError(f"layer '{name}': its input holds NaN or infinity in calibration batch {len(seen[name])}")
        seen[name].append(_quantiles(inputs[0]))

    hooks = [layer.register_forward_pre_hook(partial(look, name)) for name, layer in layers.items()]
    try:
        with undisturbed(family):
            for batch in batches:
                family.forward({key: tensor.to(family.device) for key, tensor in batch.items()})
    finally:
        for hook in hooks:
            hook.remove()
    if unseen := [name for name, parts in seen.items() if not parts]:
        raise ValueError(f"layer '{unseen[0]}' was never used in calibration: raise calibration_rows, or exclude it")
    return {name: torch.cat(parts) for name, parts in seen.items()}


def _quantiles(x: Tensor) -> Tensor:
    values = x.detach().float().flatten().sort().values
    if len(values) <= PER_BATCH:
        return values
    return values[torch.linspace(0, len(values) - 1, PER_BATCH, device=x.device).round().long()]
