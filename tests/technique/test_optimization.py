"""Optimizers and schedules that cannot be made are refused with the technique, before a model is loaded."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from transformers import get_cosine_schedule_with_warmup, get_linear_schedule_with_warmup, get_scheduler

from slimexp.config.build import ConfigError
from slimexp.technique import optimization

ADAMW = partial(torch.optim.AdamW, lr=1e-3)
COSINE = partial(get_cosine_schedule_with_warmup, num_warmup_steps=0)
OPTIMIZERS = [
    (partial(ADAMW, lr=-1), ".lr must be >= 0, got -1: 1e-5 to 1e-2 are usual"),
    (partial(ADAMW, betas=(2, 3)), ".betas must be in [0, 1), got (2, 3)"),
    (partial(ADAMW, eps=-1), ".eps must be >= 0, got -1"),
    (partial(ADAMW, weight_decay=-1), ".weight_decay must be >= 0, got -1"), (partial(ADAMW, lr="abc"), "lr='abc'"),
    (partial(torch.optim.SGD, lr=0.1, momentum=-1), ".momentum must be >= 0, got -1"),
    (partial(torch.optim.SGD, speed=1), "speed=1"),  # type: ignore[call-arg]
    (partial(torch.optim.SGD, lr=0.1, nesterov=True), "nesterov=True"), (partial(torch.optim.Muon, lr=0.1), "Muon"),
    (None, "null"), (3, "int"), (partial(dict), "dict"),
]  # fmt: skip
LINEAR = get_linear_schedule_with_warmup
SCHEDULERS = [
    *((partial(LINEAR, num_warmup_steps=steps), repr(steps)) for steps in (-1, 1.5, 1e30, "abc", True)),
    (partial(LINEAR), "num_warmup_steps"), (partial(LINEAR, num_warmup_steps=None), "None"),
    (partial(get_scheduler, name="abc"), "name='abc'"),
    (partial(torch.optim.lr_scheduler.StepLR, step_size=1), "StepLR"),
    (None, "null"), ("abc", "str"),
]  # fmt: skip


@pytest.mark.parametrize(("optimizer", "shown"), OPTIMIZERS, ids=lambda value: value if isinstance(value, str) else "")
def test_an_optimizer(optimizer: Any, shown: str) -> None:
    with pytest.raises(ValueError, match=r"^optimizer[ .][^\n]+$") as caught:
        optimization.check(optimizer, COSINE, steps=3)
    assert shown in str(caught.value)


@pytest.mark.parametrize(
    ("lr_scheduler", "shown"), SCHEDULERS, ids=lambda value: value if isinstance(value, str) else ""
)
def test_a_schedule(lr_scheduler: Any, shown: str) -> None:
    with pytest.raises(ValueError, match=r"^lr_scheduler[^\n]+$") as caught:
        optimization.check(ADAMW, lr_scheduler, steps=3)
    assert shown in str(caught.value)


@pytest.mark.parametrize("steps", [0, 1, 300])
@pytest.mark.parametrize("optimizer", [ADAMW, partial(torch.optim.SGD, lr=0), partial(torch.optim.RAdam)])
def test_right_ones_pass(optimizer: Any, steps: int) -> None:
    optimization.check(optimizer, COSINE, steps=steps)


@pytest.mark.parametrize("technique_name", ["finetune", "prune", "quantize", "distill"])
def test_a_technique_says_it_with_its_key(technique: Callable[..., Any], technique_name: str) -> None:
    with pytest.raises(ConfigError, match=rf"^pipeline\.{technique_name}: optimizer\.lr must be >= 0, got -1"):
        technique(technique_name, **{"optimizer.lr": -1})
    with pytest.raises(ConfigError, match=rf"^pipeline\.{technique_name}: losses\.ce must be a loss, got 3"):
        technique(technique_name, **{"losses.ce": 3})


@pytest.mark.parametrize("start", [2, -0.1])
def test_a_schedule_of_sparsity_starts_between_none_and_all(technique: Callable[..., Any], start: float) -> None:
    with pytest.raises(ConfigError, match=rf"schedule must start in \[0, 1\] .*, got {start}"):
        technique("prune", **{"schedule.start": start})
