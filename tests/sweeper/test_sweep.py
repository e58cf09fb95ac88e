"""A sweep loses nothing, repeats nothing, and says what became of every trial."""

import itertools
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.samplers import RandomSampler
from optuna.trial import TrialState

from slimexp.sweeper.pool import local
from slimexp.sweeper.sweep import Sweep

Make = Callable[..., Sweep]
Ran = Callable[[], list[str]]


def test_a_grid_runs_every_combination_once_and_finds_the_front(make: Make, ran: Ran) -> None:
    sweep = make("x=1,2,3,4", "y=1,2")
    front = sweep.run()
    assert sorted(ran()) == sorted(f"x={x} y={y}" for x, y in itertools.product("1234", "12"))
    assert [trial.params for trial in front] == [{"x": "2", "y": "1"}]
    assert sweep.done == sweep.total == 8 and sweep.failures == 0


def test_failures_are_outcomes_shown_at_once(make: Make, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    sweep = make("x=nan,wrong,killed,3")
    assert [trial.params["x"] for trial in sweep.run()] == ["3"]
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4 + 2 and sweep.failures == 3
    lost = [line for line in lines if line.startswith("lost ")]
    assert lost == ["lost     x=killed: the worker was killed by SIGKILL (out of memory?); it is done again"] * 2
    for message in (
        "x=nan: 'cer' is nan",
        "x=wrong: ValueError: x is wrong",
        "x=killed: the worker was killed by SIGKILL (out of memory?), 3 times",
    ):
        (line,) = [line for line in lines if message in line]
        log = Path(line.partition("(all in ")[2].partition(")")[0])
        assert "FAILED" in line and log.parent == tmp_path / "sweep" and log.exists()


def test_a_stopped_trial_is_no_failure_and_is_not_repeated(make: Make, ran: Ran, capsys: Any) -> None:
    command, settings = ("x=hopeless,2,3",), {"fail_fast": True}
    sweep = make(*command, **settings)
    assert [trial.params["x"] for trial in sweep.run()] == ["2"]
    assert (sweep.done, sweep.failures, sweep.stopped) == (3, 0, 1)
    assert "stopped  x=hopeless: distill was stopped" in capsys.readouterr().out
    again = make(*command, **settings)
    assert (again.done, again.failures, again.stopped) == (3, 0, 1)
    again.run()
    assert len(ran()) == 3


@pytest.mark.parametrize("sampler", ["TPESampler", "NSGAIISampler"])
def test_samplers_cope_with_stopped_trials(make: Make, sampler: str) -> None:
    made = getattr(optuna.samplers, sampler)
    settings = {"sampler": lambda **more: made(seed=0, **more), "trials": 14}
    sweep = make("x=hopeless,1,2,3", "y=interval(1,8)", **settings)
    assert sweep.run() and sweep.stopped > 0 and sweep.done == 14


@pytest.mark.parametrize(("settings", "allowed"), [({"fail_fast": True}, 0), ({"max_failures": 1}, 1)])
def test_a_sweep_that_only_fails_is_given_up(make: Make, settings: dict[str, Any], allowed: int) -> None:
    sweep = make("x=wrong,nan,killed", workers=1, **settings)
    with pytest.raises(ValueError, match=f"after {allowed + 1} failed trials, of which {next(iter(settings))} allows"):
        sweep.run()
    assert sweep.done == allowed + 1


def test_the_same_command_goes_on_and_repeats_nothing(make: Make, ran: Ran, capsys: Any) -> None:
    command = ("x=1,2,3,wrong", "y=1,2,3")
    chance = random.Random(0)
    for _ in range(3):
        sweep, stop = make(*command), chance.randint(2, 3)
        finish = sweep._finish

        def dying(*arguments: Any, finish: Any = finish, sweep: Sweep = sweep, until: int = sweep.done + stop) -> str:
            if sweep.done == until:
                raise KeyboardInterrupt
            return finish(*arguments)

        sweep._finish = dying  # type: ignore[assignment, method-assign]
        with pytest.raises(KeyboardInterrupt):
            sweep.run()
    last = make(*command)
    last.run()
    assert last.done == last.total == 12 and last.failures == 3
    finished = [trial for trial in last.study.trials if "outcome" in trial.user_attrs]
    assert len(finished) == 12 == len({tuple(trial.params.values()) for trial in finished})
    assert not [trial for trial in last.study.trials if trial.state == TrialState.RUNNING]
    assert len({trial.user_attrs["outcome"]["error"] for trial in finished}) == 2
    before = len(ran())
    assert [trial.params for trial in make(*command).run()] == [trial.params for trial in last.front()]
    assert len(ran()) == before
    assert "12 of 12 trials are finished" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_failures": -1}, r"max_failures must be >= 0, or null for any number, got -1"),
        ({"sampler": partial(RandomSampler, foo=1), "trials": 1}, r"sampler: .*unexpected keyword argument 'foo'"),  # type: ignore[call-arg]
        ({"pool": partial(local.Pool, foo=1)}, r"pool: .*unexpected keyword argument 'foo'"),  # type: ignore[call-arg]
    ],
)
def test_settings_that_cannot_be_are_one_error(make: Make, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=rf"^hydra\.sweeper\.{message}"):
        make("x=1,2", "y=1", **settings)


def test_one_controller_at_a_time(make: Make) -> None:
    first = make("x=1,2")
    with pytest.raises(ValueError, match="another process is at work on the sweep in"):
        make("x=1,2")
    first.run()
    assert make("x=1,2").done == 2


def test_seeds_are_averaged(make: Make, ran: Ran) -> None:
    sweep = make("x=2,3", seeds=[0, 2])
    sweep.run()
    assert sorted(ran()) == ["x=2 seed=0", "x=2 seed=2", "x=3 seed=0", "x=3 seed=2"]
    assert sorted(trial.values[0] for trial in sweep.study.trials) == [1.0, 2.0]


def test_the_front_keeps_the_limits(make: Make) -> None:
    sweep = make("x=1", "y=1,2,4", limits={"disk_mb": 3})
    assert {trial.params["y"] for trial in sweep.run()} == {"1", "2"}
    assert make("x=1", "y=1,2,4", limits={"disk_mb": 3}).front() == sweep.front()


@pytest.mark.parametrize("sampler", ["RandomSampler", "TPESampler", "NSGAIISampler", "NSGAIIISampler", "QMCSampler"])
def test_a_sampler_proposes_and_is_told(make: Make, sampler: str) -> None:
    made = getattr(optuna.samplers, sampler)
    settings = {"sampler": lambda **more: made(seed=0, **more), "trials": 7, "limits": {"disk_mb": 5}}
    sweep = make("x=interval(0.0,9.0)", "y=interval(1,8)", **settings)
    sweep.run()
    assert sweep.done == 7
    xs = [trial.params["x"] for trial in sweep.study.trials]
    assert len(set(xs)) == 7 and all(0 <= x <= 9 for x in xs)
    assert make("x=interval(0.0,9.0)", "y=interval(1,8)", **{**settings, "trials": 9}).run()


def test_a_seed_is_not_swept_and_set(make: Make) -> None:
    with pytest.raises(ValueError, match=r"seed is swept and hydra\.sweeper\.seeds sets it"):
        make("seed=1,2", "x=1", seeds=[0])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"workers": 0}, r"hydra\.sweeper\.workers must be >= 1, got 0"),
        ({"trials": 0}, r"hydra\.sweeper\.trials must be >= 1"),
        ({"seeds": [1, 1]}, r"seeds must be distinct"),
        ({"objectives": {}}, "a sweep needs an objective"),
        ({"objectives": None}, r"hydra\.sweeper\.objectives must be metrics with min or max each"),
        ({"limits": None}, r"hydra\.sweeper\.limits must be metrics with a number each"),
        ({"limits": {"cer": float("inf")}}, r"hydra\.sweeper\.limits must be finite"),
        ({"threads": 0}, r"hydra\.sweeper\.threads must be >= 1, got 0"),
        ({"trials": True}, r"hydra\.sweeper\.trials must be a whole number, got True"),
        ({"max_failures": -1}, r"hydra\.sweeper\.max_failures must be >= 0"),
        ({"trial_timeout": 0}, r"hydra\.sweeper\.trial_timeout must be seconds > 0"),
        ({"pool": partial(local.Pool, nodes=1)}, r"hydra\.sweeper\.pool: .*unexpected keyword argument 'nodes'"),  # type: ignore[call-arg]
        ({"objectives": {"cer": "down"}}, "an objective must be min or max"),
        ({"sampler": optuna.samplers.RandomSampler}, r"say how many by hydra\.sweeper\.trials=N"),
    ],
)
def test_wrong_settings_are_refused(make: Make, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make("x=1,2", **settings)
