"""Sweeps under kills, workers that wait, W&B runs that are lost."""

import argparse
import math
import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from benchmarks import sweep, wandb_runs
from slimexp.logger import wandb_report


@pytest.mark.slow
def test_a_sweep_survives_kills(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep.chaos(argparse.Namespace(folder=tmp_path / "sweep", trials=100, workers=2, seed=1))
    assert "0 lost, 0 counted twice" in capsys.readouterr().out


@pytest.mark.fast
def test_workers_wait_only_while_there_are_trials_left() -> None:
    spans = [sweep.Span(0, 1), sweep.Span(0, 3), sweep.Span(1.5, 4), sweep.Span(3, 9)]
    share, refills = sweep.waiting(spans, workers=2)
    assert refills == [0.5, 0.0]
    assert math.isclose(share, 0.5 / 6)  # of two workers until the last trial began


def test_a_sweep_of_unequal_trials_keeps_its_workers_busy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep.idle(argparse.Namespace(folder=tmp_path / "sweep", trials=6, workers=2, pool="local", seconds=[0.0, 0.05]))
    output = capsys.readouterr().out
    assert "6 trials of 0 to 0.05 s on 2 workers (local)" in output and "| idle while trials are left |" in output


@pytest.mark.parametrize("workers", [0, pytest.param(4, marks=pytest.mark.slow)])  # 4 imports of Lightning
def test_wandb_runs_are_all_whole_and_a_lost_one_is_missed(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    settled: Callable[[Path], Path],
    workers: int,
) -> None:
    def settling(function: Callable[[int], float], numbers: range) -> list[float]:
        seconds = [function(number) for number in numbers]
        settled(tmp_path)
        return seconds

    monkeypatch.setenv("WANDB_MODE", "offline")
    if workers:
        with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
            assert wandb_runs.write_and_read(4, tmp_path, pool.map) == 0
    else:
        assert wandb_runs.write_and_read(4, tmp_path, settling) == 0
    assert "12 of 12 records are whole in 4 runs" in capsys.readouterr().out
    (log, *_) = tmp_path.rglob("*.wandb")
    log.unlink()
    assert len(wandb_report.check(tmp_path).faults) == 3
