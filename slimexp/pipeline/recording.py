"""Builds the records of a command, with what all of them have in common: configuration, text and measures."""

import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import cache, cached_property
from pathlib import Path

import torch
from omegaconf import DictConfig

from slimexp.config import secret
from slimexp.data.base import Corpus
from slimexp.measure.base import Measure, directions, trivial
from slimexp.measure.score_store import ScoreStore
from slimexp.pipeline import key as keys
from slimexp.pipeline.summary import fixed
from slimexp.record import record
from slimexp.record.environment import environment
from slimexp.record.figures import KEPT, compared_by, figures, guess_in, leading, unshrunk, untrained
from slimexp.record.schema import DIFFERENCE, MINUS_ARM, NO_TEACHER, NO_TRAINING

_SHOWN = 6
_OTHERS = {  # end of the name of a difference -> what it is from
    DIFFERENCE: "dense",
    MINUS_ARM[NO_TRAINING]: "the same without training",
    MINUS_ARM[NO_TEACHER]: "the same without its teacher",
}


class Recorder:
    """Builds the records of a command.

    Args:
        cfg: The configuration.
        overrides: The overrides of the command line.
        corpus: The text that models are graded on.
        measures: The measures, by name.
        of_arms: Name of an arm -> its configuration, which is another than the command's.

    Attributes:
        runs: The runs folder.
        path: The file of records in it.
    """

    def __init__(
        self,
        cfg: DictConfig,
        *,
        overrides: Sequence[str],
        corpus: Corpus,
        measures: Mapping[str, Measure],
        of_arms: Mapping[str, DictConfig] = {},
    ) -> None:
        self.cfg = cfg
        self.overrides = overrides
        self.corpus = corpus
        self.measures = measures
        self.of_arms = of_arms
        self.runs = Path(cfg.runs)
        self.path = self.runs / record.FILE

    @cached_property
    def trivial(self) -> float:
        """Headline figure of the best guess without a model."""
        return trivial(self.measures.values(), self.corpus)

    def record(
        self,
        *,
        stage: str,
        technique: str,
        key: str,
        parent: str | None,
        kernel: str,
        metrics: dict[str, float],
        baseline: dict[str, float],
        baseline_key: str | None,
        seconds: dict[str, float],
        reused: bool,
        artifact: Path,
        curves: Path | None,
        scores: Mapping[str, str],
    ) -> record.Record:
        """The record of a measured model.

        Args:
            stage: Name of the stage.
            technique: Class of its technique.
            key: Key of the stage.
            parent: Key of the stage before it; ``None`` for a root.
            kernel: What executed in the linear layers.
            metrics: Figures of the model.
            baseline: Figures of the dense model; empty where there is none.
            baseline_key: Key of the dense model.
            seconds: Seconds that each part of the work took.
            reused: Whether the artifact is of an earlier run.
            artifact: Folder of the model.
            curves: File of the curves, if there is one.
            scores: Test -> file of its results question by question, relative to the runs folder.
        """
        return record.Record(
            time=datetime.now(UTC).isoformat(timespec="seconds"),
            name=self.cfg.name,
            stage=stage,
            key=key,
            parent=parent,
            technique=technique,
            seed=self.cfg.seed,
            overrides=secret.masked(self.overrides),
            config=secret.written(self.of_arms.get(stage, self.cfg)),
            kernel=kernel,
            headline=self.corpus.headline,
            direction=self.corpus.direction,
            metrics=metrics,
            directions=directions(metrics, self.measures.values()),
            baseline=baseline,
            baseline_key=baseline_key,
            trivial=self.trivial,
            seconds=seconds,
            reused=reused,
            artifact=os.path.relpath(artifact, self.runs),
            curves=None if curves is None else os.path.relpath(curves, self.runs),
            scores=dict(scores),
            **environment(),
        )


def score_store(cfg: DictConfig, device: torch.device, *, reuse: bool = True) -> ScoreStore:
    """Results of tests by the weights that were tested, in the runs folder of a command.

    Args:
        cfg: The configuration.
        device: Device that models are measured on.
        reuse: Whether results of earlier commands are used.
    """
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return ScoreStore(Path(cfg.runs), code=cache(lambda measure: keys.of_test(cfg, measure, name)), reuse=reuse)


def line(row: record.Record, runs: Path) -> str:
    """A line on a finished stage: quality, size, time, place; and one on how it differs from each it was held against.

    Args:
        row: The stage's record.
        runs: The runs folder.
    """
    parts = [_quality(row)] if row.headline in row.metrics else []
    if sample := sampled(row.metrics):
        parts.append(sample)
    parts += _of_tests(row)
    if cut_rows := row.metrics.get("task_cut_rows"):
        parts.append(f"{cut_rows:.0f} of {row.metrics['task_examples']:.0f} rows were cut at max_length")
    if "disk_mb" in row.metrics:
        ratio = f" ({row.metrics['disk_mb'] / row.baseline['disk_mb']:.2f}x dense)" if not row.dense else ""
        ratio += ", 0 % smaller: its zeros are stored" if not row.dense and unshrunk(figures(row)) else ""
        parts.append(f"{row.metrics['disk_mb']:.2f} MB{ratio}")
    if row.curves is not None and not row.reused:
        parts.append(f"{row.seconds['train']:.0f} s training")
    parts.append(f"{row.seconds['measure']:.0f} s measuring")
    shown = f"{row.stage}: {', '.join(parts)} -> {runs / row.artifact}"
    for end, other in _OTHERS.items():
        if compared := [f"{name} {words}" for name in row.metrics if (words := beside(name, row.metrics, end))]:
            shown += f"\n  minus {other}, on the same rows: {', '.join(compared)}"
    return shown


def _of_tests(row: record.Record) -> list[str]:
    """Figures of the tests beside the corpus's own: of lm-evaluation-harness's tasks, the first ``_SHOWN``."""
    tests = tuple(f"{test}_" for test in row.scores if test != "task")
    named = [name for name in row.directions if name in row.metrics and name.startswith(tests)]
    named = [name for name in named if not name.endswith(tuple(_OTHERS))]
    shown = [f"{name} {row.metrics[name]:.4f}" for name in named[:_SHOWN]]
    return [*shown, f"{len(named) - _SHOWN} figures more in its record"] if len(named) > _SHOWN else shown


def beside(name: str, metrics: Mapping[str, float], end: str = DIFFERENCE) -> str | None:
    """A figure less the dense model's with its interval, ``-0.03 [-0.05, -0.01]``; ``None`` where they were not paired.

    Where the interval holds 0, the two are not separable.

    Args:
        name: Name of the figure.
        metrics: Figures of the model.
        end: That of the name of the difference; by default of that from the dense model.
    """
    paired = name + end
    if not all(f"{paired}{end}" in metrics for end in ("", "_low", "_high")):
        return None
    low, high = metrics[f"{paired}_low"], metrics[f"{paired}_high"]
    return f"{metrics[paired]:+.3g} [{low:+.3g}, {high:+.3g}]" + (" not separable" if low <= 0 <= high else "")


def sampled(metrics: Mapping[str, float]) -> str | None:
    """How many rows of the split quality was measured on; ``None`` where it was all of them, or was not measured."""
    if (rows := metrics.get("task_split_rows")) is None:
        return None
    return f"on {metrics['task_examples']:.0f} of {rows:.0f} rows"


def _quality(row: record.Record) -> str:
    """The headline of a model, and how near it is to the dense one.

    Of a language model it is perplexity, or bits per byte where the dense model has other tokens; of any other the
    share of the dense gain over guessing that is kept, and where the dense model is untrained the plain values.
    """
    headline = leading(row.headline, [row.metrics, row.baseline or row.metrics])
    compared, values = compared_by(row.headline, headline), figures(row)
    shown = f"{headline} {fixed(row.metrics[headline], '.4f')}"
    if row.dense:
        guess = guess_in(headline, row)
        return f"{shown}, no better than guessing ({guess:.4g}): untrained" if untrained(row) else shown
    if compared in values:
        is_share = compared == KEPT
        return shown + (
            f" ({values[KEPT]:.0%} of the dense gain kept)"
            if is_share
            else f" ({fixed(values[compared], '.3f')}x dense)"
        )
    if untrained(row):
        dense = f"{row.baseline[row.headline]:.4f} is no better than guessing, {row.trivial:.4f}"
        return f"{shown} (dense is untrained: {dense})"
    return shown
