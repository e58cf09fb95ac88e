"""How long until the command line answers, and is anything heavy imported on the way?

    python -m benchmarks.startup

Times fresh interpreters, the commands taking turns: ``python -m slimexp.train --help`` (target 1.0 s) and composing
and checking ``+experiment=distill_t5`` (target 1.5 s). The wall time of the whole process counts, Python's own start
included; best and median of ``--rounds``. Then lists the slowest imports of each by ``python -X importtime``.
Exit status 1 if a heavy package is imported or a best time is over its target.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
HEAVY = {"torch", "transformers", "pytorch_lightning", "lightning_fabric", "datasets", "wandb", "torchmetrics", "numpy"}


COMPOSE = """
from slimexp.config.check import check
from slimexp.config.composition import compose
check(compose(["+experiment=distill_t5"]))
"""


class Command(NamedTuple):
    """What is timed.

    Attributes:
        name: For the table.
        arguments: Of the interpreter.
        target: Seconds.
    """

    name: str
    arguments: tuple[str, ...]
    target: float


COMMANDS = (
    Command("train --help", ("-m", "slimexp.train", "--help"), 1.0),
    Command(
        "compose and check distill_t5",
        ("-c", COMPOSE),
        1.5,
    ),
)


class Import(NamedTuple):
    """One line of ``-X importtime``: milliseconds alone and with everything imported below it."""

    module: str
    own_ms: float
    total_ms: float


def run(*arguments: str) -> tuple[float, str]:
    """Seconds a fresh interpreter takes, and what it wrote to stderr."""
    began = time.perf_counter()
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - began
    if done.returncode:
        sys.exit(f"{' '.join(arguments)} failed:\n{done.stderr}")
    return seconds, done.stderr


def imports(command: Command) -> list[Import]:
    """Everything that ``command`` imports."""
    _, text = run("-X", "importtime", *command.arguments)
    cells = [
        line.removeprefix("import time:").split("|") for line in text.splitlines() if line.startswith("import time:")
    ]
    return [Import(module.strip(), int(own) / 1e3, int(total) / 1e3) for own, total, module in cells[1:]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--top", type=int, default=10, help="imports listed")
    arguments = parser.parse_args()
    traced = {command: imports(command) for command in COMMANDS}  # first: it also compiles what is not yet
    seconds: dict[Command, list[float]] = {command: [] for command in COMMANDS}
    for _ in range(arguments.rounds):
        for command in COMMANDS:
            seconds[command].append(run(*command.arguments)[0])

    load = f"; load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    print(f"{os.cpu_count()} cores{load}\n\n| command | best s | median s | target s |\n| --- | ---: | ---: | ---: |")
    for command, times in seconds.items():
        print(f"| {command.name} | {min(times):.2f} | {statistics.median(times):.2f} | {command.target:.1f} |")
    wrong = [
        f"{command.name} takes {min(times):.2f} s" for command, times in seconds.items() if min(times) > command.target
    ]
    for command, found in traced.items():
        print(f"\n{command.name}: {len(found)} modules imported; ms alone and in all of the slowest")
        for item in sorted(found, key=lambda item: -item.total_ms)[: arguments.top]:
            print(f"{item.own_ms:8.1f} {item.total_ms:8.1f}  {item.module}")
        heavy = sorted(HEAVY & {item.module.split(".")[0] for item in found})
        print(f"heavy packages: {', '.join(heavy) or 'none'}")
        wrong += [f"{command.name} imports {', '.join(heavy)}"] if heavy else []
    if wrong:
        sys.exit("; ".join(wrong))


if __name__ == "__main__":
    main()
