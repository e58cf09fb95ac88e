"""What ends a trial, a worker or a controller from without loses nothing, and leaves no process behind."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import psutil
import pytest

from slimexp.sweeper.sweep import Sweep

Make = Callable[..., Sweep]
Ran = Callable[[], list[str]]

CONTROLLER = """
import sys
from pathlib import Path
import fake_worker
from slimexp.sweeper.settings import Settings
from slimexp.sweeper.space import Space
from slimexp.sweeper.sweep import Sweep

if __name__ == "__main__":
    settings = Settings(
        objectives={"cer": "min", "disk_mb": "min"}, limits={}, sampler=None, trials=None, seeds=[], storage=None,
        workers=1, threads=1, fail_fast=False, max_failures=None,
    )
    space, folder = Space.parse(["x=endless,3", "y=1"]), Path(sys.argv[1])
    Sweep(space=space, folder=folder, settings=settings, prepare=fake_worker.prepare).run()
"""


def until(true: Callable[[], Any], seconds: float = 20.0) -> Any:
    """Wait for it; what it gave."""
    end = time.monotonic() + seconds
    while not (given := true()) and time.monotonic() < end:
        time.sleep(0.05)
    return given


def is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def pids(folder: Path) -> list[int]:
    """Of a worker at an endless trial, and of what it has started."""
    file = folder / "pids"
    return [int(word) for word in file.read_text().split()] if file.exists() else []


def test_busy_workers_and_what_they_started_end_with_their_controller(fake: Any, tmp_path: Path, make: Make) -> None:
    (tmp_path / "controller.py").write_text(CONTROLLER)
    path = os.pathsep.join([str(tmp_path), *sys.path])
    controller = subprocess.Popen(
        [sys.executable, tmp_path / "controller.py", tmp_path / "sweep"], env={**os.environ, "PYTHONPATH": path}
    )
    started = until(lambda: pids(tmp_path), 60)
    assert started and all(map(is_alive, started))
    controller.send_signal(signal.SIGKILL)
    controller.wait()
    assert until(lambda: not any(map(is_alive, started)))
    (tmp_path / "pids").unlink()
    again = make("x=endless,3", "y=1", trial_timeout=0.5, workers=1)
    assert again.done == 0 and again.run() and again.done == 2


def test_a_trial_has_its_time_and_leaves_nothing_running(make: Make, tmp_path: Path, ran: Ran) -> None:
    sweep = make("x=endless,3", trial_timeout=0.5, workers=1)
    assert [trial.params["x"] for trial in sweep.run()] == ["3"]
    assert sweep.failures == 1 and len(ran()) == 2
    (error,) = {trial.user_attrs["outcome"]["error"] for trial in sweep.study.trials} - {None}
    assert error == "took longer than hydra.sweeper.trial_timeout=0.5"
    assert until(lambda: not any(map(is_alive, pids(tmp_path))))
    again = make("x=endless,3", trial_timeout=0.5)
    assert (again.done, again.failures) == (2, 1)  # it is the trial's own fault


def test_an_interrupted_sweep_leaves_nothing_running(make: Make, tmp_path: Path, monkeypatch: Any) -> None:
    sweep = make("x=endless,3", workers=1)

    def interrupted(**given: Any) -> Any:
        assert until(lambda: pids(tmp_path))
        raise KeyboardInterrupt

    monkeypatch.setattr(sweep.pool, "finished", interrupted)
    with pytest.raises(KeyboardInterrupt):
        sweep.run()
    assert until(lambda: not any(map(is_alive, pids(tmp_path))))


@pytest.mark.parametrize(
    ("cause", "sampler"),
    [
        ("full", None),
        ("memory", optuna.samplers.TPESampler),
        pytest.param("memory", None, marks=pytest.mark.slow),
        pytest.param("full", optuna.samplers.TPESampler, marks=pytest.mark.slow),
    ],
)
def test_what_the_machine_ended_is_done_again_by_the_same_command(
    make: Make, ran: Ran, tmp_path: Path, cause: str, sampler: Any
) -> None:
    settings = {"sampler": sampler and (lambda **more: sampler(seed=0, **more)), "trials": 6 if sampler else None}
    command = f"x={cause},wrong,3" if sampler is None else f"x={cause},3"
    first = make(command, **settings)
    first.run()
    failed = first.failures
    assert first.done == first.total and failed >= 1
    (tmp_path / "freed").touch()
    before = len(ran())
    second = make(command, **settings)
    assert second.total - second.done == (1 if sampler is None else failed)
    second.run()
    assert all(line.startswith(f"x={cause}") for line in ran()[before:]) and len(ran()) > before
    assert (second.done, second.failures) == (second.total, 1 if sampler is None else 0)
    third = make(command, **settings)
    third.run()
    assert (third.done, third.failures) == (second.done, second.failures) and len(ran()) == before + len(ran()[before:])


def test_what_is_wrong_is_done_again_where_that_is_asked_for(make: Make, ran: Ran, tmp_path: Path) -> None:
    make("x=fixed,wrong,hopeless,3").run()
    assert len(ran()) == 4
    assert make("x=fixed,wrong,hopeless,3").run() and len(ran()) == 4
    (tmp_path / "freed").touch()
    again = make("x=fixed,wrong,hopeless,3", retry_failed=True)
    assert (again.done, again.failures) == (2, 0)
    again.run()
    assert sorted(ran()[4:]) == ["x=fixed", "x=wrong"] and (again.done, again.failures) == (4, 1)
    last = make("x=fixed,wrong,hopeless,3")
    assert (last.done, last.failures, last.stopped) == (4, 1, 1)
    last._lock.close()


def test_a_worker_that_is_lost_once_costs_no_trial(make: Make, ran: Ran, capsys: Any) -> None:
    sweep = make("x=flaky,3", workers=1)
    sweep.run()
    assert sorted(ran()) == ["x=3", "x=flaky", "x=flaky"] and (sweep.done, sweep.failures) == (2, 0)
    assert "lost     x=flaky: the worker was killed by SIGTERM; it is done again" in capsys.readouterr().out


def test_what_kills_its_workers_is_given_up(make: Make, ran: Ran) -> None:
    sweep = make("x=killed,3", workers=1)
    sweep.run()
    assert ran().count("x=killed") == 3 and sweep.failures == 1
    again = make("x=killed,3")
    assert again.done == 2
    again._lock.close()
