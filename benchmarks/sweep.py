"""What does the controller of a sweep cost, and does a sweep survive everything?

    python -m benchmarks.sweep cost --trials 10000
    python -m benchmarks.sweep chaos --trials 1000 --workers 8

``cost``: a grid of fake trials that take no time, on one worker; milliseconds per trial of the controller with its
journal (asking, writing down, telling, handing over), at the start of the sweep and at its end. Target: 20 ms, flat.

``chaos``: fake trials of 20 ms on several workers, while workers and the controller are killed (``kill -9``) at random;
the same command goes on until nothing is missing. Target: none lost, none counted twice, no error of a lock.

Exit status 1 over a target.
"""

import argparse
import itertools
import multiprocessing
import os
import random
import signal
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

TARGET_MS = 20.0
PART = 10  # of the sweep, at its start and at its end


def prepare(threads: int) -> Any:
    """A fake worker: as quick as it is told."""

    def run(overrides: tuple[str, ...]) -> dict[str, float]:
        given = dict(line.split("=", 1) for line in overrides)
        time.sleep(float(given["sleep"]))
        return {"cer": float(given["x"]) % 7, "disk_mb": float(given["y"]) % 11}

    return run


def make(folder: Path, trials: int, workers: int, sleep: float) -> Any:
    """A sweep of fake trials."""
    from slimexp.sweeper.pareto import Sweep
    from slimexp.sweeper.space import Space

    space = Space.parse([f"sleep={sleep}", "x=range(0,100)", f"y=range(0,{trials // 100})"])
    return Sweep(
        space=space, objectives={"cer": "min", "disk_mb": "min"}, limits={}, sampler=None, trials=None, seeds=[],
        folder=folder, storage=None, workers=workers, threads=1, fail_fast=False, max_failures=None, prepare=prepare,
    )  # fmt: skip


def cost(arguments: argparse.Namespace) -> bool:
    """Milliseconds per trial; whether they keep the target at both ends."""
    sweep = make(arguments.folder, arguments.trials, 1, 0.0)
    ends = []
    finish = sweep._finish

    def timed(*given: Any) -> str:
        said: str = finish(*given)
        ends.append(time.perf_counter())
        return said

    sweep._finish = timed
    began = time.perf_counter()
    sweep.run()
    part = max(2, len(ends) // PART)
    gaps = [1e3 * (b - a) for a, b in itertools.pairwise(ends)]
    first, last = statistics.median(gaps[:part]), statistics.median(gaps[-part:])
    journal = sum(path.stat().st_size for path in arguments.folder.glob("journal*")) / 1e6
    print(
        f"\n{arguments.trials} trials in {time.perf_counter() - began:.0f} s; {os.cpu_count()} cores; "
        f"journal {journal:.1f} MB\n\n"
        f"| median ms per trial | first tenth | last tenth | target |\n| --- | ---: | ---: | ---: |\n"
        f"| controller, journal and hand-over | {first:.1f} | {last:.1f} | {TARGET_MS:.0f} |"
    )
    return max(first, last) <= TARGET_MS


def _controller(folder: Path, trials: int, workers: int) -> None:
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (for the life of the process)
    make(folder, trials, workers, 0.02).run()


def chaos(arguments: argparse.Namespace) -> bool:
    """Kill until it is done; whether every trial is there once."""
    import psutil

    chance = random.Random(arguments.seed)
    context = multiprocessing.get_context("spawn")
    kills = {"worker": 0, "controller": 0}
    restarts = 0
    while True:
        controller = context.Process(target=_controller, args=(arguments.folder, arguments.trials, arguments.workers))
        controller.start()
        while controller.is_alive():
            controller.join(chance.uniform(0.7, 2.5))
            if not controller.is_alive():
                break
            children = psutil.Process(controller.pid).children(recursive=True)
            if chance.random() < 0.25:
                victim, what = controller.pid, "controller"
            elif children:
                victim, what = chance.choice(children).pid, "worker"
            else:
                continue
            os.kill(int(victim or 0), signal.SIGKILL)
            kills[what] += 1
        if controller.exitcode == 0:
            break
        if controller.exitcode != -signal.SIGKILL:
            print(f"the controller ended with status {controller.exitcode}")
            return False
        restarts += 1
    sweep = make(arguments.folder, arguments.trials, arguments.workers, 0.02)
    finished = [trial for trial in sweep.study.trials if "outcome" in trial.user_attrs]
    combinations = {tuple(trial.params.items()) for trial in finished}
    lost, twice = arguments.trials - len(combinations), len(finished) - len(combinations)
    print(
        f"\n{arguments.trials} trials, {arguments.workers} workers; killed: {kills['worker']} workers and "
        f"{kills['controller']} controllers; {restarts} restarts: {lost} lost, {twice} counted twice, "
        f"{sweep.failures} recorded as failed"
    )
    return lost == twice == 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["cost", "chaos"])
    parser.add_argument("--trials", type=int, default=1000, help="a multiple of 100")
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        arguments.folder = Path(folder) / "sweep"
        if not {"cost": cost, "chaos": chaos}[arguments.what](arguments):
            sys.exit("over the target")


if __name__ == "__main__":
    main()
