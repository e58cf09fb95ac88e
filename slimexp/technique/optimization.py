"""The optimizer: checks of its settings by a step on one small weight, one kernel for all weights, clipping."""

import inspect
import warnings
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

from slimexp.technique.automatic import Conditions, keywords, settled

_AT_LEAST_0 = {  # setting of an optimizer -> values that will do
    "lr": "1e-5 to 1e-2 are usual",
    "weight_decay": "0 is none, 0.01 is usual",
    "eps": "1e-8 is usual",
    "momentum": "0 is none, 0.9 is usual",
}


def check(optimizer: Callable[..., Any], lr_scheduler: Callable[..., Any], *, steps: int) -> None:
    """Build both as training would, and take a step.

    Args:
        optimizer: Partial of an optimizer, awaiting the parameters.
        lr_scheduler: Partial of a schedule, awaiting ``optimizer`` and ``num_training_steps``.
        steps: Number of optimizer steps of the stage.

    Raises:
        ValueError: One of them refuses its settings.
    """
    optimizer, lr_scheduler, _ = settled(optimizer, lr_scheduler, given=Conditions(parameters=1), steps=steps)
    weight, bias = nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.zeros(2))
    groups = [{"params": [weight]}, {"params": [bias], "weight_decay": 0.0}]
    for name, value in keywords(optimizer).items():
        _check_range(name, value)
    for name, value in keywords(lr_scheduler).items():
        whole = isinstance(value, int) and not isinstance(value, bool) and value >= 0
        if name.endswith("_steps") and value is not None and not whole:
            raise ValueError(f"lr_scheduler.{name} must be a whole number >= 0, got {value!r}")
    built = _build("optimizer", torch.optim.Optimizer, optimizer, groups)
    schedule = _build("lr_scheduler", torch.optim.lr_scheduler.LRScheduler, lr_scheduler, optimizer=built,
                      num_training_steps=max(1, steps))  # fmt: skip
    weight.grad, bias.grad = torch.zeros_like(weight), torch.zeros_like(bias)
    _guarded("optimizer", optimizer, built.step)
    _guarded("lr_scheduler", lr_scheduler, schedule.step)


def _check_range(name: str, value: Any) -> None:
    """Refuse a number that no optimizer of torch takes; others than these it refuses itself.

    Raises:
        ValueError: It is out of range.
    """
    numbers = [one for one in (value if isinstance(value, list | tuple) else [value]) if isinstance(one, int | float)]
    if name in _AT_LEAST_0 and any(one < 0 for one in numbers):
        raise ValueError(f"optimizer.{name} must be >= 0, got {value}: {_AT_LEAST_0[name]}")
    if name == "betas" and not all(0 <= one < 1 for one in numbers):
        raise ValueError(f"optimizer.betas must be in [0, 1), got {value}: [0.9, 0.999] are usual")


def fused(optimizer: Callable[..., Any], groups: Iterable[Mapping[str, Any]]) -> dict[str, bool]:
    """Argument with which an optimizer updates all weights in one kernel; empty where it cannot, or is told already.

    Args:
        optimizer: Partial of an optimizer, awaiting the parameters.
        groups: The parameters, as an optimizer takes them.
    """
    option = inspect.signature(optimizer).parameters.get("fused")
    weights = [weight for group in groups for weight in group["params"]]
    able = all(weight.device.type == "cuda" and weight.is_floating_point() for weight in weights)
    return {"fused": True} if able and option is not None and option.default is None else {}


def clip(parameters: Iterable[nn.Parameter], largest: float) -> torch.Tensor:
    """Scale gradients so that their norm is at most ``largest``, 0 for no limit; returns the norm before."""
    weights = [weight for weight in parameters if weight.grad is not None]
    norm = nn.utils.get_total_norm([weight.grad for weight in weights if weight.grad is not None])
    if largest:
        nn.utils.clip_grads_with_norm_(weights, largest, norm)
    return norm


def _build(role: str, kind: type, factory: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
    built = _guarded(role, factory, partial(factory, *arguments, **keywords)) if callable(factory) else factory
    if not isinstance(built, kind):
        raise ValueError(
            f"{role} must be a partial of a torch {kind.__name__}, got {_described(factory)}: add _partial_: true"
        )
    return built


def _guarded(role: str, factory: object, call: Callable[[], Any]) -> Any:
    """The result of ``call``; whatever it raises becomes a ``ValueError`` that shows the settings."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the order of steps
            return call()
    except Exception as error:
        why = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{role} {_described(factory)} cannot be: {why}") from error


def _described(factory: object) -> str:
    """A partial as a call: ``AdamW(lr=-1)``."""
    if factory is None:
        return "null"
    settings = ", ".join(f"{name}={value!r}" for name, value in keywords(factory).items())
    return f"{getattr(getattr(factory, 'func', factory), '__name__', type(factory).__name__)}({settings})"
