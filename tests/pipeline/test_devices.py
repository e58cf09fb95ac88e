"""Two processes train as one does: the same batches, objective, masks and grids; a training goes on on more or fewer."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from slimexp.config.check import check
from slimexp.config.composition import compose
from slimexp.pipeline.pipeline import Pipeline

SCRIPT = Path(__file__).with_name("together.py")
SHORT = ("steps=4", "batch_size=4", "optimizer.lr=0.01", "dropout=false")
# Name -> pipeline, and settings of its last stage; every one is trained.
JOBS: dict[str, tuple[str, Sequence[str]]] = {
    "finetune": ("finetune", ["accumulate=2"]),
    "magnitude": ("prune", ["every=1"]),
    "minmax": ("quantize", ["bits=4"]),
    "distill": ("distill", []),
}
SLOW: dict[str, tuple[str, Sequence[str]]] = {
    "movement": ("prune", ["every=1", "importance=movement"]),
    "wanda": ("prune", ["every=1", "importance=wanda"]),
    "sparsegpt": ("prune", ["every=2", "importance=sparsegpt"]),
    "taylor": ("prune", ["every=1", "importance=taylor", "regrow=0.3"]),
    "l0": ("prune", ["importance=l0"]),
    "lsq": ("quantize", ["bits=4", "quantizer=lsq", "start=0.5"]),
    "pact": ("quantize", ["activation_quantizer=pact"]),
    "gptq": ("quantize", ["bits=4", "activation_bits=null", "rounding=gptq"]),
    "structured": ("prune_structured", ["multiple=8", "budget.limit=0.7", "min_coverage=0.01"]),
}
SHARDED = ("finetune", "magnitude", "minmax", "distill", "movement", "lsq", "pact", "gptq", "structured")


def arguments(home: Path, name: str, runs: Path, *more: str) -> list[str]:
    pipeline, settings = (JOBS | SLOW)[name]
    groups = [word for word in settings if word.split("=")[0] in ("importance", "quantizer", "activation_quantizer", "rounding")]
    values = [word for word in settings if word not in groups]
    chosen = [f"{group.split('=')[0]}@pipeline.{pipeline}.{group}" for group in groups]
    hidden = [f"+loss@pipeline.{pipeline}.losses.hidden=hidden"] if name == "distill" else []
    return [
        "name=run", "model=pretrained", f"model.path={home / 'dense'}", "model.max_length=16", "data=files",
        f"data.path={home / 'table.csv'}", "data.task=causal_lm", f"pipeline={pipeline}", "logger=none", "trainer=fast",
        "measure=[size]", "save_dtype=float32", *chosen, *hidden,
        *(f"pipeline.{pipeline}.{value}" for value in (*SHORT, *values)), f"runs={runs}", *more,
    ]  # fmt: skip
