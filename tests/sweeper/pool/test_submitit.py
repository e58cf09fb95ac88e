"""A job of its own for every trial: here as processes of this machine, and as what Slurm would be handed."""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from slimexp.sweeper.pool.submitit import Pool
from slimexp.sweeper.sweep import Sweep
from slimexp.sweeper.worker import Job

Make = Callable[..., Sweep]


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Pool]:
    """What makes a pool of processes."""
    pytest.importorskip("submitit", reason="pip install slimexp[submitit]")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    return partial(Pool, cluster="local", parameters={"timeout_min": 1})


def test_the_same_front_as_in_process_and_what_dies_is_an_outcome(
    make: Make, jobs: Callable[..., Pool], tmp_path: Path
) -> None:
    command = ("x=1,2,killed,wrong", "y=1")
    here, there = make(*command), make(*command, folder=tmp_path / "there", pool=jobs)
    fronts = [[(trial.values, trial.params) for trial in one.run()] for one in (here, there)]
    assert fronts[0] == fronts[1] and fronts[0]
    errors = {trial.params["x"]: trial.user_attrs["outcome"]["error"] for trial in there.study.trials}
    assert errors["wrong"] == "ValueError: x is wrong" and errors["1"] is None
    assert errors["killed"].startswith("the job is gone (")
    assert sorted(path.name for path in (tmp_path / "there").glob("*.log")) == [f"trial-000{n}.log" for n in range(4)]


SLURM = {
    "sbatch": 'cp "$1" {seen}\necho Submitted batch job 7',
    "srun": "",
    "sacct": "echo 'JobID|State'\necho '7|RUNNING'",
    "scancel": 'echo "$@" > {cancelled}',
}


@pytest.fixture
def slurm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Slurm's commands, which do nothing; where the batch file that they were handed is copied to."""
    pytest.importorskip("submitit", reason="pip install slimexp[submitit]")
    folder = tmp_path / "bin"
    folder.mkdir()
    seen = tmp_path / "seen.sh"
    for name, body in SLURM.items():
        (folder / name).write_text("#!/bin/sh\n" + body.format(seen=seen, cancelled=tmp_path / "cancelled") + "\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return seen


def test_what_slurm_is_handed(fake: Any, slurm: Path, tmp_path: Path) -> None:
    parameters = {"timeout_min": 90, "mem_gb": 8, "gpus_per_node": 1, "slurm_partition": "small", "slurm_account": None}
    pool = Pool(workers=1, threads=4, prepare=fake.prepare, cluster="slurm", parameters=parameters)
    with pytest.raises(RuntimeError, match="the controller"), pool:
        pool.submit(Job(0, (("x=1",),), tmp_path / "sweep" / "trial-0000.log"))
        assert pool.busy == 1 and pool.free == 0
        raise RuntimeError("the controller is interrupted")
    lines = slurm.read_text().splitlines()
    for option in ("time=90", "mem=8GB", "gpus-per-node=1", "partition=small", "cpus-per-task=4", "job-name=slimexp"):
        assert f"#SBATCH --{option}" in lines
    assert not [line for line in lines if "account" in line]
    assert "submitit.core._submit" in lines[-1] and str(tmp_path / "sweep" / "submitit") in lines[-1]
    assert (tmp_path / "cancelled").read_text() == "7\n"


def test_a_parameter_that_slurm_does_not_have(make: Make, slurm: Path) -> None:
    pool = partial(Pool, cluster="slurm", parameters={"slurm_partiton": "small"})
    with pytest.raises(ValueError, match=r"hydra\.sweeper\.pool: .*Unknown argument 'partiton'"):
        make("x=1,2", pool=pool).run()


def test_no_slurm_here(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("submitit", reason="pip install slimexp[submitit]")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ValueError, match=r'hydra\.sweeper\.pool: .*Could not detect "srun"'):
        make("x=1,2", pool=partial(Pool, cluster="slurm", parameters={})).run()
