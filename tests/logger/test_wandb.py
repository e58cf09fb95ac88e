"""Tracking: never asks, never stops a run, loses no configuration; curves of a resumed run equal the straight one's."""

import ast
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor

from slimexp.logger import curves as logger_curves
from slimexp.logger import wandb, wandb_log
from slimexp.logger.curves import Curves
from slimexp.logger.none import Silent
from slimexp.logger.wandb import Mode, Wandb


def make(folder: Path, mode: Mode = "auto") -> Wandb:
    return Wandb(project="test", entity=None, group=None, tags=["tag"], mode=mode, folder=str(folder))


@pytest.fixture
def no_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "settings"))


class Line(pl.LightningModule):
    """One weight, whose loss is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.save_hyperparameters({"leaks": "into the run's configuration"})
        self.weight = torch.nn.Parameter(torch.ones(1))

    def training_step(self, batch: Tensor, index: int) -> Tensor:
        loss = (self.weight * batch).pow(2).mean()
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


def fit(loggers: list[pl.loggers.Logger], steps: int, folder: Path, resume: Path | None = None) -> pl.Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    trainer = pl.Trainer(
        logger=loggers, max_steps=steps, log_every_n_steps=2, accelerator="cpu", default_root_dir=folder, **quiet
    )
    batches = torch.utils.data.DataLoader(torch.ones(100), batch_size=4)  # all equal: this loader cannot resume
    trainer.fit(Line(), batches, ckpt_path=resume)
    return trainer


@pytest.mark.usefixtures("no_account")
def test_without_an_account_everything_is_in_the_offline_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], settled: Callable[[Path], Path]
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

    said = [line for line in capsys.readouterr().err.splitlines() if "W&B" in line or "wandb" in line]
    assert len(said) == 1
    assert said[0].startswith("W&B: no account found, writing offline; `wandb sync ")
    assert "`wandb sync " in said[0]

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


@pytest.mark.fast
@pytest.mark.parametrize(
    "wrong",
    [b"junk", b"[]", b"{}", b'{"step": "1"}', b'{"step": 1, "loss": "low"}', b'{"step": 1, "loss": NaN}',
     b'{"step": true}', b'{"step": 1, "loss": [1]}', b"\xff\xfe", b"[" * 10**5, b"0" * 2**21,
     b'{"step": 1, "loss": 1' + b"0" * 400 + b"}", b'{"step": 1, "\xed\xa0\x80": 1}'],
)  # fmt: skip
def test_rows_that_are_none_go_and_the_first_is_said(tmp_path: Path, wrong: bytes) -> None:
    path, rows = tmp_path / "curves.jsonl", [b'{"step": 0, "loss": 1.5}\n', b'{"step": 1, "loss": null}\n']
    path.write_bytes(rows[0] + wrong + b"\n" + rows[1] + b'{"step": 2}\n{"step": 3, "lo')
    assert logger_curves.drop_from(path, 2) == "line 2 is no row of it"
    assert path.read_bytes() == b"".join(rows)
    assert logger_curves.drop_from(path, 2) is None  # the last was torn by a kill: no damage
    assert logger_curves.drop_from(tmp_path / "none", 2) is None


@pytest.mark.usefixtures("no_account")
def test_what_fails_online_goes_on_offline_and_what_fails_there_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []

    def refuse(mode: str, name: str, config: Any) -> None:
        asked.append(mode)
        raise RuntimeError(f"{mode} is down")

    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    mirror = make(tmp_path)
    monkeypatch.setattr(mirror, "_init", refuse)
    mirror.start(name="run", config={})
    assert asked == ["online", "offline"]
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
    mirror._run = Broken()
    _, logger = mirror.loggers("stage", tmp_path / "curves.jsonl")
    logger.log_metrics({"loss": 1.0}, 0)
    logger.log_metrics({"loss": 1.0}, 1)
    mirror.finish()
    assert capsys.readouterr().err.count("W&B") == 1


@pytest.mark.parametrize(
    ("environment", "mode", "expected"),
    [
        ("offline", "online", "offline"),
        ("dryrun", "auto", "offline"),
        ("run", "auto", "online"),
        ("disabled", "online", "disabled"),
        ("", "offline", "offline"),
    ],
)
def test_the_environment_decides_before_the_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environment: str, mode: Mode, expected: str
) -> None:
    monkeypatch.setenv("WANDB_MODE", environment)
    assert make(tmp_path, mode).mode == expected


def test_an_unknown_mode_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "sometimes")
    with pytest.raises(ValueError, match="auto, online, offline, disabled, got 'sometimes'"):
        make(tmp_path)


def test_disabled_and_silent_write_curves_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for mirror in (make(tmp_path / "wandb", "disabled"), Silent()):
        mirror.start(name="run", config={})
        assert [type(one) for one in mirror.loggers("stage", tmp_path / "curves.jsonl")] == [Curves]
        mirror.summary("stage", {"cer": 1.0})
        mirror.artifact("stage", tmp_path)
        mirror.finish()
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().err == ""


def test_curves_of_a_resumed_run_equal_the_straight_ones(tmp_path: Path) -> None:
    straight, stopped = tmp_path / "straight.jsonl", tmp_path / "stopped.jsonl"
    fit([Curves(path=straight)], 12, tmp_path)
    fit([Curves(path=stopped)], 5, tmp_path).save_checkpoint(tmp_path / "five.ckpt")
    with stopped.open("a") as file:  # it went on after the checkpoint, and was killed while it wrote
        file.write('{"step": 5, "loss": 9.0}\n{"step": 7, "loss": 9.0}\n{"step": 9, "lo')
    fit([Curves(path=stopped)], 12, tmp_path, resume=tmp_path / "five.ckpt")
    assert stopped.read_text() == straight.read_text()
    assert [json.loads(line)["step"] for line in straight.read_text().splitlines()] == [1, 3, 5, 7, 9, 11]


def test_curves_hold_strict_json(tmp_path: Path) -> None:
    curves = Curves(path=tmp_path / "deep" / "curves.jsonl")
    assert not (tmp_path / "deep").exists()
    curves.log_metrics({"loss": float("nan"), "rate": torch.tensor(0.5)}, 3)  # type: ignore[dict-item]
    assert json.loads((tmp_path / "deep" / "curves.jsonl").read_text()) == {"step": 3, "loss": None, "rate": 0.5}


def test_wandb_is_imported_only_when_it_is_used() -> None:
    tree = ast.parse(Path(wandb.__file__).read_text())
    imported = [ast.unparse(node) for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    assert imported and not any("wandb" in line for line in imported)
