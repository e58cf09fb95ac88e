"""Weights go, figures stay, and nothing that somebody needs or works on is touched."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from slimexp import record
from slimexp.clean import main
from slimexp.stage import Stage

POINTS = {"dense": (16.0, 0.01), "good": (4.0, 0.02), "bad": (8.0, 0.03), "small": (2.0, 0.04)}


@pytest.fixture
def runs(tmp_path: Path, make_record: Callable[..., Any]) -> Path:
    """Four finished models, one of them dominated, and what a kill left of a fifth."""
    dense = {"cer": 0.01, "disk_mb": 16.0}
    for number, (name, (size, cer)) in enumerate(POINTS.items()):
        folder = tmp_path / f"run/prune-{name}"
        (folder / "artifact").mkdir(parents=True)
        (folder / "artifact/model.safetensors").write_bytes(b"x" * 2_000_000)
        (folder / "lock").touch()
        (folder / "curves.jsonl").touch()
        changes: dict[str, Any] = {"stage": "dense", "technique": "dense", "parent": None} if name == "dense" else {}
        row = make_record(
            name, metrics={"cer": cer, "disk_mb": size}, baseline=dense, seed=0, artifact=f"run/prune-{name}/artifact",
            baseline_key="dense", config={"pipeline": {"prune": {"sparsity": number / 10}}}, **changes,
        )  # fmt: skip
        record.append(tmp_path / record.FILE, row)
    torn = tmp_path / "run/distill-torn"
    (torn / ".artifact.host.1.partial").mkdir(parents=True)
    (torn / "damaged-artifact").mkdir()
    names = (
        "checkpoint.ckpt",
        "checkpoint.9.partial",
        "damaged-artifact/manifest.json",
        "damaged-measures.json",
        "lock",
    )
    for name in (*names, ".artifact.host.1.partial/model.safetensors"):
        (torn / name).write_bytes(b"x" * 10)
    return tmp_path


def artifacts(runs: Path) -> set[str]:
    return {path.parent.name.removeprefix("prune-") for path in runs.rglob("artifact") if path.is_dir()}


def test_only_what_no_front_needs_goes_and_figures_stay(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(runs), "--dominated"]) == 0
    assert "would remove" in capsys.readouterr().out and artifacts(runs) == set(POINTS)
    before = record.read(runs)
    assert main([str(runs), "--dominated", "--yes"]) == 0
    assert "2.0 MB freed" in capsys.readouterr().out and artifacts(runs) == {"dense", "good", "small"}
    assert record.read(runs) == before and (runs / "run/prune-bad/curves.jsonl").exists()
    assert (runs / "run/distill-torn/checkpoint.ckpt").exists()
    assert main([str(runs), "--dominated", "--yes"]) == 0  # nothing is left to do


def test_what_a_kill_left_goes(runs: Path) -> None:
    assert main([str(runs), "--unfinished", "--yes"]) == 0
    assert [path.name for path in (runs / "run/distill-torn").iterdir()] == ["lock"]
    assert artifacts(runs) == set(POINTS)


def test_what_a_process_works_on_stays(runs: Path) -> None:
    with Stage("distill", "torn", None, runs / "run/distill-torn").alone():
        assert main([str(runs), "--unfinished", "--yes"]) == 0
    assert (runs / "run/distill-torn/checkpoint.ckpt").exists()


def test_the_last_copy_of_a_model_stays(runs: Path) -> None:
    for name in ("bad", "good"):
        (runs / f"run/prune-{name}/.artifact.host.1.old").mkdir()
    (runs / "run/prune-bad/artifact").rename(runs / "run/prune-bad/.artifact.host.2.old")
    assert main([str(runs), "--unfinished", "--yes"]) == 0
    assert (runs / "run/prune-bad/.artifact.host.2.old").is_dir()
    assert not (runs / "run/prune-good/.artifact.host.1.old").exists()


def test_half_a_model_is_never_taken_for_a_whole_one(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(path: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("shutil.rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        main([str(runs), "--dominated", "--yes"])
    assert artifacts(runs) == {"dense", "good", "small"}


def test_a_model_that_another_run_names_or_another_axis_needs_stays(runs: Path, make_record: Any) -> None:
    assert main([str(runs), "--dominated", "--x", "kept", "--y", "kept", "--yes"]) == 2  # one axis is no front
    assert main([str(runs), "--dominated", "--x", "bits", "--yes"]) == 2  # nobody measured it
    assert artifacts(runs) == set(POINTS)
    teacher = str(runs / "run/prune-bad/artifact")
    record.append(runs / record.FILE, make_record("student", config={"pipeline": {"distill": {"teacher": teacher}}}))
    assert main([str(runs), "--dominated", "--yes"]) == 0
    assert artifacts(runs) == set(POINTS)


def test_nothing_goes_while_a_sweep_is_on(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Stage("sweep", "", None, runs / "run/sweep").alone():
        assert main([str(runs), "--dominated", "--yes"]) == 2
    assert "a sweep is at work" in capsys.readouterr().err and artifacts(runs) == set(POINTS)


def test_what_is_young_stays(runs: Path) -> None:
    old = runs / "run/distill-torn/checkpoint.ckpt"
    os.utime(old, (time.time() - 3 * 86_400,) * 2)
    assert main([str(runs), "--unfinished", "--days", "2", "--yes"]) == 0
    assert not old.exists() and (runs / "run/distill-torn/checkpoint.9.partial").exists()


def test_wrong_commands_are_one_error(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([str(runs)], [str(runs), "--unfinished", "--days", "-1"]):
        with pytest.raises(SystemExit, match="2"):
            main(arguments)
    (tmp_path / "empty").mkdir()
    assert main([str(tmp_path / "empty"), "--dominated"]) == 2
    assert main([str(runs / record.FILE), "--dominated"]) == 2
    assert "is a file: name the folder of the runs" in capsys.readouterr().err
