"""What is timed: heavy imports are seen, both loops do the same maths, ratios are taken round by round."""

import argparse
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import cpu_kernels, gpu_kernels, overhead, prune_large, startup
from slimexp.kernel.dense import DenseBfloat16, DenseFloat32
from slimexp.kernel.int_mm import IntMM
from slimexp.kernel.scaled_mm import ScaledMM


@pytest.mark.fast
@pytest.mark.parametrize("command", startup.COMMANDS, ids=lambda command: command.name)
def test_startup_sees_every_import_and_none_is_heavy(command: startup.Command) -> None:
    found = {item.module: item for item in startup.imports(command)}
    assert found["slimexp.config.check"].total_ms >= found["slimexp.config.check"].own_ms > 0
    assert not startup.HEAVY & {name.split(".")[0] for name in found}


@pytest.mark.fast
def test_startup_would_see_a_heavy_import() -> None:
    assert "numpy" in {item.module for item in startup.imports(startup.Command("numpy", ("-c", "import numpy"), 1.0))}


@pytest.mark.fast
def test_overhead_is_the_median_over_blocks_of_steps(capsys: pytest.CaptureFixture[str]) -> None:
    median, low, high = overhead.bootstrap([1.01] * 50 + [3.0])
    assert (median, low, high) == (1.01, 1.01, 1.01)
    timings = {
        "trainer_s": [[0.0102, 0.0101]] * 40, "plain_s": [[0.01, 0.01]] * 40,
        "checkpoint_s": 0.1, "checkpoint_mb": 1, "parameters": 1,
    }  # fmt: skip
    assert math.isclose(overhead.report(timings, batch=1, turn=1, every_seconds=10), 0.02 + 0.01)
    said = capsys.readouterr().out
    assert "plain step 10.0 ms, 4 pairs of 10 steps" in said
    assert "| wall | +2.00% | +2.00% to +2.00% | +3.00% |\n| CPU time | +1.00% |" in said


@pytest.mark.parametrize("technique", ["finetune", "distill"])
def test_trainer_and_plain_loop_take_turns_at_the_same_maths(
    technique: str, tiny_folder: Callable[..., Path], table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from slimexp.config.check import check
    from slimexp.config.composition import compose
    from slimexp.pipeline.pipeline import Pipeline

    monkeypatch.setenv("SLIMEXP_PACKAGES", "benchmarks")

    path = tmp_path / "overhead.json"
    dense = tiny_folder("seq2seq", dropout_rate=0.1)
    arguments = argparse.Namespace(technique=technique, turn=2, blocks=2, overrides=[])
    changed = {
        "data": "files", "data.path": table, "data.task": "seq2seq",
        "model": "pretrained", "model.path": dense, "model.max_length": 16,
        "logger": "none", "trainer": "fast", f"pipeline.{technique}.batch_size": 2,
        "+callback.alternate": f"{{_target_: benchmarks.alternate.Alternate, path: {path}, steps: 2, "
        f"warmup: {overhead.warmup(arguments)}}}",
    }  # fmt: skip
    if technique == "distill":
        teacher = {"": "pretrained", ".path": dense, ".max_length": 16}
        changed |= {f"{'' if key else '+model@'}pipeline.distill.teacher{key}": value for key, value in teacher.items()}
    dropped = ("model=", "model.config=", "data=", "logger=", "+model@", f"pipeline.{technique}.teacher")
    kept = [line for line in overhead.overrides(arguments, str(tmp_path)) if not line.startswith(dropped)]
    cfg = compose([*kept, *(f"{key}={value}" for key, value in changed.items())])
    check(cfg)
    Pipeline(cfg, overrides=[]).run()  # raises where the weights differ
    timings = json.loads(path.read_text())
    assert len(timings["trainer_s"]) == len(timings["plain_s"]) == 2 * overhead.BLOCK // 2
    assert min(*timings["trainer_s"], *timings["plain_s"]) > [0, 0]
    assert timings["checkpoint_s"] > 0


def test_a_toy_goes_through_every_kernel_of_the_cpu(capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmark", "--toy", "--rounds", "2", "--tokens", "2"])
    cpu_kernels.main()
    said = capsys.readouterr().out
    assert "| int8, no compiler |" in said and "| int8, head in float32 |" in said
    assert "of 4 layer shapes are not slower than the best float type" in said


@pytest.mark.fast
def test_ratios_are_taken_round_by_round() -> None:
    assert cpu_kernels.ratios([2.0, 20.0, 6.0], [1.0, 10.0, 2.0])[0] == 2.0


def test_layers_of_a_gpu_at_the_size_of_a_toy(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu_kernels", "--toy"])
    if torch.cuda.is_available():
        gpu_kernels.main()
    else:
        with pytest.raises(SystemExit, match="timed on a CUDA GPU, and there is none"):
            gpu_kernels.main()
        only = [ScaledMM, IntMM, DenseFloat32, DenseBfloat16]  # not what runs on a CPU alone
        monkeypatch.setattr(gpu_kernels, "BACKENDS", only)
        gpu_kernels.show(gpu_kernels.TOY, [1, 17], torch.device("cpu"))
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| toy")]
    assert {(kind, count) for _, kind, count, *_ in rows} >= {("int8", "1"), ("fp8", "1")}
    assert all(line[-1].endswith("x |") and float(line[-1].split(", ")[1][:-3]) > 0 for line in rows)


@pytest.fixture
def decode_large(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The module, which points Triton's cache at a folder of its own when it is imported."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))  # put back at the end
    from benchmarks import decode_large

    return decode_large


def test_decoding_arms_build_at_the_size_of_a_toy(decode_large: Any) -> None:

    from slimexp.kernel.base import Kernel

    for arm in decode_large.ARMS.values():
        model = decode_large.random_model(prune_large.TOY, arm, "cpu")
        assert len(model.model.layers) == max(1, round(arm.layers * prune_large.TOY["num_hidden_layers"]))
        layers = [one for one in model.modules() if isinstance(one, torch.nn.Linear | Kernel)]
        assert all(isinstance(one, Kernel) == (arm.kind != "dense") for one in layers) and layers
        dense = 2 * sum(one.in_features * one.out_features for one in layers if isinstance(one, torch.nn.Linear))
        read = decode_large.stacked_bytes(model)
        assert read == dense if arm.kind == "dense" else read > 0
    assert torch.get_default_dtype() == torch.float32


@pytest.mark.fast
def test_decoding_targets_scale_with_the_card(decode_large: Any) -> None:
    half = decode_large.BANDWIDTH / 2
    fast, slow = (decode_large.Speed(rate, 1.0, 5.0, 10**9, 0.01) for rate in (401.0, 399.0))
    assert decode_large.missed({"fused, bf16": fast, "generate": slow}, half) == []
    assert decode_large.missed({"fused, bf16": slow}, half) == ["fused, bf16: 399 < 400"]
    assert "| fused, bf16 | 401 | 19% | 400 | 1.0 | 5.0 | 1.00 | 1.00% |" in decode_large.table(
        {"fused, bf16": fast}, half
    )


def test_decoding_at_the_size_of_a_toy(decode_large: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:

    monkeypatch.setattr(sys, "argv", ["decode_large", "--tune", "soon"])
    with pytest.raises(SystemExit) as refused:
        decode_large.main()
    assert refused.value.code == 2 and "argument --tune: invalid float value: 'soon'" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["decode_large", "--toy"])
    if not torch.cuda.is_available():
        with pytest.raises(SystemExit, match="decoding is measured on a CUDA GPU, and there is none"):
            decode_large.main()
        return
    decode_large.main()
    told = capsys.readouterr().out
    assert all(f"| {name} | " in told for name in decode_large.ARMS)
