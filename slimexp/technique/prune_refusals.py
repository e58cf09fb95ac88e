"""Settings and layers that pruning refuses, before it measures or trains anything."""

from collections.abc import Mapping

import torch

from slimexp.allocation.base import Allocation, SparsityAllocation
from slimexp.calibration.observe import observes_inputs
from slimexp.importance.base import Gated, Importance, Learned
from slimexp.model.layer import Layer, latent, matrix
from slimexp.pattern.base import Pattern


def check_learned(importance: Importance, *, sparsity: float, steps: int, regrow: float) -> None:
    """Refuse settings that an importance that is learned in training cannot work with.

    Raises:
        ValueError: There is no training, or gates and regrowth would both revive weights.
    """
    name = type(importance).__name__
    if not isinstance(importance, Learned | Gated) or not sparsity:
        return
    if not steps:
        raise ValueError(f"{name} is learned while training: set steps, or choose another importance")
    if regrow and isinstance(importance, Gated):
        raise ValueError(f"gates of {name} open and shut by themselves: set regrow=0")


def check_allocation(allocation: Allocation, importance: Importance, pattern: Pattern, sparsity: float) -> None:
    """Refuse an allocation of bits, and settings that a scan before training cannot work with.

    Raises:
        ValueError: There are no scores before training, layers compete already, the pattern takes no other sparsity,
            or the target is above the last sparsity.
    """
    if not isinstance(allocation, SparsityAllocation):
        name = type(allocation).__name__
        raise ValueError(f"allocation must be sensitivity or null where weights are pruned, got {name}")
    if isinstance(importance, Learned | Gated):
        name = type(importance).__name__
        raise ValueError(f"allocation scans before {name} has scores: choose another importance, or allocation=null")
    if pattern.across_layers:
        raise ValueError("allocation needs layers that do not compete: set pattern.scope=layer, or allocation=null")
    if not pattern.any_share:
        raise ValueError(f"allocation needs a pattern that takes any sparsity, {type(pattern).__name__} does not")
    if sparsity > allocation.sparsities[-1]:
        raise ValueError(
            f"sparsity {sparsity} is more than the last of allocation.sparsities, {allocation.sparsities[-1]}: add one"
        )


def check_inputs(layers: Mapping[str, Layer], importance: Importance) -> None:
    """Refuse layers whose inputs no hook sees, where the importance observes inputs.

    Raises:
        ValueError: Names such a layer, and the way out.
    """
    for name, layer in layers.items():
        if observes_inputs(importance) and latent(layer).ndim > 2:
            raise ValueError(
                f"{type(importance).__name__} reads the inputs of layers, and '{name}' is the experts of a mixture in "
                "one, whose inputs do not show: exclude it, or choose an importance of weights or gradients"
            )


def check_rows(layers: Mapping[str, Layer], pattern: Pattern) -> None:
    """Refuse layers that do not divide into the groups and units of ``pattern``.

    Raises:
        ValueError: Names such a layer.
    """
    for name, layer in layers.items():
        try:
            pattern.split(matrix(layer, torch.empty_like(latent(layer), device="meta")))
        except ValueError as error:
            raise ValueError(f"layer '{name}': {error}") from error
