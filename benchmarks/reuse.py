"""What does it save that trials of a sweep share the stages they have in common?

    python -m benchmarks.reuse

The chain prune -> quantize -> distil on the shipped T5 over 3 sparsities, 3 bit widths and 3 temperatures, 27 trials,
once with finished stages used again and once with ``resume=false``. Further overrides go to every trial. Prints stages
done (the dense model's measuring apart) and wall time of both; exits with status 1 unless they are 39 and 81 and every
trial has the same figures, seconds aside, either way.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from slimexp.record import record
from slimexp.record.record import Record

SWEPT = (
    "pipeline.prune.sparsity=0.25,0.5,0.75",
    "pipeline.quantize.bits=8,4,3",
    "pipeline.distill.losses.kl.temperature.start=1,3,5",
)
SHORT = (
    "logger=none",
    "measure.task.limit=10",
    "pipeline.quantize.steps=4",
    "pipeline.distill.steps=4",
    "pipeline.distill.batch_size=4",
)


class Arm(NamedTuple):
    """One sweep.

    Attributes:
        stages: Done in it, the dense model's apart.
        seconds: Of the whole command.
        figures: Key of a stage -> its metrics.
    """

    stages: int
    seconds: float
    figures: dict[str, dict[str, float]]


def arm(overrides: list[str], runs: str) -> Arm:
    """Sweep in ``runs`` and count."""
    command = [sys.executable, "-m", "slimexp.train", "-m", "hydra/sweeper=pareto", "+experiment=front_t5"]
    began = time.monotonic()
    subprocess.run([*command, *SHORT, *SWEPT, f"runs={runs}", *overrides], check=True)
    seconds = time.monotonic() - began
    return counted(Path(runs, record.FILE).read_text().splitlines(), seconds)


def counted(lines: list[str], seconds: float) -> Arm:
    """A sweep by its record file: a line for every stage that was done, none for one that was used again."""
    done = [one for one in map(Record.from_json, lines) if not one.dense]
    return Arm(len(done), seconds, {one.key: one.metrics for one in done})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    _, overrides = parser.parse_known_args()
    arms = {}
    for name, switch in (("reused", "resume=true"), ("done anew", "resume=false")):
        with tempfile.TemporaryDirectory() as runs:
            arms[name] = arm([*overrides, switch], runs)
    print("\n| stages are | done | seconds |\n| --- | ---: | ---: |")
    for name, one in arms.items():
        print(f"| {name} | {one.stages} | {one.seconds:.0f} |")
    reused, anew = arms.values()
    same = reused.figures == anew.figures
    print(f"\nfigures of the {len(reused.figures)} stages are {'the same' if same else 'NOT the same'}")
    if (reused.stages, anew.stages) != (39, 81) or not same:
        sys.exit("not as expected")


if __name__ == "__main__":
    main()
