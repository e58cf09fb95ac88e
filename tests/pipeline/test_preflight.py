"""Runs and evaluations are refused for the same faults, in the same words, before anything is loaded."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from slimexp import artifact
from slimexp.config.composition import compose
from slimexp.model.loading import Pretrained
from slimexp.pipeline import preflight
from slimexp.record import record

Make = Callable[..., Any]


@pytest.fixture
def shared(tiny: Make, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What both commands are given: an artifact, which reads 64 tokens, and text."""
    artifact.save(tiny("seq2seq"), tmp_path / "model", dtype=torch.float32, stages=[])
    monkeypatch.delattr(Pretrained, "load")
    model = ["model=pretrained", f"model.path={tmp_path / 'model'}"]
    return [*model, "data=files", f"data.path={table}", "data.task=seq2seq", "measure=[size]", f"runs={tmp_path}"]


def training(words: Sequence[str]) -> preflight.TrainingParts:
    run = ["pipeline=prune", "logger=none", "trainer=fast", "model.max_length=64"]
    return preflight.training(compose([*run, *words]))


def evaluation(words: Sequence[str]) -> preflight.EvaluationParts:
    return preflight.evaluation(compose(words, "evaluate"))


COMMANDS = pytest.mark.parametrize("command", [training, evaluation])


@COMMANDS
def test_what_can_be_is_built(command: Make, shared: list[str]) -> None:
    parts = command(shared)
    assert parts.dense is parts.source and parts.source.max_length == 64
    assert list(parts.measures) == ["size"] and parts.corpus.task == "seq2seq"


@COMMANDS
def test_a_damaged_model(command: Make, shared: list[str], tmp_path: Path) -> None:
    (tmp_path / "model" / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=rf"^model '{tmp_path / 'model'}' is damaged \(config\.json has 2 of "):
        command(shared)


@COMMANDS
def test_no_place_for_records(command: Make, shared: list[str], tmp_path: Path) -> None:
    (tmp_path / record.FILE).mkdir()
    with pytest.raises(ValueError, match=rf"^{tmp_path / record.FILE} must be a file"):
        command(shared)


@COMMANDS
def test_a_model_of_another_task(command: Make, shared: list[str]) -> None:
    with pytest.raises(ValueError, match="is of type t5, which does not serve the task 'classification'"):
        command([*shared, "data.task=classification"])


@COMMANDS
def test_a_damaged_baseline(command: Make, shared: list[str], tiny: Make, tmp_path: Path) -> None:
    artifact.save(tiny("seq2seq"), tmp_path / "other", dtype=torch.float32, stages=[])
    (tmp_path / "other" / "model.safetensors").unlink()
    named = ["model@baseline=pretrained", f"baseline.path={tmp_path / 'other'}", "baseline.max_length=64"]
    with pytest.raises(ValueError, match=r"other' is damaged \(model\.safetensors is missing\)"):
        command([*shared, *named])
