"""Two processes train as one does: the same batches, objective, masks and grids; a training goes on on more or fewer."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from slimexp.config.check import check
from slimexp.config.composition import compose
from slimexp.pipeline.pipeline import Pipeline

SCRIPT = Path(__file__).with_name("together.py")
SHORT = ("steps=4", "batch_size=4", "optimizer.lr=0.001", "dropout=false")
# Name -> pipeline, settings of its stage, and components (GROUP@SLOT=OPTION) of it.
JOBS: dict[str, tuple[str, Sequence[str], Sequence[str]]] = {
    "finetune": ("finetune", ["accumulate=2"], []),
    "magnitude": ("prune", ["every=1"], []),
    "minmax": ("quantize", ["bits=4"], []),
    "distill": ("distill", ["cut.ffn=32"], ["+loss@losses.hidden=hidden", "+cut@cut=keep"]),
}
SLOW: dict[str, tuple[str, Sequence[str], Sequence[str]]] = {
    "movement": ("prune", ["every=1"], ["importance@importance=movement"]),
    "wanda": ("prune", ["every=1"], ["importance@importance=wanda"]),
    "sparsegpt": ("prune", ["every=2"], ["importance@importance=sparsegpt"]),
    "taylor": ("prune", ["every=1", "regrow=0.3"], ["importance@importance=taylor"]),
    "l0": ("prune", [], ["importance@importance=l0"]),
    "lsq": ("quantize", ["bits=4", "start=0.5"], ["quantizer@quantizer=lsq"]),
    "pact": ("quantize", [], ["quantizer@activation_quantizer=pact"]),
    "gptq": ("quantize", ["bits=4", "activation_bits=null"], ["+rounding@rounding=gptq"]),
    "structured": ("prune_structured", ["multiple=8", "budget.share=0.7", "min_coverage=0.01"], []),
}
SHARDED = ("finetune", "magnitude", "minmax", "distill", "movement", "lsq", "pact", "gptq", "structured")


def arguments(home: Path, name: str, runs: Path, *more: str) -> list[str]:
    pipeline, settings, components = (JOBS | SLOW)[name]
    chosen = [component.replace("@", f"@pipeline.{pipeline}.") for component in components]
    return [
        "name=run", "model=pretrained", f"model.path={home / 'dense'}", "model.max_length=16", "data=files",
        f"data.path={home / 'table.csv'}", "data.task=causal_lm", f"pipeline={pipeline}", "logger=none", "trainer=fast",
        "measure=[size]", "save_dtype=float32", *chosen,
        *(f"pipeline.{pipeline}.{value}" for value in (*SHORT, *settings)), f"runs={runs}", *more,
    ]  # fmt: skip


def alone(words: Sequence[str]) -> None:
    cfg = compose(list(words))
    check(cfg)
    Pipeline(cfg, overrides=[]).run()


def together(folder: Path, jobs: Sequence[Sequence[str]]) -> list[list[dict[str, Any]]]:
    """Run command lines in two processes; returns what each process ended each with."""
    folder.mkdir(parents=True, exist_ok=True)
    results = [str(folder / f"result-{number}") for number in range(len(jobs))]
    plan = [{"arguments": list(words), "result": result} for words, result in zip(jobs, results, strict=True)]
    (folder / "jobs.json").write_text(json.dumps(plan))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    path = os.pathsep.join(entry for entry in sys.path if entry)
    common = {
        "PYTHONPATH": path,
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_RUN_ID": "test",
    }
    processes = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(folder / "jobs.json")],
            env={**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    said = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(said)
    return [[json.loads(Path(f"{result}.{rank}").read_text()) for rank in range(2)] for result in results]


def weights(runs: Path, stage: str) -> dict[str, torch.Tensor]:
    (folder,) = (runs / "run").glob(f"{stage}-*")
    tensors = load_file(folder / "artifact" / "model.safetensors")
    training = folder / "artifact" / "training.safetensors"
    return tensors | (load_file(training) if training.exists() else {})


def curves(runs: Path, stage: str) -> list[dict[str, float]]:
    (folder,) = (runs / "run").glob(f"{stage}-*")
    return [json.loads(line) for line in (folder / "curves.jsonl").read_text().splitlines()]


def assert_equal(first: Path, second: Path, name: str) -> None:
    """Within rounding: one weight in a hundred may be on the other side of a threshold of masks or grids."""
    stage = (JOBS | SLOW)[name][0]
    for row, other in zip(curves(first, stage), curves(second, stage), strict=True):
        assert row == pytest.approx(other, rel=1e-4, abs=1e-6), name
    one, two = weights(first, stage), weights(second, stage)
    assert one.keys() == two.keys(), name
    for key, tensor in one.items():
        differing = ~torch.isclose(tensor.float(), two[key].float(), rtol=1e-3, atol=2e-4)
        assert differing.float().mean() <= 0.01, (name, key, float(differing.float().mean()))
