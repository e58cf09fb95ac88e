"""Artifacts of tiny models, as formats are given them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from slimexp import artifact
from slimexp.format.base import Artifact
from slimexp.weight.attachment import INPUT, attach

Make = Callable[..., Any]


@pytest.fixture
def made(tiny: Make, tmp_path: Path) -> Make:
    """Task, quantizers of weights and of inputs (and config values) -> an artifact."""

    def make(task: str, weight: Make | None = None, inputs: Make | None = None, **values: Any) -> Artifact:
        dtype = values.pop("dtype", torch.float32)
        family = tiny(task, **values)
        for layer in family.compressible().values() if weight else ():
            attach(layer, "weight", weight())
            if inputs:
                attach(layer, INPUT, inputs())
        artifact.save(family, tmp_path / "artifact", dtype=dtype, stages=[])
        return Artifact(tmp_path / "artifact")

    return make
