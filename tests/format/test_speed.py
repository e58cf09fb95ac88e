"""An engine and PyTorch take turns, and the figures say for what."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from slimexp import artifact
from slimexp.format import speed as timing
from slimexp.format.base import Artifact, Plain
from slimexp.format.speed import speed
from slimexp.quantizer.minmax import MinMax
from slimexp.quantizer.token import Token
from slimexp.weight.attachment import INPUT, attach

Make = Callable[..., Any]


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "_SECONDS", 0.0)


class Engine(Plain):
    """PyTorch that sleeps, and says in which order it was called."""

    decodes = True

    def __init__(self, model: Any, seconds: float) -> None:
        super().__init__(model)
        self.seconds = seconds
        self.calls: list[str] = []

    def logits(self, *row: Any) -> Any:
        time.sleep(self.seconds)
        self.calls.append("logits")
        return super().logits(*row)

    def greedy(self, source: Any, start: Any, count: int) -> list[int]:
        self.calls.append(f"{count} tokens")
        return [0] * count


@pytest.mark.parametrize("task", ["seq2seq", "causal_lm", "classification"])
def test_every_task(task: str, tiny: Make, tmp_path: Path) -> None:
    artifact.save(tiny(task), tmp_path / "artifact", dtype=torch.float32, stages=[])
    model = Artifact(tmp_path / "artifact")
    engine = Engine(model.family.model, 0.05)
    figures = speed(model, engine)
    assert figures["forward_ms"] >= 50 and figures["forward_ms_pytorch"] < figures["forward_ms"]
    assert 50 <= figures["forward_ms_low"] <= figures["forward_ms"] <= figures["forward_ms_high"]
    assert 1 < figures["forward_ratio_low"] <= figures["forward_ratio"] <= figures["forward_ratio_high"]
    assert figures["threads"] == torch.get_num_threads() and figures["prompt_tokens"] == 32
    assert engine.calls.count("logits") == 7  # one to warm up
    if task == "classification":
        assert "tokens_per_s" not in figures
    else:
        assert engine.calls.count("32 tokens") == 7 and figures["tokens_ratio_low"] > 1
        assert figures["tokens_per_s"] > figures["tokens_per_s_pytorch"] > 0
        assert figures["tokens_per_s_low"] <= figures["tokens_per_s"] <= figures["tokens_per_s_high"]


def test_an_engine_that_computes_all_anew_is_not_asked_to_decode(tiny: Make, tmp_path: Path) -> None:
    artifact.save(tiny("causal_lm"), tmp_path / "artifact", dtype=torch.float32, stages=[])
    model = Artifact(tmp_path / "artifact")
    assert not any(name.startswith("tokens") for name in speed(model, Plain(model.family.model)))


def test_rounding_that_pytorch_emulates_is_not_what_an_engine_is_held_against(tiny: Make, tmp_path: Path) -> None:
    family = tiny("causal_lm")
    for layer in family.compressible().values():
        attach(layer, "weight", MinMax(bits=8, group_size=None))
        attach(layer, INPUT, Token(bits=8, group_size=None))
    artifact.save(family, tmp_path / "artifact", dtype=torch.float32, stages=[])
    model = Artifact(tmp_path / "artifact")
    model.family.model.register_forward_pre_hook(lambda *_: pytest.fail("the model that rounds was timed"))
    assert speed(model, Engine(model.unrounded, 0.01))["tokens_ratio"] > 0
