"""A trainer that cannot be made is refused before a model is loaded."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from slimexp.config.composition import CONF_DIR, compose
from slimexp.pipeline import machine
from slimexp.technique.finetune import Finetune

WRONG = [
    ("accelerator", "tpu"), ("accelerator", "abc"), ("accelerator", "gpu"), ("accelerator", 3),
    ("precision", "abc"), ("precision", 7), ("precision", "int8"), ("precision", [32]),
    ("devices", 0), ("devices", 4097), ("devices", "abc"), ("devices", -2), ("devices", [7]),
    ("devices", True), ("devices", 1.0), ("num_nodes", 2), ("num_nodes", 0),
    ("strategy", "abc"), ("strategy", 3), ("profiler", "abc"), ("plugins", "abc"), ("log_every_n_steps", -1),
    ("log_every_n_steps", None), ("deterministic", "abc"), ("max_time", "abc"), ("limit_val_batches", -1),
    ("check_val_every_n_epoch", 1.5),
]  # fmt: skip


def refused(trainer: dict[str, object], callback: dict[str, object]) -> str:
    switches = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    cfg = OmegaConf.load(CONF_DIR / "trainer" / "cpu.yaml")
    with pytest.raises(ValueError) as caught:
        machine.check(OmegaConf.merge(cfg, trainer), OmegaConf.create(callback))  # type: ignore[arg-type]
    assert switches == (torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(("key", "value"), [row for row in WRONG if row[1] != "gpu" or not torch.cuda.is_available()])
def test_one_line_from_the_trainer(key: str, value: object) -> None:
    assert refused({key: value}, {}).startswith("trainer")


@pytest.mark.parametrize(
    ("node", "shown"), [(None, "null"), ({"_target_": "slimexp.schedule.Constant", "value": 1}, "Constant")]
)
def test_what_is_no_callback(node: object, shown: str) -> None:
    assert refused({}, {"x": node}) == f"callback.x must be a Lightning callback, got {shown}: ~callback.x drops it"


@pytest.mark.parametrize("name", ["cpu", "fast"])
def test_what_ships_can_be_made_and_leaves_torch_as_it_was(name: str) -> None:
    before = torch.are_deterministic_algorithms_enabled()
    cfg = compose([f"trainer={name}"])
    machine.check(cfg.trainer, cfg.callback)
    assert torch.are_deterministic_algorithms_enabled() == before


def test_training_leaves_cudnns_attention_out_and_gives_it_back(
    pipeline: Callable[..., Any], short: Callable[..., list[str]], overrides: Callable[..., list[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    seen = []

    def observe(technique: Finetune, progress: float) -> None:
        seen.append((torch.backends.cuda.cudnn_sdp_enabled(), torch.backends.cuda.flash_sdp_enabled()))

    monkeypatch.setattr(Finetune, "on_step", observe)
    before = torch.backends.cuda.cudnn_sdp_enabled()
    pipeline(overrides("finetune", *short("finetune", steps=2))).run()
    assert seen == [(False, True)] * 2
    assert torch.backends.cuda.cudnn_sdp_enabled() is before
