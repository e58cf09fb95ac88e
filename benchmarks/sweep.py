"""What does the controller of a sweep cost, and does a sweep survive everything?

    python -m benchmarks.sweep cost --trials 10000
    python -m benchmarks.sweep chaos --trials 1000 --workers 8
    python -m benchmarks.sweep idle --trials 200 --workers 8 --pool local
    python -m benchmarks.sweep idle --trials 24 --seconds 30 30
    python -m benchmarks.sweep ray

``cost``: a grid of fake trials that take no time, on one worker; milliseconds per trial of the controller with its
journal (asking, writing down, telling, handing over), at the start of the sweep and at its end. ``--storage`` takes the
URL of a database instead of the journal file. Target: 20 ms, flat.

``chaos``: fake trials of 20 ms on several workers, while workers and the controller are killed (``kill -9``) at random;
the same command goes on until nothing is missing. Before every second restart the journal is damaged too: a torn tail,
lines that are cut, glued, doubled, exchanged or overwritten. Target: none lost, none counted twice, no error of a lock,
no worker that outlives its controller.

``idle``: fake trials that sleep between ``--seconds`` LOW HIGH, on ``--workers`` of a ``--pool`` (local, ray, or
submitit for processes started one per trial). The share of their time that workers wait while there are trials left,
and the seconds from a trial's last line of user code to the first of the one that takes its slot. Targets: 3 %, 0.5 s.
What remains is the overhead of a trial: those seconds over its length. Target for trials of 30 s: 1 %; the start of the
workers, paid once each, is told beside it.

``ray``: the same sweep of real trials (pruning x bits of the shipped T5, two steps of distillation, graded on 20 rows)
by two local workers and by two on a Ray cluster of this machine. Target: the same trials with the same figures, and the
same front.

Exit status 1 over a target.
"""

import argparse
import itertools
import json
import math
import multiprocessing
import os
import random
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

TARGET_MS = 20.0
TARGET_IDLE = 0.03
TARGET_REFILL_S = 0.5
TARGET_OVERHEAD = 0.01
LONG_S = 30.0  # a trial that the overhead is told for
PART = 10  # of the sweep, at its start and at its end
REAL = ["+experiment=front_t5", "pipeline.distill.steps=2", "measure.task.limit=20", "logger=none", "trainer=fast"]


def prepare(threads: int) -> Any:
    """A fake worker: as quick as it is told."""

    def run(overrides: tuple[str, ...]) -> dict[str, float]:
        given = dict(line.split("=", 1) for line in overrides)
        time.sleep(float(given["sleep"]))
        return {"cer": float(given["x"]) % 7, "disk_mb": float(given["y"]) % 11}

    return run


def prepare_unequal(threads: int) -> Any:
    """A fake worker whose trials are of unequal length, and tell when they began and ended."""

    def run(overrides: tuple[str, ...]) -> dict[str, float]:
        given = dict(line.split("=", 1) for line in overrides)
        began = time.monotonic()  # one clock for all processes of a machine
        time.sleep(random.Random(int(given["x"])).uniform(float(given["low"]), float(given["high"])))
        return {"cer": 0.0, "disk_mb": 0.0, "began": began, "ended": time.monotonic()}

    return run


def make(folder: Path, lines: Sequence[str], workers: int, **chosen: Any) -> Any:
    """A sweep over every combination of the swept lines."""
    from slimexp.sweeper.settings import Settings
    from slimexp.sweeper.space import Space
    from slimexp.sweeper.sweep import Sweep

    worker = chosen.pop("prepare", prepare)
    settings: dict[str, Any] = {
        "objectives": {"cer": "min", "disk_mb": "min"}, "limits": {}, "sampler": None, "trials": None, "seeds": [],
        "storage": None, "fail_fast": False, "max_failures": None, "workers": workers, "threads": 1,
    }  # fmt: skip
    settings |= chosen
    return Sweep(space=Space.parse(lines), folder=folder, settings=Settings(**settings), prepare=worker)


def fake(trials: int, sleep: float) -> list[str]:
    """The lines of a sweep of fake trials."""
    return [f"sleep={sleep}", "x=range(0,100)", f"y=range(0,{trials // 100})"]


def pool(name: str) -> Any:
    """What makes the workers of conf/hydra/sweeper/pool, without a cluster."""
    from hydra.utils import get_class
    from omegaconf import OmegaConf

    from slimexp.config.composition import CONF_DIR

    node: Any = OmegaConf.load(CONF_DIR / "hydra/sweeper/pool" / f"{name}.yaml")
    target, _ = node.pop("_target_"), node.pop("_partial_")
    settings = {**node, **({"cluster": "local"} if name == "submitit" else {})}
    return partial(get_class(target), **settings)


def cost(arguments: argparse.Namespace) -> bool:
    """Milliseconds per trial; whether they keep the target at both ends."""
    sweep = make(arguments.folder, fake(arguments.trials, 0.0), 1, storage=arguments.storage)
    ends = []
    finish = sweep._finish

    def timed(*given: Any) -> str:
        result: str = finish(*given)
        ends.append(time.perf_counter())
        return result

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
    make(folder, fake(trials, 0.02), workers).run()


def damage(journal: Path, chance: random.Random) -> None:
    """What a full disk or a power cut may make of a journal: a few of its lines, anywhere in it."""
    lines = journal.read_bytes().splitlines(keepends=True)
    for _ in range(chance.randint(1, 5)):
        place = chance.randrange(len(lines) - 1)
        line, cut = lines[place], chance.randrange(len(lines[place]))
        other = chance.randrange(len(lines))
        lines[place : place + 2] = chance.choice(
            [
                [line[:cut] + b"\n", lines[place + 1]],
                [line[:cut] + lines[place + 1]],
                [line.rstrip() + lines[place + 1]],
                [line, line, lines[place + 1]],
                [lines[place + 1], line],
                [b"\0" * len(line) + b"\n", lines[place + 1]],
                [line, lines[other], lines[place + 1]],
            ]
        )
    lines[-1] = lines[-1][: chance.randrange(1, len(lines[-1]) + 1)]
    journal.write_bytes(b"".join(lines))


def chaos(arguments: argparse.Namespace) -> bool:
    """Kill until it is done; whether every trial is there once."""
    import psutil

    chance = random.Random(arguments.seed)
    context = multiprocessing.get_context("spawn")
    kills = {"worker": 0, "controller": 0}
    restarts = damages = 0
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
            if what == "controller":
                controller.join()
                _, outliving = psutil.wait_procs(children, timeout=10)
                if outliving:
                    print(f"{len(outliving)} workers outlived their controller")
                    return False
        if controller.exitcode == 0:
            break
        if controller.exitcode != -signal.SIGKILL:
            print(f"the controller ended with status {controller.exitcode}")
            return False
        restarts += 1
        if restarts % 2 == 0 and (journal := arguments.folder / "journal.jsonl").stat().st_size > 1000:
            damage(journal, chance)
            damages += 1
    sweep = make(arguments.folder, fake(arguments.trials, 0.02), arguments.workers)
    finished = [trial for trial in sweep.study.trials if sweep._stored(trial)]
    combinations = {tuple(trial.params.items()) for trial in finished}
    lost, twice = arguments.trials - len(combinations), len(finished) - len(combinations)
    print(
        f"\n{arguments.trials} trials, {arguments.workers} workers; killed: {kills['worker']} workers and "
        f"{kills['controller']} controllers; {restarts} restarts, "
        f"{damages} of them from a damaged journal: {lost} lost, {twice} counted twice, "
        f"{sweep.failures} recorded as failed"
    )
    return lost == twice == 0


class Span(NamedTuple):
    """Of a trial's user code, in seconds of one clock."""

    began: float
    ended: float


def waiting(spans: Sequence[Span], workers: int) -> tuple[float, list[float]]:
    """Share of the workers' time spent waiting while trials are left, and the seconds of every refill.

    The n-th trial to end frees the slot of the n-th to begin after the first ones. Time counts from when all workers
    are there to when the last trial begins: after that a free worker waits for nothing.
    """
    begins, ends = sorted(span.began for span in spans), sorted(span.ended for span in spans)
    refills = [began - ended for began, ended in zip(begins[workers:], ends, strict=False)]
    first, last = begins[workers - 1], begins[-1]
    busy = sum(max(0.0, min(span.ended, last) - max(span.began, first)) for span in spans)
    return 1 - busy / (workers * (last - first)), refills


def idle(arguments: argparse.Namespace) -> bool:
    """Whether workers and slots wait less than the targets."""
    low, high = arguments.seconds
    workers = arguments.workers
    lines = [f"x=range(0,{arguments.trials})", f"low={low}", f"high={high}"]
    chosen = {"prepare": prepare_unequal, "pool": pool(arguments.pool)}
    sweep = make(arguments.folder, lines, workers, **chosen)
    began = time.monotonic()
    sweep.run()
    wall = time.monotonic() - began
    rows = [trial.user_attrs["outcome"]["metrics"] for trial in sweep.study.trials]
    spans = [Span(row["began"], row["ended"]) for row in rows]
    share, refills = waiting(spans, workers)
    median, p95 = statistics.median(refills), statistics.quantiles(refills, n=20)[-1]
    ideal = sum(span.ended - span.began for span in spans) / workers
    start = sorted(span.began for span in spans)[workers - 1] - began
    print(
        f"\n{len(spans)} trials of {low:g} to {high:g} s on {workers} workers ({arguments.pool}) in {wall:.1f} s; "
        f"{os.cpu_count()} cores; all workers at work after {start:.1f} s\n\n"
        f"| | figure | target |\n| --- | ---: | ---: |\n"
        f"| idle while trials are left | {share:.2%} | {TARGET_IDLE:.0%} |\n"
        f"| end of a trial to user code of the next, median | {median:.3f} s | {TARGET_REFILL_S} s |\n"
        f"| the same, 95th percentile | {p95:.3f} s | {TARGET_REFILL_S} s |\n"
        f"| overhead of a trial of {LONG_S:.0f} s (that median over {LONG_S:.0f} s) | {median / LONG_S:.3%} | "
        f"{TARGET_OVERHEAD:.0%} |\n"
        f"| wall over the trials' own seconds per worker, start and end included | {wall / ideal - 1:.2%} | |"
    )
    return share <= TARGET_IDLE and p95 <= TARGET_REFILL_S and median / LONG_S <= TARGET_OVERHEAD


def ray(arguments: argparse.Namespace) -> bool:
    """Whether a Ray cluster gives what local workers give."""
    from slimexp.sweeper.worker import train

    lines = [*REAL, "pipeline.prune.sparsity=0.2,0.5,0.8", "pipeline.quantize.bits=8,4,3"]
    found = []
    for name in ("local", "ray"):
        folder = arguments.folder.parent / name
        sweep = make(folder / "sweep", [*lines, f"runs={folder}"], 2, prepare=train, pool=pool(name))
        began = time.monotonic()
        front = {_params(trial) for trial in sweep.run()}
        seconds = time.monotonic() - began
        figures = {_params(trial): trial.values for trial in sweep.study.trials}
        found.append((figures, front))
        print(f"\n{name}: {len(figures)} trials, {len(front)} on the front, {sweep.failures} failed, {seconds:.0f} s\n")
    (here, front), (there, other) = found
    same = here.keys() == there.keys() and all(_close(here[key], there[key]) for key in here)
    exactly = f"yes, {'bit for bit' if here == there else 'within 1e-6'}"
    print(f"same trials and figures: {exactly if same else 'NO'}; same front: {'yes' if front == other else 'NO'}")
    return same and front == other


def _params(trial: Any) -> str:
    return json.dumps(trial.params, sort_keys=True)


def _close(a: Sequence[float] | None, b: Sequence[float] | None) -> bool:
    return a is not None and b is not None and all(math.isclose(x, y, rel_tol=1e-6) for x, y in zip(a, b, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["cost", "chaos", "idle", "ray"])
    parser.add_argument("--trials", type=int, default=1000, help="of cost and chaos: a multiple of 100")
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pool", choices=["local", "ray", "submitit"], default="local")
    parser.add_argument("--seconds", type=float, nargs=2, default=[0.2, 2.0], metavar=("LOW", "HIGH"))
    parser.add_argument("--storage", help="URL of a database")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        arguments.folder = Path(folder) / "sweep"
        if not {"cost": cost, "chaos": chaos, "idle": idle, "ray": ray}[arguments.what](arguments):
            sys.exit("over the target")


if __name__ == "__main__":
    main()
