"""What does it save that a teacher's outputs are kept, what do they take, and how far off is what is sampled of them?

    python -m benchmarks.teacher_cache
    python -m benchmarks.teacher_cache --quick                      # two temperatures, a few steps: to see that it runs
    python -m benchmarks.teacher_cache --experiment distill_t5_tenth trainer=fast pipeline.distill.batch_size=32 \\
        pipeline.distill.steps=300 data.packages=none                # a small student, of which the teacher is most

Distils at six temperatures, once with the teacher in every run and once with each form of the cache; further overrides
go to every trial. Prints the wall time of each sweep, bytes of a label, the share of rows that runs found there, and
how far the estimated divergence is off at T = 1, 2, 4 and 8. Beside it, of many samples of the shipped Llama's
distributions, how many standard errors the mean gradient is from the exact one (squared, about 1 where nothing is off),
and how large the noise of a label's gradient is. Exits with status 1 unless one pass of the teacher served each sweep,
a label of the compact form takes at most 100 bytes, and no gradient is biased; without ``--quick`` also unless errors
are at most 1 % and a sweep takes at most 0.6 of the time without a cache.
"""

import argparse
import math
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks import command
from slimexp import artifact
from slimexp.config.composition import compose
from slimexp.loss.sample import Layout
from slimexp.record import record
from slimexp.record.record import Record
from slimexp.teacher_cache.compact import TEMPERATURES, draw

ROOT = Path(__file__).parents[1]
SWEPT = "pipeline.distill.losses.kl.temperature.start"
POINTS = "1,2,3,4,5,8"
FORMS = ("none", "exact", "compact")
COMMON = ("measure=[size,task]", "measure.task.limit=10", "logger=none")
QUICK = (
    f"{SWEPT}=1,8",
    "pipeline.distill.steps=4",
    "pipeline.distill.batch_size=8",
    "pipeline.distill.cut.calibration_batches=1",
)
MOST_BYTES, MOST_ERROR, MOST_TIME = 100, 0.01, 0.6
LABELS, DRAWS = 32, 400


class Arm(NamedTuple):
    """A sweep.

    Attributes:
        seconds: Wall time of the command.
        found: Share of rows that each run found in the cache, in the order in which they ended.
        metrics: Of the first run.
    """

    seconds: float
    found: list[float]
    metrics: dict[str, float]


def arm(form: str, experiment: str, overrides: list[str], runs: str) -> Arm:
    """Sweep with a form of the cache in ``runs``."""
    cache = [] if form == "none" else [f"+teacher_cache@pipeline.distill.cache={form}"]
    words = [sys.executable, "-m", "slimexp.train", "-m", "hydra/sweeper=pareto", f"+experiment={experiment}"]
    losses = compose([f"+experiment={experiment}"]).pipeline.distill.losses
    cache += ["~pipeline.distill.losses.hidden"] if "hidden" in losses else []  # states that a cache does not keep
    began = time.monotonic()
    subprocess.run([*words, *COMMON, *cache, f"runs={runs}", *overrides], check=True, cwd=ROOT)
    return of_records(Path(runs, record.FILE).read_text().splitlines(), time.monotonic() - began)


def of_records(lines: list[str], seconds: float) -> Arm:
    """A sweep by its record file."""
    rows = [one for one in map(Record.from_json, lines) if not one.dense]
    found = [row.metrics["distill_cache_hit_ratio"] for row in rows if "distill_cache_hit_ratio" in row.metrics]
    return Arm(seconds, found, rows[0].metrics)


def distributions() -> tuple[Tensor, Tensor]:
    """Logits of the shipped Llama on its own task's text, and of the same model with noise on its weights."""
    family = artifact.deployed(ROOT / "slimexp" / "zoo" / "llama_python_source")
    batch = family.encode([(Path(__file__).read_text()[:2000], None, None)])
    torch.manual_seed(0)
    with torch.no_grad():
        teacher = family.forward(batch)[0]
        for parameter in family.model.parameters():
            parameter += 0.2 * parameter.std() * torch.randn_like(parameter)
        student = family.forward(batch)[0]
    labels = (batch["labels"] != -100).flatten().nonzero().squeeze(1)[:LABELS]
    return teacher.flatten(0, 1)[labels], student.flatten(0, 1)[labels]


def gradients(teacher: Tensor, student: Tensor, layout: Layout, temperature: float) -> tuple[float, float]:
    """Mean square of the deviation of estimated gradients in standard errors, and noise over signal of a label's."""
    exact = student.double().requires_grad_()
    log_s, log_p = (F.log_softmax(x.double() / temperature, dim=-1) for x in (exact, teacher))
    (expected,) = torch.autograd.grad(F.kl_div(log_s, log_p, log_target=True, reduction="sum"), exact)
    random, total, squares = torch.Generator().manual_seed(0), torch.zeros_like(expected), torch.zeros_like(expected)
    for _ in range(DRAWS):
        noise = torch.rand(len(teacher), 1 + layout.nodes + layout.head + layout.samples, generator=random)
        leaf = student.clone().requires_grad_()
        value = layout.read(draw(teacher, layout, noise)).divergence(leaf, temperature)
        (gradient,) = torch.autograd.grad(value.sum(), leaf)
        error = gradient.double() - expected
        total, squares = total + error, squares + error.square()
    mean, variance = total / DRAWS, squares / DRAWS
    # along the directions in which a head moves all logits of a label, of which single ones are too rarely sampled
    moved = torch.randn(64, student.shape[-1], generator=random, dtype=torch.float64)
    along = mean @ moved.T
    spread = (variance.sum(-1, keepdim=True) / DRAWS).sqrt()
    noise_share = float(variance.sum().sqrt() / expected.square().sum().sqrt())
    return float((along / spread).square().mean()), noise_share


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiment", default="distill_t5")
    parser.add_argument("--workers", type=int, default=1, help="runs at a time; a second waits for the teacher's pass")
    parser.add_argument("--quick", action="store_true", help="a few steps, to see that it runs")
    options = command.parsed(parser)
    arms = {}
    for form in FORMS:
        with tempfile.TemporaryDirectory() as runs:
            size = QUICK if options.quick else (f"{SWEPT}={POINTS}",)
            workers = f"hydra.sweeper.workers={options.workers}"
            arms[form] = arm(form, options.experiment, [*size, workers, *options.overrides], runs)
    print_arms(arms)
    biased = print_gradients()
    if why := [*faults(arms, quick=options.quick), *(["gradients are biased"] if biased else [])]:
        sys.exit("; ".join(why))


def print_arms(arms: dict[str, Arm]) -> None:
    """Print the sweeps as a table."""
    errors = " | ".join(f"KL error at T = {t:g}" for t in TEMPERATURES)
    print(f"\n| teacher cache | seconds | of none | bytes a label | rows found | {errors} |")
    print("| --- |" + " ---: |" * (4 + len(TEMPERATURES)))
    for form, one in arms.items():
        size = one.metrics.get("distill_cache_bytes_per_label")
        found = f"{min(one.found):.0%} .. {max(one.found):.0%}" if one.found else ""
        off = [one.metrics.get(f"distill_cache_kl_error_t{t:g}") for t in TEMPERATURES]
        cells = [form, f"{one.seconds:.0f}", f"{one.seconds / arms['none'].seconds:.2f}"]
        cells += ["" if size is None else f"{size:.0f}", found, *("" if x is None else f"{x:.2%}" for x in off)]
        print(f"| {' | '.join(cells)} |")


def print_gradients() -> bool:
    """Print how biased and noisy gradients are, as a table; whether any is biased."""
    teacher, student = distributions()
    layout = Layout(teacher.shape[-1], head=8, samples=12, nodes=6, lowest=1.0, highest=8.0)
    print(f"\n| T | mean squared deviation in standard errors, {DRAWS} draws | noise / signal of a label |")
    print("| ---: | ---: | ---: |")
    biased = False
    for temperature in (*TEMPERATURES[:1], 1.5, *TEMPERATURES[1:]):
        deviation, noise = gradients(teacher, student, layout, temperature)
        print(f"| {temperature:g} | {deviation:.2f} | {noise:.2f} |")
        biased |= not math.isfinite(deviation) or deviation > 1.5
    return biased


def faults(arms: dict[str, Arm], *, quick: bool) -> list[str]:
    """What is not as it should be."""
    once = [0.0, *[1.0] * (len(arms["exact"].found) - 1)]
    found = [form for form in FORMS[1:] if sorted(arms[form].found) != once]
    why = [f"{form}: more than one pass of the teacher" for form in found]
    compact = arms["compact"].metrics
    if compact["distill_cache_bytes_per_label"] > MOST_BYTES:
        why.append(f"compact takes more than {MOST_BYTES} bytes a label")
    if quick:
        return why
    if max(compact[f"distill_cache_kl_error_t{t:g}"] for t in TEMPERATURES) > MOST_ERROR:
        why.append(f"an estimate is off by more than {MOST_ERROR:.0%}")
    slow = [form for form in FORMS[1:] if arms[form].seconds > MOST_TIME * arms["none"].seconds]
    return [*why, *(f"{form} takes more than {MOST_TIME} of the time" for form in slow)]


if __name__ == "__main__":
    main()
