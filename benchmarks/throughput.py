"""How much faster is a sweep of small trials when they share one machine, or one GPU, than one after the other?

    python -m benchmarks.throughput --workers 1,16 trainer=gpu

Runs the same sweep of ``+experiment=distill_t5`` over learning rates, 300 steps each, once for every number of workers,
in a folder of its own: nothing is reused between them. A sweep of two trials goes first and does not count: it fills
the caches of the disk and of the compiler. Wall time is that of the whole command, imports and the dense model's
measuring included. Further overrides go to every trial. Under NVIDIA's multi-process service
(``nvidia-cuda-mps-control -d``) workers share the GPU instead of taking turns. Prints a Markdown table; exits with
status 1 under ``--target``.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from slimexp.record import record


def numbers(text: str) -> list[int]:
    """``1,16`` -> [1, 16]."""
    return [int(word) for word in text.split(",")]


def command(trials: int, overrides: list[str], workers: int, runs: str) -> list[str]:
    """The sweep as a user types it."""
    rates = ",".join(f"{1e-3 * (1 + trial / trials):.6g}" for trial in range(trials))
    return [
        *(sys.executable, "-m", "slimexp.train", "-m", "hydra/sweeper=pareto", "+experiment=distill_t5"),
        *("logger=none", "measure=[size,task]", "trainer.enable_progress_bar=false", f"runs={runs}"),
        *(f"hydra.sweeper.workers={workers}", f"pipeline.distill.optimizer.lr={rates}", *overrides),
    ]


def wall(trials: int, overrides: list[str], workers: int) -> float:
    """Seconds of the whole sweep; every trial must have left its record."""
    with tempfile.TemporaryDirectory() as runs:
        began = time.monotonic()
        subprocess.run(command(trials, overrides, workers, runs), check=True)
        seconds = time.monotonic() - began
        done = {one.key for one in record.read(Path(runs)) if not one.dense}
    if len(done) != trials:
        sys.exit(f"{len(done)} of {trials} trials finished: their logs are above")
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=16)
    parser.add_argument("--workers", type=numbers, default=[1, 16], metavar="N,N")
    parser.add_argument("--target", type=float, default=3.0, help="times the throughput of the first number of workers")
    arguments, overrides = parser.parse_known_args()
    wall(2, overrides, 2)
    seconds = {workers: wall(arguments.trials, overrides, workers) for workers in arguments.workers}
    first = seconds[arguments.workers[0]]
    print("\n| workers | seconds | trials per minute | throughput |\n| ---: | ---: | ---: | ---: |")
    for workers, taken in seconds.items():
        print(f"| {workers} | {taken:.0f} | {60 * arguments.trials / taken:.1f} | {first / taken:.2f}x |")
    if first / min(seconds.values()) < arguments.target:
        sys.exit(f"under the target of {arguments.target:g}x")


if __name__ == "__main__":
    main()
