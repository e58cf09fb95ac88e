"""A process that ends at any moment, by itself or by a signal, loses nothing that is finished."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from slimexp import artifact, clean
from slimexp.logger.curves import Curves
from slimexp.record import record

Make = Callable[..., Any]

ROOT = Path(__file__).parents[2]
KILLED = 137  # exit status of a process that SIGKILL ended, as a shell counts


def killed_at(run: Any, moment: int) -> bool:
    """End a process of the run, as by SIGKILL, before its n-th rename or row of its curves; whether it came so far."""
    if (child := os.fork()) == 0:
        count = iter(range(moment))
        try:
            with pytest.MonkeyPatch.context() as patch:
                for place, name in ((os, "replace"), (Curves, "log_metrics")):
                    patch.setattr(place, name, _counting(getattr(place, name), count))
                run.pipeline().run()
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == KILLED


def _counting(call: Make, count: Iterator[int]) -> Make:
    def counted(*arguments: Any, **options: Any) -> Any:
        if next(count, None) is None:
            os._exit(KILLED)
        return call(*arguments, **options)

    return counted


@pytest.mark.slow
def test_a_kill_at_any_moment_costs_nothing(new_run: Make, finished: Any, again: Make, tmp_path: Path) -> None:
    """Between any two renames and rows: the same weights, curves and figures, and not a word of damage."""
    moment = 0
    while killed_at(run := new_run(tmp_path / str(moment)), moment):
        assert again(run) == []
        moment += 1
    assert moment > 10
    assert run.files() == finished[0].files()


def start(arguments: Sequence[str], cwd: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "slimexp.train", *arguments], cwd=cwd, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    while not path.exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)


@pytest.fixture
def many_steps(short: Make, overrides: Make) -> list[str]:
    more = [
        *short("finetune", steps=80),
        "checkpoint.every_steps=1",
        "checkpoint.every_seconds=0",
        "checkpoint.share=null",
    ]
    return overrides("finetune", *more, dropout_rate=0.2)


@pytest.mark.slow  # test_fit.py ends runs likewise within this process
def test_a_killed_process_goes_on_where_it_was(
    pipeline: Make, weights: Make, same_tensors: Make, many_steps: list[str], tmp_path: Path
) -> None:
    straight = pipeline([*many_steps, f"runs={tmp_path / 'straight'}"])
    straight.run()
    same_place = pipeline(many_steps)
    killed = start(many_steps, tmp_path)
    wait_for(same_place.stages[-1].checkpoint, killed)
    killed.kill()
    assert killed.wait() == -signal.SIGKILL
    assert same_place.stages[0].artifact.exists() and not same_place.stages[-1].artifact.exists()
    out, err = (again := start(many_steps, tmp_path)).communicate(timeout=120)
    assert again.returncode == 0, err
    assert (
        re.search(r"^finetune: resuming at step \d+ of \d+, from ", out, re.M)
        and "dense: finished before, reused" in out
    )
    assert same_tensors(weights(same_place), weights(straight))
    assert [row.stage for row in record.read(same_place.cfg.runs)] == ["dense", "finetune"]


@pytest.mark.parametrize(
    ("number", "times", "word"),
    [pytest.param(signal.SIGINT, 1, "interrupted", marks=pytest.mark.slow), (signal.SIGTERM, 2, "terminated")],
)
def test_a_signal_ends_it_by_one_line_and_keeps_what_is_finished(
    pipeline: Make, records: Make, many_steps: list[str], tmp_path: Path, number: int, times: int, word: str
) -> None:
    expected = pipeline(many_steps)
    process = start(many_steps, tmp_path)
    wait_for(expected.stages[-1].checkpoint, process)
    assert clean.main([str(expected.cfg.runs), "--dominated", "--unfinished", "--yes"]) == 2  # a run is at work
    for _ in range(times):
        process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert re.search(r"^finetune: stopped after step \d+ of \d+; the same command goes on from step \d+$", out, re.M)
    assert err.splitlines() == [f"{word}: what is finished is kept, the same command goes on from there"]
    assert [row["stage"] for row in records(expected)] == ["dense"]
    assert torch.load(expected.stages[-1].checkpoint, weights_only=True)["global_step"] >= 1
    artifact.deployed(expected.stages[0].artifact)
