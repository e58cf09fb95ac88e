"""ExecuTorch computes what PyTorch does, of floats."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from slimexp import artifact
from slimexp.export import export
from slimexp.format.base import Artifact, Plain
from slimexp.format.executorch import PROGRAM, Executorch
from slimexp.quantizer.minmax import MinMax
from slimexp.weight.attachment import attach

Make = Callable[..., Any]


@pytest.fixture(scope="module")
def engine() -> None:
    pytest.importorskip("executorch")


@pytest.mark.usefixtures("engine")
@pytest.mark.slow
@pytest.mark.parametrize("task", ["seq2seq", "causal_lm", "classification"])
def test_floats_of_every_task_at_any_length(task: str, tiny: Make, tmp_path: Path) -> None:
    artifact.save(tiny(task), tmp_path / "artifact", dtype=torch.float32, stages=[])
    model, folder = Artifact(tmp_path / "artifact"), tmp_path / "export"
    report = export(model, Executorch(), "executorch", folder, timed=False)
    assert report.agreement.relative < 1e-5 and report.facts["longest"] == model.family.max_length
    assert (folder / PROGRAM).stat().st_size > 0 and (folder / "config.json").exists()
    running, start = Executorch().load(model, folder), [0] if task == "seq2seq" else []
    for ids in ([5], list(range(5, 5 + model.family.max_length))):
        expected = Plain(model.family.model).logits(ids, start)
        np.testing.assert_allclose(running.logits(ids, start), expected, atol=1e-5)


def test_integers_are_refused(tiny: Make, tmp_path: Path) -> None:
    family = tiny("causal_lm")
    for layer in family.compressible().values():
        attach(layer, "weight", MinMax(bits=8, group_size=None))
    artifact.save(family, tmp_path / "artifact", dtype=torch.float32, stages=[])
    reason = Executorch().refusal(Artifact(tmp_path / "artifact"))
    assert reason is not None and "would become floats" in reason
