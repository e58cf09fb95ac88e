"""The first process starts the others, and whatever happens to one of them ends all by one line."""

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

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
