"""Tracking never asks, never stops a run and loses no configuration."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl

from slimexp.logger import wandb_log
from slimexp.logger.curves import Curves
from slimexp.logger.none import Silent
from slimexp.logger.wandb import Wandb
from slimexp.logger.wandb_run import Mode

Fit = Callable[..., pl.Trainer]


def make(folder: Path, mode: Mode = "auto") -> Wandb:
    return Wandb(project="test", entity=None, group=None, tags=["tag"], mode=mode, folder=str(folder))


@pytest.mark.usefixtures("no_account")
def test_without_an_account_everything_is_in_the_offline_file(
    fit: Fit, tmp_path: Path, capsys: pytest.CaptureFixture[str], settled: Callable[[Path], Path]
) -> None:
    mirror = make(tmp_path)
    mirror.start(name="a run", config={"seed": 3, "pipeline": {"distill": {"steps": 4}}})
    fit(mirror.loggers("distill", tmp_path / "curves.jsonl"), 4, tmp_path)
    mirror.summary("distill", {"cer": 0.25})
    (tmp_path / "artifact").mkdir()
    (tmp_path / "artifact" / "model.safetensors").write_bytes(b"weights")
    mirror.artifact("distill", tmp_path / "artifact")
    mirror.finish()
    mirror.finish()

    warnings = [line for line in capsys.readouterr().err.splitlines() if "W&B" in line or "wandb" in line]
    assert len(warnings) == 1
    assert warnings[0].startswith("W&B: no account found, writing offline; `wandb sync ")
    assert "`wandb sync " in warnings[0]

    (file,) = settled(tmp_path).glob("wandb/offline-run-*/*.wandb")
    records = list(wandb_log.records(file))
    config = {one.key: json.loads(one.value_json) for record in records for one in record.run.config.update}
    assert config["seed"] == 3
    assert config["pipeline"] == {"distill": {"steps": 4}}
    assert "leaks" not in config
    summary = {one.key: one.value_json for record in records for one in record.summary.update}
    assert json.loads(summary["distill/cer"]) == 0.25
    history = [
        {(one.key or "/".join(one.nested_key)): json.loads(one.value_json) for one in record.history.item}
        for record in records
        if record.history.item
    ]
    assert [row["distill/step"] for row in history] == [1, 3]
    assert all(row["distill/loss"] > 0 for row in history)
    axes = {record.metric.glob_name: record.metric.step_metric for record in records if record.metric.glob_name}
    assert axes == {"distill/*": "distill/step"}
    (artifact,) = [record.artifact for record in records if record.artifact.name]
    assert artifact.name == "a_run-distill"
    assert artifact.manifest.contents[0].ref == (tmp_path / "artifact" / "model.safetensors").as_uri()
    assert len((tmp_path / "curves.jsonl").read_text().splitlines()) == 2


@pytest.mark.usefixtures("no_account")
def test_what_fails_online_goes_on_offline_and_what_fails_there_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    modes = []

    def refuse(mode: str, name: str, config: Any) -> None:
        modes.append(mode)
        raise RuntimeError(f"{mode} is down")

    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    mirror = make(tmp_path)
    monkeypatch.setattr(mirror, "_init", refuse)
    mirror.start(name="run", config={})
    assert modes == ["online", "offline"]
    assert [type(one) for one in mirror.loggers("stage", tmp_path / "curves.jsonl")] == [Curves]
    mirror.summary("stage", {"cer": 1.0})
    mirror.artifact("stage", tmp_path)
    mirror.finish()
    assert "could not start (RuntimeError: offline is down); the run goes on without it" in capsys.readouterr().err


def test_a_run_that_breaks_down_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Broken:
        def define_metric(self, *_: Any, **__: Any) -> None:
            pass

        def log(self, row: dict[str, float]) -> None:
            raise ConnectionResetError("lost")

    mirror = make(tmp_path)
    mirror.run = Broken()
    _, logger = mirror.loggers("stage", tmp_path / "curves.jsonl")
    logger.log_metrics({"loss": 1.0}, 0)
    logger.log_metrics({"loss": 1.0}, 1)
    mirror.finish()
    assert capsys.readouterr().err.count("W&B") == 1


def test_disabled_and_silent_write_curves_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for mirror in (make(tmp_path / "wandb", "disabled"), Silent()):
        mirror.start(name="run", config={})
        assert [type(one) for one in mirror.loggers("stage", tmp_path / "curves.jsonl")] == [Curves]
        mirror.summary("stage", {"cer": 1.0})
        mirror.artifact("stage", tmp_path)
        mirror.finish()
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().err == ""
