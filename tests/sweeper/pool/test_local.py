import os
from pathlib import Path
from typing import Any

import pytest

from slimexp.sweeper.pool.local import Pool
from slimexp.sweeper.worker import Job, Outcome


def outcomes(pool: Pool, jobs: list[Job]) -> dict[int, Outcome]:
    """Jobs through a pool, by number."""
    left, found = list(jobs), {}
    while left or pool.busy:
        while left and pool.free:
            pool.submit(left.pop(0))
        found |= {job.number: outcome for job, outcome in pool.finished()}
    return found


def job(number: int, folder: Path, *values: str) -> Job:
    return Job(number, tuple((f"x={value}",) for value in values), folder / f"{number}.log")


def test_what_dies_takes_nothing_with_it(fake: Any, tmp_path: Path) -> None:
    values = ["3", "killed", "wrong", "4", "killed", "5"]
    with Pool(workers=2, threads=1, prepare=fake.prepare) as pool:
        found = outcomes(pool, [job(number, tmp_path, value) for number, value in enumerate(values)])
    assert [found[number].metrics for number in (0, 3, 5)] == [({"cer": float(n), "disk_mb": 1.0},) for n in (1, 4, 9)]
    assert found[1].error == found[4].error == "the worker was killed by SIGKILL (out of memory?)"
    assert found[2].error == "ValueError: x is wrong"
    assert "x is wrong" in (tmp_path / "2.log").read_text() and "Traceback" in (tmp_path / "2.log").read_text()
    assert (tmp_path / "0.log").read_text() == "at work on 3\n"


def test_a_worker_that_dies_between_jobs_is_replaced(fake: Any, tmp_path: Path) -> None:
    with Pool(workers=1, threads=1, prepare=fake.prepare) as pool:
        outcomes(pool, [job(0, tmp_path, "3")])
        (idle,) = pool._idle
        idle.process.kill()
        idle.process.join()
        found = outcomes(pool, [job(1, tmp_path, "4")])
    assert found[1].error is None


def test_a_slow_job_holds_no_other(fake: Any, tmp_path: Path) -> None:
    order = []
    with Pool(workers=2, threads=1, prepare=fake.prepare) as pool:
        pool.submit(job(0, tmp_path, "slow"))
        left = [job(number, tmp_path, "3") for number in range(1, 6)]
        while left or pool.busy:
            while left and pool.free:
                pool.submit(left.pop(0))
            order += [done.number for done, _ in pool.finished()]
    assert order.index(0) > 0 and sorted(order) == list(range(6))


def test_seeds_of_a_job_run_one_after_the_other(fake: Any, tmp_path: Path) -> None:
    with Pool(workers=1, threads=1, prepare=fake.prepare) as pool:
        found = outcomes(pool, [job(0, tmp_path, "3", "4")])
    assert [row["cer"] for row in found[0].metrics] == [1.0, 4.0]


def test_an_error_here_ends_the_workers(fake: Any, tmp_path: Path) -> None:
    pool = Pool(workers=1, threads=1, prepare=fake.prepare)
    with pytest.raises(RuntimeError), pool:
        pool.submit(job(0, tmp_path, "slow"))
        worker = pool._busy[0].process
        raise RuntimeError
    assert not worker.is_alive()


def visible(threads: int) -> Any:
    """Prepare a worker whose trials report the GPU that they see."""
    return lambda overrides: {"gpu": float(os.environ["CUDA_VISIBLE_DEVICES"])}


def test_workers_get_gpus_in_turn_and_share_what_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    with Pool(workers=3, threads=1, prepare=visible) as pool:
        for number in range(3):
            pool.submit(job(number, tmp_path, "1"))
        assert [worker.gpus for worker in pool._busy] == [("4",), ("6",), ("4",)]
        found: dict[int, Outcome] = {}
        while pool.busy:
            found |= {done.number: outcome for done, outcome in pool.finished()}
    assert [found[number].metrics[0]["gpu"] for number in range(3)] == [4.0, 6.0, 4.0]


@pytest.mark.parametrize(("gpus", "message"), [(3, "this machine has 2"), (0, ">= 1"), (True, ">= 1"), ("all", ">= 1")])
def test_gpus_that_no_worker_can_have(gpus: Any, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    with pytest.raises(ValueError, match=message):
        Pool(workers=3, threads=1, prepare=visible, gpus=gpus)
