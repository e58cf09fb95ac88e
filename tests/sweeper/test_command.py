"""``hydra/sweeper=pareto`` as it is typed."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from optuna.samplers import BaseSampler

from slimexp.config.command_line import main
from slimexp.config.composition import CONF_DIR, compose
from slimexp.host import console
from slimexp.record import record
from slimexp.sweeper.command import _end_where_all_failed, sweep
from slimexp.sweeper.sweep import Sweep
from slimexp.train import train

ROOT = Path(__file__).parents[2]


@pytest.fixture
def base(tiny_folder: Callable[..., Path], table: Path, tmp_path: Path) -> list[str]:
    """Overrides of one-shot pruning of a tiny model."""
    return [
        "pipeline=prune", "pipeline.prune.steps=0", "model=pretrained", f"model.path={tiny_folder('seq2seq')}",
        "model.max_length=16", "data=files", f"data.path={table}", "data.task=seq2seq", "logger=none", "trainer=fast",
        f"runs={tmp_path / 'runs'}",
    ]  # fmt: skip


@pytest.fixture
def command(base: list[str]) -> Callable[..., tuple[int, str, str]]:
    """Overrides -> status, stdout and stderr of a sweep over them."""

    def call(*overrides: str) -> tuple[int, str, str]:
        line = [sys.executable, "-m", "slimexp.train", "-m", "hydra/sweeper=pareto", *base, *overrides]
        done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True)
        return done.returncode, done.stdout, done.stderr

    return call


@pytest.fixture
def typed(
    base: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """As ``command``, in this process: for what starts no trial, where a process would spend its time on imports."""
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")  # main sets it; so it is put back

    def call(*overrides: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["slimexp.train", "-m", "hydra/sweeper=pareto", *base, *overrides])
        capfd.readouterr()
        status = 0
        try:
            main(train)
        except SystemExit as end:
            status = int(end.code or 0)
        return status, *capfd.readouterr()

    return call


def test_a_sweep_leaves_records_and_a_front_and_goes_on(
    command: Callable[..., tuple[int, str, str]], typed: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    line = ["pipeline.prune.sparsity=0.2,0.5,0.8", "hydra.sweeper.objectives={params_nonzero: min}"]
    status, out, err = command(*line, "hydra.sweeper.workers=1")
    assert status == 0, err
    assert "[3/3]" in out and "front of params_nonzero after 3 trials" in out
    rows = record.read(tmp_path / "runs")
    assert sorted(row.stage for row in rows) == ["dense", "prune", "prune", "prune"]
    status, out, _ = typed(*line)
    assert status == 0 and "3 of 3 trials are finished" in out and len(record.read(tmp_path / "runs")) == 4
    assert typed(*line, "hydra.sweeper.workers=2", "trainer.log_every_n_steps=5")[0] == 0  # of which no figure depends
    status, _, err = typed(*line, "measure.task.limit=1")
    assert status == 2 and "holds another sweep (measure.task.limit was auto and is 1)" in err
    status, _, err = typed(*line, "resume=false")
    assert status == 2 and "resume=false does everything anew, and 3 trials are finished" in err


@pytest.mark.slow
def test_a_rule_stops_trials_but_not_what_is_promoted(
    command: Callable[..., tuple[int, str, str]], typed: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    rule = [
        "+stopper@callback.stopper=median", "callback.stopper.rungs=[0.5]", "callback.stopper.least=1",
        "callback.stopper.rows=2", "pipeline.prune.steps=2", "hydra.sweeper.objectives={params_nonzero: min}",
        "hydra.sweeper.workers=1",
    ]  # fmt: skip
    folder = tmp_path / "runs/run/rungs/prune-at-0.5"
    folder.mkdir(parents=True)
    (folder / "prune-other.json").write_text('{"among": "0.5", "loss": -1}')  # better than anything can be
    among = "callback.stopper.among=${pipeline.prune.sparsity}"
    earnest = ["hydra.sweeper.promote.most=1", 'hydra.sweeper.promote.overrides=["pipeline.prune.steps=4"]']
    status, out, err = command("pipeline.prune.sparsity=0.2,0.5", among, *rule, *earnest)
    assert status == 0, err
    assert "stopped  prune.sparsity=0.5: prune was stopped at 50% of its steps" in out
    assert "after 2 trials, 1 of them were stopped" in out
    assert "promoted (pipeline.prune.steps=4 ~callback.stopper)" in out
    assert len(list(folder.glob("*.json"))) == 3  # two trials and the other; what is promoted leaves none
    status, _, err = typed("pipeline.prune.sparsity=0.2,0.6", *rule, "hydra.sweeper.seeds=[0,1]", "name=b")
    assert status == 2 and "seeds must be empty where a rule stops trials" in err


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["pipeline.prune.sparsty=0.2,0.5"], "sparsty"),
        (
            ["pipeline.prune.sparsity=0.2,much"],
            "pipeline.prune.sparsity must be a number, got 'much'",
        ),
        (["pipeline.prune.sparsity=0.2"], "nothing is swept"),
        (
            ["pipeline.prune.sparsity=0.2,0.5", "keep_training_state=false"],
            "keep_training_state must be true in a sweep",
        ),
        (["pipeline.prune.sparsity=0.2,0.5", "hydra.sweeper.objectives={speed: max}"], "no measure of this run gives"),
        (
            ["pipeline.prune.sparsity=0.2,0.5", "hydra.sweeper.objectives={perplexity: min}"],
            "no measure of this run gives 'perplexity': choose among",
        ),
        (["pipeline.prune.sparsity=interval(0.9,0.2)"], "needs an interval with low < high"),
        (["pipeline.prune.sparsity=0.2,0.5", "measure.task.split=tst"], "measure.task: split must be one of"),
        (["pipeline.prune.sparsity=0.2,0.5", "hydra.sweeper.storag=x"], "did you mean 'hydra.sweeper.storage'?"),
        (
            ["pipeline.prune.sparsity=0.2,0.5", "hydra.sweeper.objectives={latency_ratio: min}"],
            "latency does, add it by 'measure=[size,task,latency]'",
        ),
        (
            [
                "pipeline.prune.sparsity=0.2,0.5",
                "hydra.sweeper.promote.most=1",
                'hydra.sweeper.promote.overrides=["measure.task.splitt=test"]',
            ],
            "did you mean 'measure.task.split'?",
        ),
    ],
)
def test_wrong_sweeps_are_one_error_before_the_first_trial(
    typed: Callable[..., tuple[int, str, str]], overrides: list[str], message: str, tmp_path: Path
) -> None:
    status, _, err = typed(*overrides)
    assert status == 2 and message in err and "Traceback" not in err
    assert not (tmp_path / "runs" / "run").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"workers": "two"}, r"workers must be a whole number, got 'two'"),
        ({"threads": True}, r"threads must be a whole number, got True"),
        ({"limits": {"disk_mb": "big"}}, r"limits must be metrics with a number each"),
        ({"objectives": ["cer"]}, r"objectives must be metrics with min or max each"),
        ({"seeds": 3}, r"seeds must be a list of whole numbers, got 3"),
        ({"seeds": [True]}, r"seeds must be a list of whole numbers"),
        ({"storage": 5}, r"storage must be the URL of a database, or null, got a value of type int"),
        ({"fail_fast": "maybe"}, r"fail_fast must be true or false, got 'maybe'"),
        ({"workers": None}, r"workers must be a whole number, got None"),
        ({"promote": {"most": 1}}, r"promote must hold most, overrides and seeds"),
        ({"promote": {"most": True, "overrides": [], "seeds": []}}, r"promote\.most must be a whole number, got True"),
        ({"promote": {"most": 1, "overrides": "a=1", "seeds": []}}, r"promote\.overrides must be a list of overrides"),
        ({"promote": {"most": 1, "overrides": [], "seeds": None}}, r"promote\.seeds must be a list of whole numbers"),
    ],
)
def test_settings_of_another_kind_are_refused(settings: dict[str, Any], message: str) -> None:
    shipped: Any = OmegaConf.to_container(OmegaConf.load(CONF_DIR / "hydra/sweeper/pareto.yaml"))
    assert isinstance(shipped, dict)
    del shipped["defaults"], shipped["_target_"]
    with pytest.raises(ValueError, match=rf"hydra\.sweeper\.{message}"):
        sweep(["seed=1,2"], lambda overrides: OmegaConf.create(), {**shipped, **settings})  # type: ignore[misc]


def test_a_setting_that_is_none_is_named() -> None:
    shipped: Any = OmegaConf.to_container(OmegaConf.load(CONF_DIR / "hydra/sweeper/pareto.yaml"))
    assert isinstance(shipped, dict)
    settings = {name: value for name, value in shipped.items() if name not in ("defaults", "_target_")}
    with pytest.raises(
        ValueError, match=r"unknown key 'hydra\.sweeper\.worker'; did you mean 'hydra\.sweeper\.workers'"
    ):
        sweep(["seed=1,2"], lambda overrides: OmegaConf.create(), {**settings, "worker": 3})  # type: ignore[misc]


ENDED = {signal.SIGTERM: (143, "terminated"), signal.SIGINT: (130, "interrupted")}
STOPPED = """
import os, signal, time
from slimexp import train
from slimexp.sweeper import command
def run(sweep):
    os.kill(os.getpid(), {number})
    time.sleep(60)
command.Sweep.run = run
train.main(train.train)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_signal_ends_a_command_by_one_line(base: list[str], number: int) -> None:
    typed = ["-m", "hydra/sweeper=pareto", *base, "pipeline.prune.sparsity=0.2,0.5"]
    program = [sys.executable, "-c", STOPPED.format(number=int(number)), *typed]
    done = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, timeout=60)
    status, word = ENDED[signal.Signals(number)]
    assert done.returncode == status
    assert done.stderr == f"{word}: what is finished is kept, the same command goes on from there\n"


@pytest.mark.parametrize("number", ENDED)
def test_a_signal_ends_a_sweep_that_another_program_began_likewise(
    base: list[str], number: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(one: Sweep) -> None:
        os.kill(os.getpid(), number)
        time.sleep(5)

    monkeypatch.setattr(Sweep, "run", run)
    shipped = dict(OmegaConf.load(CONF_DIR / "hydra/sweeper/pareto.yaml"))
    settings = {name: value for name, value in shipped.items() if name not in ("defaults", "_target_")}
    handlers = {signum: signal.getsignal(signum) for signum in ENDED}
    try:
        with pytest.raises(SystemExit) as exit_info:
            sweep([*base, "pipeline.prune.sparsity=0.2,0.5"], compose, {**settings, "sampler": None})
    finally:  # a program that is about to end keeps its own
        for signum, handler in handlers.items():
            signal.signal(signum, handler)
    status, word = ENDED[signal.Signals(number)]
    assert exit_info.value.code == status
    assert capsys.readouterr().err == f"{word}: {console.GOES_ON}\n"


@pytest.mark.parametrize(("values", "status"), [("wrong,nan", 1), ("wrong,3", None), ("hopeless,wrong", None)])
def test_the_exit_status_tells_of_a_sweep_that_only_failed(make: Any, values: str, status: int | None) -> None:
    one = make(f"x={values}", workers=1)
    one.run()
    try:
        _end_where_all_failed(one)
        ended = None
    except SystemExit as end:
        ended = end.code
    assert ended == status


@pytest.mark.parametrize("name", sorted(path.stem for path in (CONF_DIR / "hydra/sweeper/sampler").glob("*.yaml")))
def test_every_sampler_is_one_of_optunas(name: str) -> None:
    from hydra.utils import instantiate

    sampler = instantiate(OmegaConf.load(CONF_DIR / "hydra/sweeper/sampler" / f"{name}.yaml"))()
    assert isinstance(sampler, BaseSampler)
