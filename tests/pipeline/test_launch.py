"""The first process starts the others, and whatever happens to one of them ends all by one line."""

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig, OmegaConf

from slimexp.pipeline import launch, machine

Make = Callable[..., Any]
DIES = {
    "says why": "import sys; print('a warning\\nthe disk is full', file=sys.stderr); sys.exit(1)",
    "is killed": "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
}


def ended(*words: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(entry for entry in sys.path if entry)
    return subprocess.run(
        [sys.executable, *words], env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=240
    )


def chosen(**trainer: Any) -> DictConfig:
    return OmegaConf.create({"trainer": {"accelerator": "cpu", **trainer}})


def others(monkeypatch: pytest.MonkeyPatch, script: str, leaving: float) -> launch._Others:
    """One other process, which runs ``script``; nobody meets."""
    monkeypatch.setattr(launch, "FOLLOWER", (sys.executable, "-c", script))
    monkeypatch.setattr(launch, "LEAVING_S", leaving)
    monkeypatch.setattr(launch, "meeting", lambda: OmegaConf.create({"port": 1}))
    for name, value in launch._counted(chosen(devices=2).trainer).items():
        monkeypatch.setenv(name, value)
    return launch._Others(chosen(devices=2), [])


def test_a_process_that_takes_long_to_leave_is_ended_and_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    with others(monkeypatch, "import time; time.sleep(60)", leaving=0.1) as _:
        pass


def test_a_process_that_fails_when_it_leaves_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="process 1 of the training failed: the disk is full"):  # noqa: SIM117
        with others(monkeypatch, DIES["says why"], leaving=60.0):
            pass


@pytest.mark.parametrize(("nodes", "rank"), [(1, "0"), (2, "6")])
def test_the_number_of_a_machine_counts_where_there_are_others(
    nodes: int, rank: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NODE_RANK", "3")
    assert launch._counted(chosen(devices=2, num_nodes=nodes).trainer)["RANK"] == rank


@pytest.mark.parametrize(
    ("devices", "local", "index"), [([3], "1", 3), (1, "1", 0), ("1", "1", 0), (2, "1", 1), ([2, 5], "1", 5)]
)
def test_a_process_computes_on_the_gpu_that_was_named(
    devices: Any, local: str, index: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL_RANK", local)
    assert machine.device(chosen(devices=devices, accelerator="gpu").trainer) == torch.device("cuda", index)


def test_one_gpu_is_the_current_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that nothing that says "cuda" alone goes to the first."""
    current: list[int] = []
    monkeypatch.setattr(torch.cuda, "device", lambda index: nullcontext(current.append(index)))
    with launch.processes(chosen(devices=[3], accelerator="gpu"), []):
        assert current == [3]
    with launch.processes(chosen(), []):
        assert current == [3]


@pytest.mark.slow
@pytest.mark.parametrize(("how", "message"), [("says why", "the disk is full"), ("is killed", "killed by signal 9")])
def test_a_process_that_fails_is_one_line(how: str, message: str) -> None:
    script = f"""
    import sys
    from omegaconf import OmegaConf
    from slimexp.pipeline import launch

    launch.FOLLOWER, launch.GRACE_S = (sys.executable, "-c", {DIES[how]!r}), 1.0
    with launch.processes(OmegaConf.create({{"trainer": {{"accelerator": "cpu", "devices": 2}}}}), []):
        print("trained")
    """
    result = ended("-c", textwrap.dedent(script))
    assert result.returncode == 2 and result.stdout == ""
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    assert line.startswith("error: process 1 of the training failed: ") and message in line


@pytest.mark.slow
@pytest.mark.parametrize("start", [["-m"], ["-m", "torch.distributed.run", "--nproc-per-node=2", "-m"]])
def test_a_command_trains_on_two_and_prints_once(start: list[str], overrides: Make, tmp_path: Path) -> None:
    words = overrides("finetune", "pipeline.finetune.steps=2", "pipeline.finetune.batch_size=4", "trainer.devices=2")
    result = ended(*start, "slimexp.train", *words)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("training 2 steps of 4 rows") == 1
    runs = Path(next(word for word in words if word.startswith("runs=")).partition("=")[2])
    assert len((runs / "records.jsonl").read_text().splitlines()) == 2


@pytest.mark.slow
def test_an_error_of_all_is_one_line(overrides: Make) -> None:
    words = overrides("finetune", "pipeline.finetune.steps=4", "pipeline.finetune.batch_size=4", "trainer.devices=2")
    result = ended("-m", "slimexp.train", *words, "pipeline.finetune.optimizer.lr=1e30")
    assert result.returncode == 2
    assert result.stderr.count("error: ") == 1 and "is nan at step" in result.stderr
