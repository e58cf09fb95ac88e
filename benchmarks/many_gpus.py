"""What do many GPUs bring: to one distillation, to models that no card holds, and to a sweep of small trials?

    python -m benchmarks.many_gpus                        # all parts, on all GPUs of this machine
    python -m benchmarks.many_gpus speed --devices 1 2 4 8
    python -m benchmarks.many_gpus large --devices 8      # a 14B Llama shape and its teacher, sharded
    python -m benchmarks.many_gpus sweep --devices 1 8 --trials 64
    python -m benchmarks.many_gpus --toy                  # two processes of this machine's CPU: does it run?

``speed`` distils SmolLM2's shape from a teacher of the same (``benchmarks.devices``) with ``--rows`` rows for each
device, once with the whole model on each (DDP) and once with shards of it (FSDP2): tokens per second, the efficiency
(those of n devices over n times those of the first number, for each of its devices), and the peak of memory. ``large``
does so for 14.8B parameters by FSDP2 on the largest number of devices alone. ``sweep`` is ``benchmarks.throughput``'s:
short distillations of the zoo's T5 over learning rates, one trial on each GPU: wall time of the whole command, and the
share of the GPUs' time in which one waits while trials are left.

Further arguments are overrides of what is trained. Prints Markdown, writes ``--out``; exits with status 1 where an
efficiency is below ``--least`` or GPUs wait for more than ``--idle`` of the time.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from benchmarks import command, throughput, workers
from benchmarks.sweep import Span, waiting

PARTS = ("speed", "large", "sweep")
STRATEGIES = ("ddp", "fsdp")
COMPILED = ["trainer.compile=true"]
TOY_SWEEP = [
    "trainer=fast", "data.packages=none", "pipeline.distill.steps=2", "pipeline.distill.batch_size=2",
    "pipeline.distill.lr_scheduler.num_warmup_steps=0", "pipeline.distill.cut.calibration_batches=1",
    "measure.task.limit=2",
]  # fmt: skip


class Run(NamedTuple):
    """A distillation on some devices.

    Attributes:
        strategy: Of the trainer.
        devices: Their number.
        tokens_per_second: Of all devices together.
        efficiency: Beside the run on the fewest devices, per device.
        peak_gib: Most memory that a device took.
        loss: Of the last step.
    """

    strategy: str
    devices: int
    tokens_per_second: float
    efficiency: float
    peak_gib: float
    loss: float


class Swept(NamedTuple):
    """A sweep with one trial on each of some devices.

    Attributes:
        devices: Their number.
        seconds: Wall time of the whole command.
        idle: Share of the devices' time in which one waits while trials are left; 0 where all begin at once.
    """

    devices: int
    seconds: float
    idle: float


def measured(options: Sequence[str]) -> dict[str, Any]:
    """What ``benchmarks.devices`` says of one number of devices."""
    words = [sys.executable, "-m", "benchmarks.devices", *options]
    print(f"$ python {' '.join(words[1:])}", flush=True)
    printed = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout
    run: dict[str, Any] = json.loads(printed)["runs"][0]
    return run


def speed(arguments: argparse.Namespace) -> list[Run]:
    """The same model on each number of devices, by each strategy; the batch grows with the devices."""
    found = []
    for strategy in STRATEGIES:
        counts = [count for count in arguments.devices if count > 1 or strategy == STRATEGIES[0]]
        for count in counts:
            options = [f"--devices={count}", f"--rows={arguments.rows * count}", *steps(arguments)]
            more = [f"trainer.strategy={strategy}"] if count > 1 else []
            compiled = [] if arguments.toy else COMPILED
            first = found[0] if found else None
            found.append(_run(measured([*options, *more, *compiled, *arguments.overrides]), first))
    return found


def large(arguments: argparse.Namespace) -> list[Run]:
    """14B parameters and a teacher of as many on the largest number of devices."""
    count = max(arguments.devices)
    options = [f"--devices={count}", f"--rows={arguments.large_rows * count}", "--large=14b", *steps(arguments)]
    return [_run(measured([*options, *arguments.overrides]), None)]


def steps(arguments: argparse.Namespace) -> list[str]:
    """Options of a run's length."""
    return ["--toy", "--steps=4", "--warmup=2"] if arguments.toy else [f"--steps={arguments.steps}", "--warmup=10"]


def _run(of: Mapping[str, Any], first: Run | None) -> Run:
    each = of["tokens_per_second"] / of["devices"]
    beside = each if first is None else first.tokens_per_second / first.devices
    peak = max(of["peak_gib_per_device"])
    return Run(of["strategy"], of["devices"], of["tokens_per_second"], each / beside, peak, of["loss"])


def sweep(arguments: argparse.Namespace) -> list[Swept]:
    """The same sweep on each number of devices, each in a folder of its own."""
    return [swept(count, arguments) for count in arguments.devices]


def swept(count: int, arguments: argparse.Namespace) -> Swept:
    """A sweep on the first ``count`` devices."""
    more = [*(TOY_SWEEP if arguments.toy else ["trainer=gpu"]), *arguments.overrides]
    visible = {workers.VISIBLE: ",".join(workers.gpus()[:count])}
    with tempfile.TemporaryDirectory() as runs:
        words = throughput.command(arguments.trials, more, count, runs)
        began = time.monotonic()
        subprocess.run(words, check=True, env={**os.environ, **visible})
        seconds = time.monotonic() - began
        spans = spans_of(next(Path(runs).glob("*/sweep/journal.jsonl")))
    idle = waiting(spans, count)[0] if len(spans) > count else 0.0
    return Swept(count, seconds, idle)


def spans_of(journal: Path) -> list[Span]:
    """When each trial of a sweep began and ended, in seconds."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.load_study(study_name=None, storage=JournalStorage(JournalFileBackend(str(journal))))
    times = [(one.datetime_start, one.datetime_complete) for one in study.trials]
    return [Span(began.timestamp(), ended.timestamp()) for began, ended in times if began and ended]


def table_of_runs(title: str, found: Sequence[Run]) -> str:
    """Markdown."""
    lines = [f"| {title} | devices | tokens/s | efficiency | GiB on each | loss |", "| --- |" + " ---: |" * 5]
    for run in found:
        speed_ = f"{run.tokens_per_second:,.0f} | {run.efficiency:.2f}"
        lines.append(f"| {run.strategy} | {run.devices} | {speed_} | {run.peak_gib:.1f} | {run.loss:.4f} |")
    return "\n".join(lines)


def table_of_sweeps(found: Sequence[Swept], trials: int) -> str:
    """Markdown."""
    lines = [f"| {trials} trials | seconds | beside {found[0].devices} | idle |", "| ---: | ---: | ---: | ---: |"]
    for one in found:
        lines.append(f"| {one.devices} | {one.seconds:.0f} | {found[0].seconds / one.seconds:.2f}x | {one.idle:.1%} |")
    return "\n".join(lines)


def missed(runs: Sequence[Run], sweeps: Sequence[Swept], least: float, idle: float) -> list[str]:
    """Targets that are not met, in words."""
    slow = [f"{run.strategy} on {run.devices}: efficiency {run.efficiency:.2f}" for run in runs]
    waits = [f"sweep on {one.devices}: {one.idle:.1%} idle" for one in sweeps]
    return [
        *(words for words, run in zip(slow, runs, strict=True) if run.efficiency < least),
        *(words for words, one in zip(waits, sweeps, strict=True) if one.idle > idle),
    ]


def parsed(given: Sequence[str] | None) -> argparse.Namespace:
    """Options; ``devices`` are those of this machine where none are given."""
    parser = argparse.ArgumentParser("python -m benchmarks.many_gpus", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("parts", nargs="*", metavar="part", help=f"of {', '.join(PARTS)}; all")
    parser.add_argument("--devices", type=int, nargs="+", help="numbers of devices; 1, 2, 4, ... of this machine")
    parser.add_argument("--rows", type=int, default=64, help="of a batch, on each device")
    parser.add_argument("--large-rows", type=int, default=2, help="the same, of the large model")
    parser.add_argument("--steps", type=int, default=60, help="of which 10 are before the clock starts")
    parser.add_argument("--trials", type=int, default=64, help="of the sweep")
    parser.add_argument("--least", type=float, default=0.9, help="efficiency")
    parser.add_argument("--idle", type=float, default=0.05, help="most of the time that GPUs of a sweep may wait")
    parser.add_argument("--out", type=Path, default=Path("runs/many_gpus.json"))
    parser.add_argument("--toy", action="store_true", help="a tiny model and four trials on two processes of the CPU")
    arguments = command.parsed(parser, given)
    if unknown := [part for part in arguments.parts if part not in PARTS]:
        parser.error(f"unknown part {unknown[0]!r}: must be one of {', '.join(PARTS)}")
    if arguments.toy:
        arguments.devices, arguments.rows, arguments.large_rows, arguments.trials = [1, 2], 4, 4, 4
        return arguments
    there = len(workers.gpus())
    arguments.devices = arguments.devices or [2**power for power in range(there.bit_length()) if 2**power <= there]
    if not arguments.devices or max(arguments.devices) > there:
        asked = f", of the {max(arguments.devices)} asked for" if arguments.devices else ""
        parser.error(f"this machine has {there} GPUs{asked}: give --devices, or --toy for its CPU")
    return arguments


def main(given: Sequence[str] | None = None) -> int:
    """Measure, print and write; returns 1 where a target is missed."""
    arguments = parsed(given)
    parts = arguments.parts or list(PARTS)
    runs: list[Run] = []
    content: dict[str, Any] = {}
    tables = []
    if "speed" in parts:
        runs = speed(arguments)
        tables.append(table_of_runs(f"{arguments.rows} rows on each", runs))
        content["speed"] = [run._asdict() for run in runs]
    if "large" in parts:
        sharded = large(arguments)
        tables.append(table_of_runs("14B", sharded))
        content["large"] = [run._asdict() for run in sharded]
    sweeps = sweep(arguments) if "sweep" in parts else []
    if sweeps:
        tables.append(table_of_sweeps(sweeps, arguments.trials))
        content["sweep"] = [one._asdict() for one in sweeps]
    faults = missed(runs, sweeps, arguments.least, arguments.idle)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps({**content, "missed": faults}, indent=2) + "\n")
    print("\n\n".join(["", *tables, f"-> {arguments.out}", *(f"missed: {fault}" for fault in faults)]))
    return int(bool(faults) and not arguments.toy)


if __name__ == "__main__":
    sys.exit(main())
