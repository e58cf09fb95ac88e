"""A benchmark's docstring says its command; a student is held against its target."""

import math
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

import pytest

from benchmarks import devices, distill_length


@pytest.mark.fast
@pytest.mark.parametrize(("student", "parameters", "holds"), [(0.03, 50, True), (0.05, 50, False), (0.03, 51, False)])
def test_a_student_must_be_as_small_and_as_good_as_its_target(
    make_record: Callable[..., Any], student: float, parameters: float, holds: bool
) -> None:
    rows = [
        make_record(
            headline="cer", direction="min", trivial=0.1, seconds={"train": 9.0},
            metrics={"cer": cer, "params_live": parameters, "disk_mb": 1.0},
            baseline={"cer": 0.0, "params_live": 100.0},
        )
        for cer in (student - 0.01, student + 0.01)
    ]  # fmt: skip
    size = distill_length.summary("half", distill_length.Size(0.5, 0.7), rows)
    assert size["holds"] is holds
    assert math.isclose(sum(size["kept"]) / 2, 1 - student / 0.1)
    assert f"| half | {parameters:.1f}% |" in distill_length.table([size])


COMMANDS = [
    "baselines",
    "cpu_kernels",
    "distill_length",
    "distill_loss",
    "distill_losses",
    "distill_peers",
    "distill_smollm2",
    "experts",
    "gpu_kernels",
    "latency_table",
    "on_policy",
    "overhead",
    "prune_curve",
    "prune_large",
    "prune_peers",
    "prune_structured",
    "quantize_peers",
    "quantize_quality",
    "same_results",
    "search",
    "search_arms",
    "startup",
    "sweep",
    "temperature",
]


@pytest.mark.parametrize("name", COMMANDS)
def test_docstrings_say_the_command(name: str, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmark", "--help"])
    with pytest.raises(SystemExit, match="0"):
        import_module(f"benchmarks.{name}").main()
    assert f"python -m benchmarks.{name}" in capsys.readouterr().out


@pytest.mark.fast
def test_steps_that_are_all_warm_up_are_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["devices", "--steps", "20"])
    with pytest.raises(SystemExit):
        devices.parsed()
    assert "--steps must be more than --warmup, 20, got 20" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["devices", "--steps", "14", "--warmup", "4"])
    assert devices.parsed().warmup == 4
