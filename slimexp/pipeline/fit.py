"""The work of one stage: a model is loaded, trained and saved as an artifact.

A training that was stopped goes on from its last checkpoint.
"""

import math
import os
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig

from slimexp import artifact
from slimexp.data.base import Corpus
from slimexp.file import integrity
from slimexp.file.integrity import Damaged
from slimexp.host import process_group
from slimexp.host.console import Terminated, printable
from slimexp.host.progress import working
from slimexp.logger.base import Tracker
from slimexp.logger.curves import drop_from
from slimexp.model.base import Family, Source
from slimexp.pipeline import completions, machine, teacher_pass
from slimexp.pipeline.checkpoint import Checkpoint, Position, check
from slimexp.record.stage import Stage
from slimexp.serialization import manifest
from slimexp.technique.finetune import Finetune
from slimexp.technique.sharding import FSDP
from slimexp.technique.training import Execution


def save_root(source: Source, stage: Stage, corpus: Corpus, cfg: DictConfig) -> None:
    """Save the model of ``source`` as the artifact of a root, a stage that no other comes before.

    Args:
        source: Where the model comes from.
        stage: The root.
        corpus: Text and labels that the model is loaded for.
        cfg: The run's configuration.
    """
    pl.seed_everything(cfg.seed, verbose=False)
    if cfg.resume and any(artifact.share(other, stage.artifact) for other in _made_before(stage)):
        return
    history = source.history()
    if history.artifact is not None and history.attachments:  # so that masks and quantizers stay attached
        family = artifact.load(history.artifact)
    else:
        family = source.load_stored(task=corpus.task, texts=corpus.texts, labels=corpus.labels)
    artifact.save(family, stage.artifact, dtype=_saved_type(cfg), stages=history.stages, key=stage.key)


def _made_before(stage: Stage) -> Iterator[Path]:
    """Whole artifacts of the same key in the folders of other runs beside this one: the same model."""
    run = stage.folder.parent
    for other in sorted(run.parent.glob(f"*/{stage.folder.name}/{stage.artifact.name}")):
        if other.parent.parent == run or any(path.is_symlink() for path in (other, *other.parents[:2])):
            continue
        with suppress(Damaged):
            manifest.check(other, key=stage.key)
            if manifest.goes_on(other):
                yield other


def train(
    technique: Finetune,
    stage: Stage,
    *,
    previous: Path,
    reference: Path,
    corpus: Corpus,
    code: str,
    cfg: DictConfig,
    tracker: Tracker,
) -> None:
    """Compress the model of one artifact and save the result as another.

    Args:
        technique: The stage's technique.
        stage: The stage, whose folder holds checkpoint, curves and artifact.
        previous: Artifact of the stage before it.
        reference: Artifact of the dense model, which is the teacher where the technique names none.
        corpus: Text to train on.
        code: Digest of the code by which a teacher writes other text, where one does.
        cfg: The run's configuration.
        tracker: Logger of the training.

    Raises:
        ValueError: The technique cannot reach its target on this model, and as ``fit``.
    """
    pl.seed_everything(cfg.seed, verbose=False)
    technique.compute_device = machine.device(cfg.trainer)
    technique.choice = stage.choice if technique.steps else None
    technique.execution = Execution(pad_to=cfg.trainer.pad_to)
    with working(f"{stage.name}: preparing"):
        shards = process_group.size() > 1 and cfg.trainer.get("strategy") == FSDP
        technique.mapped = shards and technique.maps_weights
        family = artifact.load(previous, keep_type=technique.keeps_stored_type or technique.mapped)
        keep_type = shards or str(cfg.trainer.get("precision")).startswith("bf16")
        load = cache(lambda: _teacher(technique, reference, corpus, keep_type=keep_type))
        read = completions.corpus_of(
            technique, corpus, teacher=load, reference=reference, runs=Path(cfg.runs), code=code,
            device=technique.compute_device, keep_type=keep_type,
        )  # fmt: skip
        teacher = load() if technique.needs_teacher else None
        technique.prepare(family, read, teacher)
        del family, teacher, load  # a technique may go on with another model
    if technique.steps:
        if technique.cache is not None:
            teacher_pass.keep(technique, cfg)
        fit(technique, stage, cfg, tracker)
        technique.gather()
    process_group.by_first(lambda: _finish(technique, stage, previous, cfg))


def _finish(technique: Finetune, stage: Stage, previous: Path, cfg: DictConfig) -> None:
    """Save what a technique has made."""
    with working(f"{stage.name}: finishing"):
        coverage = technique.finish() | technique.cache_figures
    history = artifact.read_manifest(previous)["stages"]
    entry = {"name": stage.name, "technique": type(technique).__name__, "key": stage.key, "coverage": coverage}
    artifact.save(
        technique.family, stage.artifact, dtype=_saved_type(cfg), stages=[*history, entry], key=stage.key,
        device=technique.compute_device,
    )  # fmt: skip


def fit(technique: Finetune, stage: Stage, cfg: DictConfig, tracker: Tracker) -> None:
    """Train a prepared technique to its last step, from the stage's checkpoint on if there is one.

    Args:
        technique: The stage's technique, after ``prepare``.
        stage: The stage, whose folder holds checkpoint and curves.
        cfg: The run's configuration.
        tracker: Logger of the training.

    Raises:
        ValueError: A callback stopped the training before its last step, or the checkpoint does not fit the model.
        KeyboardInterrupt: A signal stopped the training.
    """
    checkpoint = Checkpoint(
        path=stage.checkpoint,
        key=stage.key,
        curves=stage.curves,
        every_seconds=cfg.checkpoint.every_seconds,
        every_steps=cfg.checkpoint.every_steps,
        share=cfg.checkpoint.share,
    )
    trainer = machine.trainer(
        cfg.trainer,
        steps=technique.steps,
        accumulate=technique.accumulate,
        callbacks=[*machine.callbacks(cfg.trainer, cfg.callback), checkpoint],
        loggers=tracker.loggers(stage.name, stage.curves) if process_group.is_first() else (),
        folder=stage.folder,
        idle_parameters=technique.idle_parameters,
    )
    trainer.suit(technique)
    position = process_group.by_first(lambda: _recover(stage))
    resume = stage.checkpoint if position is not None else None
    if position is not None:
        print(f"{stage.name}: resuming at step {position.step} of {technique.steps}, from {resume}", flush=True)
    print(f"{stage.name}: training {technique.steps} steps of {_rows(technique)}")
    pl.seed_everything(cfg.seed, verbose=False)
    # a debugging aid of torch's deterministic mode, which costs time at every step
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    try:
        with trainer.attention_kernels():
            trainer.fit(technique, ckpt_path=resume, weights_only=True)
        if trainer.global_step < technique.steps:  # by a Timer, EarlyStopping or the like
            raise ValueError(
                f"{stage.name} was stopped at step {trainer.global_step} of {technique.steps} and is not finished: "
                f"the same command goes on from there, or set pipeline.{stage.name}.steps to fewer"
            )
    except RuntimeError as error:
        if resume is None or "loading state_dict" not in str(error):
            raise
        raise ValueError(_set_aside(stage, resume)) from error
    except SystemExit:
        if not trainer.interrupted:
            raise
        if process_group.is_first():
            print(_stopped(stage.name, trainer.global_step, technique.steps, checkpoint.kept_step), flush=True)
        # Lightning makes exit status 1 of Ctrl-C and SIGTERM
        raise (Terminated if trainer.received_sigterm else KeyboardInterrupt) from None
    finally:
        technique.release()


def _stopped(stage: str, step: int, steps: int, kept: int) -> str:
    """The line on a training that a signal stopped, whose last checkpoint is of step ``kept``; 0 for none.

    None is written there and then: a signal may fall in the middle of a step, whose weights are changed in part.
    """
    way_on = (
        f"from step {kept}" if kept else "from its first step, for no checkpoint was due (checkpoint.every_seconds)"
    )
    return f"{stage}: stopped after step {step} of {steps}; the same command goes on {way_on}"


def curves(stage: Stage) -> str | None:
    """Text of a stage's curves, one row per logged step; ``None`` where there is no file.

    Rows that are damaged are removed from the file first.
    """
    path = stage.curves
    if integrity.is_other_kind(path):
        stage.set_aside(path, "it is no file", then="its rows are lost")
    if not path.exists():
        return None
    if damage := drop_from(path, math.inf):
        _report_lost_rows(stage, damage)
    return path.read_text()


def _teacher(technique: Finetune, reference: Path, corpus: Corpus, *, keep_type: bool = False) -> Family:
    """The teacher; in the type that it is stored in, or in float32."""
    if technique.teacher is None:
        return artifact.deployed(reference, keep_type=keep_type)
    load = technique.teacher.load_stored if keep_type else technique.teacher.load
    return load(task=corpus.task, texts=corpus.texts, labels=corpus.labels)


def _saved_type(cfg: DictConfig) -> torch.dtype:
    dtype: torch.dtype = getattr(torch, cfg.save_dtype)
    return dtype


def _report_lost_rows(stage: Stage, reason: str) -> None:
    """Print that rows of the curves are lost, for which no training is repeated."""
    print(
        f"{stage.name}: its {stage.curves.name} is damaged ({printable(reason)}): the rows that can be read are kept",
        flush=True,
    )


def _set_aside(stage: Stage, checkpoint: Path) -> str:
    """Set a checkpoint of another model aside; returns the message on it."""
    if process_group.is_first():
        stage.set_aside(checkpoint, "its weights are of another model", then="the next run of the command trains anew")
    return f"{stage.name}: {checkpoint} does not fit the model, and is set aside: repeat the command"


def _recover(stage: Stage) -> Position | None:
    """Where the stage's checkpoint is, if it has a whole one; rows of its curves that are later are removed."""
    path = stage.curves
    if integrity.is_other_kind(path):
        stage.set_aside(path, "it is no file", then="written anew")
    if not os.path.lexists(stage.checkpoint):
        path.unlink(missing_ok=True)
        return None
    try:
        position = check(stage.checkpoint, stage.key)
    except Damaged as error:
        stage.set_aside(stage.checkpoint, error)
        path.unlink(missing_ok=True)
        return None
    size = path.stat().st_size if path.exists() else 0
    expected = position.curves_bytes
    lost = drop_from(path, position.step) or (f"{size} of {expected} bytes" if size < expected else None)
    if lost:
        _report_lost_rows(stage, lost)
    return position


def _rows(technique: Finetune) -> str:
    """How many rows a step reads, in words: all that there are where a batch is to have more."""
    asked, there = technique.batch_size, len(technique.corpus.splits["train"])
    if technique.packs or asked <= there:
        return f"{asked * technique.accumulate} rows"
    return f"{there * technique.accumulate} rows, for the text has {there} and batch_size is {asked}"
