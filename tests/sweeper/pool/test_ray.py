"""The same sweep on a Ray cluster of two workers as in this process' own, and what dies there is an outcome."""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from slimexp.sweeper.pool.ray import Pool
from slimexp.sweeper.sweep import Sweep
from slimexp.sweeper.worker import Job

Make = Callable[..., Sweep]

pytestmark = pytest.mark.slow


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Pool]:
    """What makes a pool on a cluster of its own."""
    pytest.importorskip("ray", reason="pip install slimexp[ray]")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    return partial(Pool, address="local", gpus=0)


def test_the_same_trials_and_the_same_front_as_in_process(
    make: Make, cluster: Callable[..., Pool], tmp_path: Path
) -> None:
    command = ("x=1,2,3,4,killed,wrong", "y=1,2")
    here, there = make(*command), make(*command, folder=tmp_path / "there", pool=cluster)
    fronts = [sorted((tuple(trial.values), *trial.params.items()) for trial in one.run()) for one in (here, there)]
    assert fronts[0] == fronts[1] and fronts[0]
    outcomes = [
        {tuple(trial.params.items()): trial.user_attrs["outcome"]["metrics"] for trial in one.study.trials}
        for one in (here, there)
    ]
    assert outcomes[0] == outcomes[1] and len(outcomes[0]) == 12
    assert here.failures == there.failures == 4
    logs = sorted((tmp_path / "there").glob("*.log"))
    assert len(logs) == 12 and all("at work on" in log.read_text() for log in logs)


def test_what_dies_is_an_outcome(fake: Any, cluster: Callable[..., Pool], tmp_path: Path) -> None:
    jobs = [
        Job(number, ((f"x={x}",),), tmp_path / f"{number}.log") for number, x in enumerate(["killed", "wrong", "3"])
    ]
    found = {}
    with cluster(workers=1, threads=1, prepare=fake.prepare) as pool:
        while jobs or pool.busy:
            while jobs and pool.free:
                pool.submit(jobs.pop(0))
            found |= {job.number: outcome for job, outcome in pool.finished()}
    assert found[0].error and found[0].error.startswith("the Ray worker is gone (out of memory?): ")
    assert found[1].error == "ValueError: x is wrong" and found[2].metrics == ({"cer": 1.0, "disk_mb": 1.0},)


def test_no_cluster_is_one_error(make: Make, cluster: Callable[..., Pool]) -> None:
    with pytest.raises(ValueError, match=r"pool\.address: no Ray cluster answers at '127\.0\.0\.1:1'"):
        make("x=1,2", pool=partial(cluster, address="127.0.0.1:1")).run()
    with pytest.raises(ValueError, match=r"pool\.gpus asks for 64 per worker, this machine has"):
        make("x=1,2", pool=partial(cluster, gpus=64)).run()
