"""Settings and layers that pruning refuses, before it measures or trains anything."""

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import torch

from slimexp.allocation.base import Allocation, SparsityAllocation
from slimexp.calibration.observe import observes_inputs
from slimexp.importance.base import Calibrated, Gated, Importance, Learned
from slimexp.model.layer import Layer, LayerSelector, latent, matrix
from slimexp.pattern.base import Pattern
from slimexp.schedule import Schedule
from slimexp.technique.training import Training


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


def check_updates(schedule: Schedule, *, every: int, ramp: float) -> None:
    """Refuse a course of updates that does not lead to the whole target.

    Raises:
        ValueError: The schedule begins or ends elsewhere, or a number is out of range.
    """
    if not 0 <= schedule(0.0) <= 1:
        raise ValueError(f"schedule must start in [0, 1] (a share of sparsity), got {schedule(0.0)}")
    if schedule(1.0) != 1:
        raise ValueError(f"schedule must end at 1 (the whole of sparsity), got {schedule(1.0)}: set schedule.end=1")
    if every < 1:
        raise ValueError(f"every must be >= 1 step, got {every}")
    if not 0 < ramp <= 1:
        raise ValueError(f"ramp must be in (0, 1], got {ramp}")


class Masking(Protocol):
    """A technique that masks layers."""

    sparsity: float
    pattern: Pattern
    allocation: SparsityAllocation | None
    selector: LayerSelector


def check_more_zeros(stage: Masking, before: Iterable[object]) -> None:
    """Refuse a target that an earlier stage of the same technique has reached: zeros stay, so nothing would change.

    Raises:
        ValueError: Names both sparsities.
    """
    for earlier in before:
        if not isinstance(earlier, type(stage)) or not 0 < stage.sparsity <= earlier.sparsity:
            continue
        alike = stage.selector == earlier.selector and _settings(stage.pattern) == _settings(earlier.pattern)
        if alike and stage.allocation is None and earlier.allocation is None:
            raise ValueError(
                f"sparsity {stage.sparsity} would change nothing: an earlier stage leaves {earlier.sparsity} of the "
                "same layers at zero, which stay; raise it"
            )


def _settings(pattern: Pattern) -> tuple[type[Pattern], dict[str, Any]]:
    return type(pattern), vars(pattern)


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


def check_objective(importance: Importance, allocation: Allocation | None, training: Training) -> None:
    """Refuse to choose weights by an objective that there is none of, or whose teacher is gone by then.

    Raises:
        ValueError: There is no loss, or a cache in the place of the teacher, which knows the rows of training alone.
    """
    name = type(importance).__name__
    if isinstance(importance, Calibrated) and importance.observes == "gradient":
        reading = f"{name} needs the gradient of a loss"
    elif allocation is not None:
        reading = "allocation needs a loss"
    else:
        return
    if not training["losses"]:
        raise ValueError(f"{reading}: add one, e.g. +loss@pipeline.<stage>.losses.ce=cross_entropy")
    if training["steps"] and training.get("cache") is not None:
        raise ValueError(
            f"{reading} on rows of its own, and cache keeps what the teacher says of those that are trained on: leave "
            "out the cache (pipeline.<stage>.cache=null), or choose an importance of weights or inputs and "
            "allocation=null"
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
