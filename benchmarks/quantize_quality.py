"""What does rounding to a few bits cost the zoo's models, and how much of it comes back by training or calibration?

    python -m benchmarks.quantize_quality
    python -m benchmarks.quantize_quality --seeds 0 1 2 --workers 8 trainer=gpu
    python -m benchmarks.quantize_quality pipeline.quantize.optimizer.lr=2e-4 --models llama --only int4

Every row is ``+experiment=qat_MODEL`` with other widths, or another way to round, for every seed; further overrides go
to all of them. Quality is that of the saved artifact on the whole test split. Below 8 bits weights lie in groups of
``--group`` that share a scale: 64, since 128 does not divide the Llama's rows of 704. Rows of ``FORMATS``, other ways
to write the same bits, and rows in which nothing is random run for the first seed alone. Rows trained at length
(``--long`` steps: the experiment of the Llama has 64, too few for 2 bits) want a GPU; ``--trained trainer=gpu`` goes to
rows that are trained alone.

Recovered is, of what rounding to nearest loses at the same width, the share that a row does not lose: (nearest -
row) / (nearest - dense), in perplexity. Two figures of the Llama, means over the seeds, must reach their targets: int8
weights and activations, rounded to nearest, at most ``--ratio`` times the dense perplexity; int4 weights, trained as
the experiment has it, at least ``--recovered``.

Rows run side by side in ``--workers`` processes, the first seed of each before the second. Finished stages are not done
again and a killed one goes on, so the same command resumes; several at once may share the rows by ``--only``, and with
``--finished`` the whole command gathers what they left and does nothing else. Prints Markdown, writes
``RUNS/NAME.json``; exits with status 1 on a miss or a row without figures.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import command
from slimexp.record import record
from slimexp.record.record import Record

STAGE = "pipeline.quantize"
GAP = "perplexity"  # what recovered is said of: the other models lose less than their test rows can tell
LEAST_GAP = 0.005  # share of the perplexity; of what is less, a share says nothing
NEAREST, TRAINED = "to nearest", "trained"
INT8, INT4 = "int8, activations int8", "int4"
STATIC = "int8, activations int8 static"

WIDTHS = {
    INT8: ("bits=8", "group_size=null", "activation_bits=8"),
    INT4: ("bits=4", "activation_bits=null"),
    "int3": ("bits=3", "activation_bits=null"),
    "int2": ("bits=2", "activation_bits=null"),
    "ternary": ("bits=2", "activation_bits=null", "quantizer=ternary"),
}
_INT8, _FP8 = WIDTHS[INT8], ("bits=8", "activation_bits=8", "quantizer=fp8")
FORMATS = {
    "int8 per matrix, activations int8": ("bits=8", "group_size=tensor", "activation_bits=8"),
    STATIC: (*_INT8, "activation_quantizer=static", "activation_quantizer.range=mse"),
    "fp8, activations fp8": (*_FP8, "group_size=null", "activation_quantizer=fp8_token"),
    "fp8 per matrix, activations fp8 static": (*_FP8, "group_size=tensor", "activation_quantizer=fp8_static"),
    "int8, activations int8, cache int8": (*_INT8, "cache_bits=8"),
    "int8, activations int8, cache int4": (*_INT8, "cache_bits=4"),
    "int4 with zero points": (*WIDTHS[INT4], "symmetric=false"),
    "int3 with zero points": (*WIDTHS["int3"], "symmetric=false"),
}
ONE_SHOT = ("steps=0",)
AT_LENGTH = ("steps={long}",)
METHODS = {
    NEAREST: ONE_SHOT,
    "GPTQ": (*ONE_SHOT, "rounding=gptq"),
    "AWQ": (*ONE_SHOT, "smoothing=awq"),
    "SmoothQuant": (*ONE_SHOT, "smoothing=smoothquant"),
    "least squares": (*ONE_SHOT, "quantizer=mse"),
    "HQQ": (*ONE_SHOT, "quantizer=hqq"),
    "mixed precision": (*ONE_SHOT, "allocation=mixed_precision"),
    TRAINED: (),
    "trained, LSQ": ("quantizer=lsq",),
    "trained, PACT": ("activation_quantizer=pact",),
    "trained without a teacher": ("~losses.kl",),
    "trained at length": AT_LENGTH,
    "trained at length, LSQ": (*AT_LENGTH, "quantizer=lsq"),
}
_LEARNED = (TRAINED, "trained, LSQ", "trained at length", "trained at length, LSQ")
ROWS = {  # model -> width -> methods
    "llama": {
        INT8: (NEAREST, "SmoothQuant"),
        INT4: (NEAREST, "GPTQ", "AWQ", "mixed precision", "trained without a teacher", *_LEARNED),
        "int3": (NEAREST, "GPTQ", "AWQ", "mixed precision", *_LEARNED),
        "int2": (NEAREST, "GPTQ", *_LEARNED),
        "ternary": (NEAREST, TRAINED, "trained at length"),
        **dict.fromkeys(FORMATS, (NEAREST,)),
        STATIC: (NEAREST, TRAINED, "trained, PACT"),
        **dict.fromkeys(("int4 with zero points", "int3 with zero points"), (NEAREST, "least squares", "HQQ")),
    },
    "bert": {INT8: (NEAREST,), INT4: (NEAREST, "GPTQ", TRAINED)},
    "t5": {INT8: (NEAREST, TRAINED), INT4: (NEAREST, "GPTQ", TRAINED)},
}
GROUPS = {  # an option of the technique that is a component -> how the command line chooses one
    "quantizer": "quantizer",
    "activation_quantizer": "quantizer",
    "activation_quantizer.range": "quantizer",
    "allocation": "+allocation",
    "rounding": "+rounding",
    "smoothing": "+smoothing",
}


class Row(NamedTuple):
    """What is done to a model.

    Attributes:
        model: Of ``ROWS``.
        width: Of ``WIDTHS`` or ``FORMATS``.
        method: Of ``METHODS``.
    """

    model: str
    width: str
    method: str

    def __str__(self) -> str:
        return ", ".join(self)


class Found(NamedTuple):
    """A row, measured.

    Attributes:
        metric: That it is graded by.
        values: One per seed.
        dense: The same of the dense model.
        steps: Of training.
        disk_mb: Of the artifact.
        keys: Of the stages, one per seed.
    """

    metric: str
    values: list[float]
    dense: list[float]
    steps: int
    disk_mb: float
    keys: list[str]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values)

    @property
    def ratio(self) -> float:
        """To the dense model's."""
        return self.mean / statistics.fmean(self.dense)


Rows = dict[Row, "Found | str"]  # a row without figures says why
Plan = Mapping[Row, Sequence[Sequence[str]]]  # the command lines of a row's seeds


def overrides(row: Row, seed: int, arguments: argparse.Namespace) -> list[str]:
    """The command line of one seed of a row."""
    own = [f"{STAGE}.group_size={arguments.group}"]
    for choice in (*(WIDTHS | FORMATS)[row.width], *METHODS[row.method]):
        option, _, value = choice.partition("=")
        if choice.startswith("~"):
            own.append(f"~{STAGE}.{choice[1:]}")
        elif option in GROUPS:
            own.append(f"{GROUPS[option]}@{STAGE}.{option}={value}")
        else:
            own.append(f"{STAGE}.{choice}".format(long=arguments.long))
    return [
        f"+experiment=qat_{row.model}",
        *("logger=none", "measure.task.limit=null", "trainer.enable_progress_bar=false"),
        *arguments.overrides,
        *([] if _is_one_shot(row) else arguments.trained),
        *(f"seed={seed}", f"runs={arguments.runs}", f"name={arguments.name}"),
        *own,
    ]


def planned(arguments: argparse.Namespace) -> Plan:
    """Row -> the command lines of its seeds."""
    rows = [Row(model, *rest) for model in arguments.models for rest in _pairs(model) if _wanted(rest, arguments.only)]
    return {row: [overrides(row, seed, arguments) for seed in _seeds(row, arguments.seeds)] for row in rows}


def _seeds(row: Row, seeds: Sequence[int]) -> Sequence[int]:
    return seeds[:1] if row.width in FORMATS or row.method == NEAREST else seeds


def _pairs(model: str) -> list[tuple[str, str]]:
    return [(width, method) for width, methods in ROWS[model].items() for method in methods]


def _wanted(words: Sequence[str], only: Sequence[str]) -> bool:
    """Whether a row is named by its width, or by width and method."""
    return not only or words[0] in only or ", ".join(words) in only


def _unknown(only: Sequence[str], models: Sequence[str]) -> list[str]:
    pairs = [pair for model in models for pair in _pairs(model)]
    return [word for word in only if not any(_wanted(pair, [word]) for pair in pairs)]


def train(lines: Sequence[str], finished: bool) -> str | None:
    """One run, in a worker, or a look whether it is ``finished``: the key of its last stage, ``None`` if it is not."""
    from slimexp.config.check import check
    from slimexp.config.composition import compose
    from slimexp.pipeline.pipeline import Pipeline

    cfg = compose(lines)
    check(cfg)
    pipeline = Pipeline(cfg, overrides=list(lines))
    last = pipeline.stages[-1]
    if not finished:
        pipeline.run()
    return last.key if last.measured() else None


def _started(threads: int) -> None:
    import torch

    torch.set_num_threads(threads)


def run_all(plan: Plan, workers: int, *, finished: bool) -> dict[Row, list[str] | str]:
    """Every run, a seed's together and the longest first; row -> keys of its seeds' last stages, or why it has none."""
    runs = [(place, row, lines) for row in plan for place, lines in enumerate(plan[row])]
    runs.sort(key=lambda run: (run[0], _is_short(run[1]), _is_one_shot(run[1])))
    threads = max(len(os.sched_getaffinity(0)) // workers, 1)
    keys: dict[Row, list[str] | str] = {row: [] for row in plan}
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _started, (threads,)) as pool:
        futures = [pool.submit(train, lines, finished) for _, _, lines in runs]
        for (_, row, _), future in zip(runs, futures, strict=True):
            before = keys[row]
            if (error := future.exception()) is not None:
                keys[row] = f"failed: {type(error).__name__}: {error}".splitlines()[0]
                print(f"{row} {keys[row]}", flush=True)
            elif isinstance(before, list) and (key := future.result()) is not None:
                keys[row] = [*before, key]
    return {row: of_seeds or "not finished" for row, of_seeds in keys.items()}


def _is_short(row: Row) -> bool:
    return AT_LENGTH[0] not in METHODS[row.method]


def _is_one_shot(row: Row) -> bool:
    return ONE_SHOT[0] in METHODS[row.method]


def found(records: Sequence[Record]) -> Found:
    """What the seeds of a row came to."""
    first = records[0]
    metric = GAP if GAP in first.metrics else first.headline
    return Found(
        metric,
        [one.metrics[metric] for one in records],
        [one.baseline[metric] for one in records],
        first.config["pipeline"]["quantize"]["steps"],
        first.metrics["disk_mb"],
        [one.key for one in records],
    )


def recovered(row: Row, rows: Rows) -> float | None:
    """Share of what rounding to nearest loses at the same width that ``row`` does not; ``None`` where there is none."""
    one, nearest = rows[row], rows.get(row._replace(method=NEAREST))
    if row.method == NEAREST or not isinstance(one, Found) or not isinstance(nearest, Found) or one.metric != GAP:
        return None
    gap = nearest.mean - statistics.fmean(nearest.dense)
    return (nearest.mean - one.mean) / gap if gap > LEAST_GAP * nearest.mean else None


def table(model: str, rows: Rows) -> str:
    """Markdown, of one model: means over the seeds with their standard deviation."""
    of_model = {row: one for row, one in rows.items() if row.model == model}
    measured = [one for one in of_model.values() if isinstance(one, Found)]
    metric = measured[0].metric if measured else ""
    lines = [f"| weights | rounded | steps | seeds | {metric} | of dense | recovered | MB |"]
    lines.append("| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    if measured:
        lines.append(f"| bfloat16 | | | | {statistics.fmean(measured[0].dense):.4f} | 1.000x | | |")
    for row, one in of_model.items():
        if isinstance(one, str):
            lines.append(f"| {row.width} | {row.method} | | | {one} | | | |")
            continue
        share = recovered(row, rows)
        cells = [row.width, row.method, str(one.steps or ""), str(len(one.values)), _spread(one.values)]
        cells += [f"{one.ratio:.3f}x", "" if share is None else f"{share:.0%}", f"{one.disk_mb:.2f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _spread(values: Sequence[float]) -> str:
    mean = f"{statistics.fmean(values):.4f}"
    return f"{mean} ± {statistics.stdev(values):.4f}" if len(values) > 1 else mean


def missed(rows: Rows, *, ratio: float, least: float) -> list[str]:
    """Targets that the Llama does not reach, and rows without figures, in words."""
    misses = [f"{row}: {one}" for row, one in rows.items() if isinstance(one, str)]
    int8, int4 = Row("llama", INT8, NEAREST), Row("llama", INT4, TRAINED)
    if isinstance(one := rows.get(int8), Found) and one.ratio > ratio:
        misses.append(f"{int8}: {one.ratio:.4f}x dense > {ratio:g}x")
    if int4 in rows and (share := recovered(int4, rows)) is not None and share < least:
        misses.append(f"{int4}: recovers {share:.1%} < {least:.0%}")
    return misses


def result(rows: Rows, arguments: argparse.Namespace, misses: Sequence[str], last: Record) -> dict[str, Any]:
    """Everything the tables show and where it came from, for the JSON file."""
    return {
        "overrides": arguments.overrides,
        "seeds": arguments.seeds,
        "group": arguments.group,
        "rows": [
            {**row._asdict(), "recovered": recovered(row, rows)}
            | ({"without": one} if isinstance(one, str) else one._asdict())
            for row, one in rows.items()
        ],
        "missed": misses,
        "git": last.git,
        "versions": last.versions,
        "hardware": last.hardware,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--only", nargs="+", default=[], metavar="ROW", help="widths, or 'width, method'")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--group", type=int, default=64, help="neighbours that share a scale below 8 bits")
    parser.add_argument("--long", type=int, default=1000, help="steps of what is trained at length")
    parser.add_argument(
        "--trained", action="append", default=[], metavar="OVERRIDE", help="of the rows that are trained, alone"
    )
    parser.add_argument("--finished", action="store_true", help="train nothing; show what has finished")
    parser.add_argument("--workers", type=int, default=1, help="rows trained at the same time")
    parser.add_argument("--ratio", type=float, default=1.005, help="of int8's perplexity to the dense model's, at most")
    parser.add_argument("--recovered", type=float, default=0.85, help="of the gap of int4, at least")
    parser.add_argument("--runs", default="runs")
    parser.add_argument("--name", default="quantize_quality", help="of the runs' folder and the JSON file")
    arguments = command.parsed(parser)
    if unknown := _unknown(arguments.only, arguments.models):
        parser.error(f"--only '{unknown[0]}' names no row of {', '.join(arguments.models)}")
    plan = planned(arguments)
    keys = run_all(plan, arguments.workers, finished=arguments.finished)
    folder = Path(arguments.runs)
    records = {one.key: one for one in record.read(folder / record.FILE)}  # the latest of each
    if not records:
        sys.exit(f"nothing has finished in {folder}")
    rows: Rows = {}
    for row in plan:
        of_seeds = keys[row]
        rows[row] = of_seeds if isinstance(of_seeds, str) else found([records[key] for key in of_seeds])
    misses = missed(rows, ratio=arguments.ratio, least=arguments.recovered)
    path = folder / f"{arguments.name}.json"
    path.write_text(json.dumps(result(rows, arguments, misses, list(records.values())[-1]), indent=2) + "\n")
    for model in arguments.models:
        print(f"\n{model}:\n\n{table(model, rows)}")
    print(f"-> {path}")
    if misses:
        sys.exit(f"missed: {'; '.join(misses)}")


if __name__ == "__main__":
    main()
