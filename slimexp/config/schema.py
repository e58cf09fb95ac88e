"""Root keys of a run and of an evaluation, and the rules that hold for their values."""

import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import MISSING, DictConfig, OmegaConf, ValueNode
from omegaconf.errors import OmegaConfBaseException

_LONGEST = 128  # bytes of a name: what W&B takes, and half of what a folder may have
_TAKEN = (  # in the runs folder
    "completions",
    "multirun.yaml",
    "pareto.html",
    "pareto.png",
    "records.jsonl",
    "report.csv",
    "report.json",
    "sweep",
    "teacher_cache",
    "wandb",
)
_FLOATS = ("float16", "bfloat16", "float32", "float64")
# Keys that the pipeline sets, or that would change the meaning of a stage's steps -> what to set instead.
_NOT_OF_TRAINER = {
    "accumulate_grad_batches": "set pipeline.<stage>.accumulate",
    "barebones": "leave it out: stages are logged and kept",
    "callbacks": "add +callback.<name>={_target_: ...}",
    "default_root_dir": "set runs and name",
    "fast_dev_run": "set pipeline.<stage>.steps=1",
    "gradient_clip_algorithm": "set pipeline.<stage>.clip_norm",
    "gradient_clip_val": "set pipeline.<stage>.clip_norm",
    "limit_train_batches": "set pipeline.<stage>.steps",
    "logger": "choose logger=<option>",
    "max_epochs": "set pipeline.<stage>.steps",
    "max_steps": "set pipeline.<stage>.steps",
    "min_epochs": "set pipeline.<stage>.steps",
    "min_steps": "set pipeline.<stage>.steps",
    "overfit_batches": "set data.splits.max_train",
}


@dataclass
class CheckpointInterval:
    """Interval between checkpoints of an unfinished stage; all parts of it must have passed.

    Attributes:
        every_steps: Smallest number of optimizer steps between two checkpoints.
        every_seconds: Smallest number of seconds between two checkpoints.
        share: Largest share of the time that training may stand still for checkpoints, by what the last one took;
            ``None`` for no limit.
    """

    every_steps: int = MISSING
    every_seconds: float = MISSING
    share: float | None = MISSING


@dataclass
class Run:
    """Root keys of a run.

    Attributes:
        seed: Seed of every random choice.
        runs: Folder of all runs.
        name: Name of this run's folder below ``runs``.
        save_dtype: Floating-point type of saved weights, a torch name such as ``bfloat16``.
        resume: Whether finished stages and checkpoints are used again.
        keep_training_state: Whether stages keep what the next one went on from when all are finished. Without it they
            are made anew where another stage is to follow them.
        measure_all: Whether stages are measured that others go on from, beside the dense model and the last.
        arms: Whether a stage that learns from a teacher is held against the same without its teacher, and without
            training, see ``pipeline.arms``.
        checkpoint: How often an unfinished stage writes a checkpoint.
        model: Source of the model.
        baseline: Dense model that stages are compared with and distilled from; ``None`` for ``model`` itself.
        data: Corpus of the training and of the grading.
        pipeline: Stage name -> technique, in order.
        trainer: Settings of the Lightning trainer: devices, precision, strategy.
        callback: Name -> Lightning callback.
        logger: Tracker that shows the run while it goes on.
        measure: Name -> measure of every finished stage.
    """

    seed: int = MISSING
    runs: str = MISSING
    name: str = MISSING
    save_dtype: str = MISSING
    resume: bool = MISSING
    keep_training_state: bool = True  # a config of before this key kept it
    measure_all: bool = True  # of before this key too
    arms: bool = False  # of before this key too
    checkpoint: CheckpointInterval = field(default_factory=CheckpointInterval)
    model: Any = MISSING
    baseline: Any = None
    data: Any = MISSING
    pipeline: dict[str, Any] = field(default_factory=dict)
    trainer: Any = MISSING
    callback: dict[str, Any] = field(default_factory=dict)
    logger: Any = None
    measure: dict[str, Any] = field(default_factory=dict)


@dataclass
class BudgetLimits:
    """What a model may cost: a number each, or a list of as many numbers each, for as many models.

    Attributes:
        disk_mb: Megabytes (10^6 bytes) of the files that are deployed.
        latency_ms: Milliseconds of the request of ``measure.latency``, on the device of ``trainer``.
        parameters: Number of parameters.
    """

    disk_mb: Any = None
    latency_ms: Any = None
    parameters: Any = None


@dataclass
class SearchSettings:
    """How a model is searched for; ``conf/search.yaml`` says what each is.

    Attributes:
        rows: Rows of validation text that choices are scored on, which nothing else reads.
        graded: Rows of validation text that trials are graded on.
        remove: Whether whole blocks may go.
        heads: Shares of the groups of heads that may stay, beside all.
        ffn: Shares of the neurons that may stay, beside all.
        attention_rank: Ranks of linear maps that may be in the place of attention, block by block.
        ffn_rank: The same in the place of feed-forward layers.
        uniform: Whether all blocks keep as many heads and neurons.
        hidden: Shares of the channels of the residual stream that may stay, beside all.
        experts: Shares of the experts of a mixture that may stay, beside all.
        bits: Widths of weights; 16 for floats.
        expert_bits: Widths of the weights of experts; 16 for floats.
        group_size: Group sizes that blocks may be rounded in, beside that of the stage that rounds.
        apart: Least number of blocks in which two solutions differ by more than bits.
        solutions: Solutions of each budget, which are scored as a whole.
        steps: Steps of evolution around the best of these, each a score of a whole model.
        trials: Of each budget, those that are trained for a short time.
        share: Share of the steps of the last stage that they are trained for.
        promoted: Of each budget, those that are trained in full.
        pairs: Pairs of requests that a latency is measured by.
        workers: Trainings at a time; ``None`` for two on a CPU, and one on a GPU.
        threads: Threads of torch in each; ``None`` for all cores divided among them.
        pool: Where the workers are.
    """

    rows: int = MISSING
    graded: int = MISSING
    remove: bool = MISSING
    heads: list[float] = MISSING
    ffn: list[float] = MISSING
    attention_rank: list[int] = MISSING
    ffn_rank: list[int] = MISSING
    uniform: bool = MISSING
    hidden: list[float] = MISSING
    experts: list[float] = MISSING
    bits: list[int] = MISSING
    expert_bits: list[int] = MISSING
    group_size: list[int] = MISSING
    apart: int = MISSING
    solutions: int = MISSING
    steps: int = MISSING
    trials: int = MISSING
    share: float = MISSING
    promoted: int = MISSING
    pairs: int = MISSING
    workers: int | None = MISSING
    threads: int | None = MISSING
    pool: Any = MISSING


@dataclass
class Search(Run):
    """Root keys of a search; it is merged into those of a run, whose values stay.

    Attributes:
        budget: What the model may cost.
        search: How it is searched for.
    """

    keep_training_state: bool = MISSING
    measure_all: bool = MISSING
    arms: bool = MISSING
    baseline: Any = MISSING
    logger: Any = MISSING
    budget: BudgetLimits = field(default_factory=BudgetLimits)
    search: SearchSettings = field(default_factory=SearchSettings)


@dataclass
class Evaluation:
    """Root keys of an evaluation.

    Attributes:
        name: Name of the record.
        runs: Folder whose records the new one joins.
        seed: Seed of every random choice.
        device: Device that the model runs on, a torch name such as ``cpu`` or ``cuda``.
        model: Source of the model that is measured.
        baseline: Dense model that it is compared with; ``None`` for itself, if it was not compressed.
        data: Corpus of the grading.
        measure: Name -> measure.
    """

    name: str = MISSING
    runs: str = MISSING
    seed: int = MISSING
    device: str = MISSING
    model: Any = MISSING
    baseline: Any = None
    data: Any = MISSING
    measure: dict[str, Any] = field(default_factory=dict)


def faults(cfg: DictConfig) -> Iterator[str]:
    """Faults of root keys, one line each; a value of the wrong type is left to the schema."""
    for key, rule in _RULES.items():
        try:
            value = OmegaConf.select(cfg, key)
        except OmegaConfBaseException:
            continue  # reported by itself
        if value is not None and (why := rule(value)):
            yield f"{key} {why}, got {value!r}"
    yield from _empty_paths(cfg)
    if isinstance(trainer := cfg.get("trainer"), DictConfig):
        for key, instead in _NOT_OF_TRAINER.items():
            if key in trainer and not (key == "logger" and trainer[key] is False):
                yield f"trainer.{key} is not for the trainer to say: {instead}"


def expand(cfg: DictConfig) -> None:
    """Replace the ``~`` at the beginning of paths by the home folder, in place: shells do not expand it after ``=``."""
    for key in list(cfg):
        value = cfg._get_node(key)
        if isinstance(value, DictConfig) and not (value._is_none() or value._is_missing() or value._is_interpolation()):
            expand(value)
        elif str(key) in _PATHS and isinstance(value, ValueNode) and str(text := value._value()).startswith("~"):
            cfg[key] = home(text)


def _empty_paths(cfg: DictConfig, above: str = "") -> Iterator[str]:
    """One line for each empty path: the file system takes it for the folder that the program runs in."""
    for key in list(cfg):
        value = cfg._get_node(key)
        if isinstance(value, DictConfig) and not (value._is_none() or value._is_missing() or value._is_interpolation()):
            yield from _empty_paths(value, f"{above}{key}.")
            continue
        text = value._value() if str(key) in _PATHS and isinstance(value, ValueNode) else None
        if isinstance(text, str) and not text.strip() and key not in _RULES:  # which say it of ``runs``
            yield f"{above}{key} must be a path, got {text!r}: write . for this folder"


def home(path: str) -> str:
    """``path``, with the home folder for its ``~``."""
    return os.path.expanduser(path)


def unfit_name(name: str) -> str:
    """Why ``name`` is no name of a folder; empty if it is."""
    if not name.strip(". "):
        return "must be the name of a folder"
    if name != name.strip() or any(not letter.isprintable() for letter in name) or re.search(r"[/\\]", name):
        return "must be one folder's name, without slashes, control characters and blanks at its ends"
    if len(name.encode()) > _LONGEST:
        return f"must have at most {_LONGEST} bytes (in UTF-8, where ä takes 2)"
    if name in _TAKEN:
        return f"must not be {', '.join(_TAKEN[:-1])} or {_TAKEN[-1]}, which the runs folder has of its own"
    return ""


def _unfit_runs(runs: str) -> str:
    if not runs.strip() or any(not letter.isprintable() for letter in runs):
        return "must be a folder, without control characters"
    path = Path(home(runs))
    if any(part.exists() and not part.is_dir() for part in (path, *path.parents)):
        return "must be a folder, and a file has that name"
    return ""


def _unfit_type(name: str) -> str:
    return "" if name in _FLOATS else f"must be a torch floating-point type ({', '.join(_FLOATS)})"


def _below(least: float) -> Any:
    def why(value: float) -> str:
        return f"must be >= {least}" if value < least and math.isfinite(value) else ""

    return why


def _no_share(value: float) -> str:
    return "" if 0 < value <= 1 or not math.isfinite(value) else "must be in (0, 1], or null for no limit"


_PATHS = ("path", "runs", "folder")
_RULES = {
    "name": unfit_name,
    "runs": _unfit_runs,
    "save_dtype": _unfit_type,
    "checkpoint.every_steps": _below(1),
    "checkpoint.every_seconds": _below(0),
    "checkpoint.share": _no_share,
}
