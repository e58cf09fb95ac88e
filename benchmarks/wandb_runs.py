"""Do all W&B runs arrive that are written side by side without a network?

    python -m benchmarks.wandb_runs --runs 200 --at-once 8

Every run is what a trial of the chain leaves in W&B: the whole configuration, curves of its three stages, their metrics
in the summary, references to their models. All go through the tracker of a real run, in several processes at once, into
one folder. Then their transaction logs, which `wandb sync` would upload, are read back and held against the records:
every configuration and every value of every summary must be there. Exit status 1 if one is not.
"""

import argparse
import multiprocessing
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

STAGES = ("prune", "quantize", "distill")
STEPS = 20  # of a curve
METRICS = 12  # of a stage


def trial(number: int, runs: Path) -> float:
    """One run and its records; seconds it took."""
    from omegaconf import OmegaConf

    from slimexp.config.build import build
    from slimexp.config.composition import compose
    from slimexp.logger.base import Tracker
    from slimexp.record import record

    began = time.perf_counter()
    chance = random.Random(number)
    cfg = compose(
        ["+experiment=chain_t5", f"seed={number}", f"runs={runs}", "logger.mode=offline", "logger.group=many"]
    )
    config: Any = OmegaConf.to_container(cfg, resolve=True)
    tracker: Tracker = build(cfg.logger)
    tracker.start(name=cfg.name, config=config)
    for stage in STAGES:
        metrics = {f"metric_{index}": chance.uniform(-1, 1) * 10 ** chance.randint(-9, 9) for index in range(METRICS)}
        for logger in tracker.loggers(stage, runs / f"{number}-{stage}.jsonl"):
            for step in range(STEPS):
                logger.log_metrics({"loss": chance.random(), "lr": 1e-3}, step)
        folder = runs / f"{stage}-{number}"
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(bytes(1000))
        tracker.summary(stage, metrics)
        tracker.artifact(stage, folder)
        row = record.Record(
            time=datetime.now(UTC).isoformat(), name=cfg.name, stage=stage, key=f"{number}-{stage}", parent=None,
            technique=stage.title(), seed=number, overrides=[], config=config, git=None, versions={}, hardware={},
            kernel="", headline="metric_0", direction="min", metrics=metrics, directions={}, baseline={},
            baseline_key=None, trivial=1.0, seconds={}, reused=False, artifact=folder.name, curves=None,
        )  # fmt: skip
        record.append(runs / record.FILE, row)
    tracker.finish()
    return time.perf_counter() - began


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--at-once", type=int, default=8)
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    processes = ProcessPoolExecutor(options.at_once, multiprocessing.get_context("spawn"))
    with processes, tempfile.TemporaryDirectory() as folder:
        return write_and_read(options.runs, Path(folder), processes.map)


def write_and_read(runs: int, folder: Path, each: Callable[..., Iterable[float]]) -> int:
    """All runs, then all logs; the exit status.

    Args:
        runs: How many.
        folder: Where.
        each: Calls a function with every number, as ``map`` does.
    """
    from slimexp.logger import wandb_report

    began = time.perf_counter()
    seconds = list(each(partial(trial, runs=folder), range(runs)))
    wrote, began = time.perf_counter() - began, time.perf_counter()
    found = wandb_report.check(folder)
    read = time.perf_counter() - began
    print(found)
    print(
        f"{runs} runs in {wrote:.0f} s, {statistics.median(seconds):.2f} s each (median), "
        f"{os.cpu_count()} cores; read back in {read:.1f} s"
    )
    whole = found.runs == runs and found.records == len(STAGES) * runs and not found.unfinished and not found.faults
    return 0 if whole else 1


if __name__ == "__main__":
    sys.exit(main())
