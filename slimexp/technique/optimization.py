"""Whether an optimizer and a learning-rate schedule can be made of their settings, seen on one small weight."""

import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn


def check(optimizer: Callable[..., Any], lr_scheduler: Callable[..., Any], *, steps: int) -> None:
    """Make both as training would, and take a step.

    Args:
        optimizer: Partial of an optimizer, awaiting the parameters.
        lr_scheduler: Partial of a schedule, awaiting ``optimizer`` and ``num_training_steps``.
        steps: Optimizer steps of the stage.

    Raises:
        ValueError: One of them refuses its settings.
    """
    weight, bias = nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.zeros(2))
    groups = [{"params": [weight]}, {"params": [bias], "weight_decay": 0.0}]
    for name, value in _keywords(lr_scheduler).items():
        whole = isinstance(value, int) and not isinstance(value, bool) and value >= 0
        if name.endswith("_steps") and value is not None and not whole:
            raise ValueError(f"lr_scheduler.{name} must be a whole number >= 0, got {value!r}")
    made = _made("optimizer", torch.optim.Optimizer, optimizer, groups)
    schedule = _made("lr_scheduler", torch.optim.lr_scheduler.LRScheduler, lr_scheduler, optimizer=made,
                     num_training_steps=max(1, steps))  # fmt: skip
    weight.grad, bias.grad = torch.zeros_like(weight), torch.zeros_like(bias)
    _guarded("optimizer", optimizer, made.step)
    _guarded("lr_scheduler", lr_scheduler, schedule.step)


def _made(role: str, kind: type, maker: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
    made = _guarded(role, maker, partial(maker, *arguments, **keywords)) if callable(maker) else maker
    if not isinstance(made, kind):
        raise ValueError(
            f"{role} must be a partial of a torch {kind.__name__}, got {_named(maker)}: add _partial_: true"
        )
    return made


def _guarded(role: str, maker: object, call: Callable[[], Any]) -> Any:
    """``call()``; whatever it raises is the fault of the settings."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the order of steps
            return call()
    except Exception as error:
        why = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{role} {_named(maker)} cannot be: {why}") from error


def _named(maker: object) -> str:
    """A partial as it is called: ``AdamW(lr=-1)``."""
    if maker is None:
        return "null"
    settings = ", ".join(f"{name}={value!r}" for name, value in _keywords(maker).items())
    return f"{getattr(getattr(maker, 'func', maker), '__name__', type(maker).__name__)}({settings})"


def _keywords(maker: object) -> Mapping[str, Any]:
    return maker.keywords if isinstance(maker, partial) else {}
