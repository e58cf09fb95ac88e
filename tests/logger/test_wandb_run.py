"""A run of W&B takes its mode from the environment first, and ends whatever W&B does."""

import ast
from pathlib import Path

import pytest

from slimexp.logger import wandb_run
from slimexp.logger.wandb_run import Mode, WandbRun

pytestmark = pytest.mark.fast


def make(folder: Path, mode: Mode = "auto") -> WandbRun:
    return WandbRun(project="test", entity=None, group=None, tags=["tag"], mode=mode, folder=str(folder))


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


def test_wandb_is_imported_only_when_it_is_used() -> None:
    tree = ast.parse(Path(wandb_run.__file__).read_text())
    imported = [ast.unparse(node) for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    assert imported and not any("wandb" in line for line in imported)


def test_a_call_that_fails_ends_the_tracking(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make(tmp_path)
    assert run.guarded("log", lambda: 1) is None  # it has not started
    run.run = object()
    assert run.guarded("log", lambda: 1) == 1
    assert run.guarded("log", lambda: 1 / 0) is None and run.run is None
    run.finish()
    assert capsys.readouterr().err == (
        "W&B: could not log (ZeroDivisionError: division by zero); the run goes on without it\n"
    )
