"""A stage on disk: one process at a time, and nothing half-written is believed."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from slimexp.file import integrity
from slimexp.record.stage import RUNNING, Stage, at_work, key, shaping

HOLD = """
import sys, time
from pathlib import Path
from slimexp.record.stage import Stage
with Stage("prune", "k", None, Path(sys.argv[1])).alone():
    print("locked", flush=True)
    time.sleep(0.5)
    (Path(sys.argv[1]) / "done").touch()
"""


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage("prune", "k", None, tmp_path / "prune-k")


def test_a_second_process_waits_for_the_first(stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    command = [sys.executable, "-c", HOLD, str(stage.folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "locked\n"
        with stage.alone():
            assert (stage.folder / "done").exists()
    assert capsys.readouterr().out == "prune: another process works on it, waiting\n"


def test_a_failure_lets_the_next_one_in(stage: Stage) -> None:
    with pytest.raises(BlockingIOError), stage.alone():
        raise BlockingIOError
    with stage.alone():
        pass


@pytest.mark.fast
@pytest.mark.parametrize("text", [None, "", '{"metrics": {"cer": 0.', "[]"])
def test_half_a_file_of_measures_is_none(stage: Stage, text: str | None) -> None:
    stage.folder.mkdir()
    if text is not None:
        (stage.folder / "measures.json").write_text(text)
    assert stage.measured() == {}
    stage.write_measured({"metrics": {"cer": 0.5}})
    assert stage.measured() == {"metrics": {"cer": 0.5}}


@pytest.mark.fast
def test_keys_are_of_the_content() -> None:
    assert key({"a": 1, "b": 2}) == key({"b": 2, "a": 1}) != key({"a": 1, "b": 3})
    assert key({"a": [5, {"b": 1}]}) == key({"a": [5.0, {"b": 1.0}]}) != key({"a": [5, {"b": True}]})
    first, other = ({"sizes": {"*.up": 8, "a.*": 4}}, {"sizes": {"a.*": 4, "*.up": 8}})
    assert key(first) != key(other), "the first pattern that matches counts"
    assert key({"a.?": 8, "a.b": 4}) != key({"a.b": 4, "a.?": 8})
    assert shaping({"precision": "32-true", "logger": False}) == {"precision": "32-true"}


@pytest.mark.fast
@pytest.mark.parametrize("sealed", [False, True])
@pytest.mark.parametrize(
    "figures", [None, 3, [1.0], {"cer": "low"}, {"cer": True}, {"cer": {"value": 1}}, {"cer": float("nan")},
                {"cer": float("inf")}, {"cer": 10**400}],
)  # fmt: skip
def test_figures_that_are_none_are_set_aside(
    stage: Stage, figures: Any, sealed: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    stage.folder.mkdir()
    content = {"metrics": figures}
    (stage.folder / "measures.json").write_text(json.dumps(integrity.sealed(content) if sealed else content))
    assert stage.measured() == {}
    assert [path.name for path in stage.folder.iterdir()] == ["damaged-measures.json"]
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("prune: its measures.json is damaged (") and line.endswith(", done again")


@pytest.mark.fast
def test_figures_of_another_hand_are_set_aside(stage: Stage) -> None:
    stage.folder.mkdir()
    stage.write_measured({"metrics": {"cer": 0.5}, "measure": {}})
    assert stage.measured() == {"metrics": {"cer": 0.5}, "measure": {}}
    path = stage.folder / "measures.json"
    path.write_text(path.read_text().replace("0.5", "0.4"))
    assert stage.measured() == {}


@pytest.mark.fast
@pytest.mark.parametrize("linked", ["runs/run", "runs/run/prune-0"])
def test_a_stage_writes_through_no_link(tmp_path: Path, linked: str) -> None:
    real = tmp_path / "real/prune-0"
    real.mkdir(parents=True)
    link = tmp_path / linked
    link.parent.mkdir(parents=True)
    stage = Stage("prune", "0", None, tmp_path / "runs/run/prune-0")
    stage.check_place()
    link.symlink_to(real.parent if link.name == "run" else real)
    for place in (stage.check_place, stage.alone().__enter__):  # it may come between the plan and the work
        with pytest.raises(ValueError, match=rf"{link} is a link, and a stage writes below its runs folder only"):
            place()
    assert list(real.iterdir()) == []


@pytest.mark.fast
def test_a_runs_folder_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "runs").symlink_to(tmp_path / "disk")
    with Stage("prune", "0", None, tmp_path / "runs/run/prune-0").alone():
        assert (tmp_path / "disk/run/prune-0/lock").is_file()


@pytest.mark.fast
def test_a_file_in_the_place_of_a_run_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "run").touch()
    with pytest.raises(ValueError, match="run is no folder"):
        Stage("prune", "0", None, tmp_path / "run/prune-0").check_place()


@pytest.mark.fast
def test_only_checkpoints_of_ours_are_dropped(stage: Stage) -> None:
    stage.drop_checkpoint()  # of a stage that has no folder yet
    stage.folder.mkdir()
    for name in ("checkpoint.ckpt", "checkpoint.partial", "checkpoint.17.partial"):
        (stage.folder / name).touch()
    others = {"checkpoint.txt", "checkpoint.ckpt.bak", "checkpoint.a.partial", "checkpoint.py"}
    for name in others:
        (stage.folder / name).touch()
    stage.drop_checkpoint()
    assert {path.name for path in stage.folder.iterdir()} == others


@pytest.mark.fast
@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: path.symlink_to(path.parents[1] / "outside")])
def test_what_is_no_file_is_not_held_by_a_run(tmp_path: Path, make: Callable[[Path], None]) -> None:
    (tmp_path / "runs").mkdir()
    make(tmp_path / "runs" / RUNNING)
    with pytest.raises(ValueError, match=r"\.running must be a file, .*: remove it, or set runs=FOLDER"):
        at_work(tmp_path / "runs")
    with pytest.raises(OSError):
        integrity.lock_file(tmp_path / "runs" / RUNNING)
    assert not (tmp_path / "outside").exists()
    at_work(tmp_path / "others").close()


@pytest.mark.fast
@pytest.mark.parametrize(("name", "shown"), [("\x1b[2Jx", "\\x1b[2Jx"), ("\ud800", "\\ud800"), ("a\nb", "a\\nb")])
def test_words_of_a_damaged_file_are_harmless_to_a_terminal(
    stage: Stage, name: str, shown: str, capsys: pytest.CaptureFixture[str]
) -> None:
    stage.folder.mkdir()
    (stage.folder / "measures.json").write_text(json.dumps({"metrics": {name: "high"}}))
    assert stage.measured() == {}
    assert f"damaged (metrics.{shown} is no finite number)" in capsys.readouterr().out
