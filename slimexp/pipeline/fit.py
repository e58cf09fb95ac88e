"""The work of one stage: what it starts from, its training, the artifact that it leaves.

A training goes on from the checkpoint that a stopped process left.
"""

import math
import os
from pathlib import Path

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig

from slimexp import artifact
from slimexp.data.base import Corpus
from slimexp.file import integrity
from slimexp.file.integrity import Damaged
from slimexp.host import garbage_collector
from slimexp.host.console import Terminated, printable
from slimexp.logger.base import Tracker
from slimexp.logger.curves import drop_from
from slimexp.model.base import Family, Source
from slimexp.pipeline import machine
from slimexp.pipeline.checkpoint import Checkpoint, check
from slimexp.record.stage import Stage
from slimexp.technique.finetune import Finetune


def save_root(source: Source, stage: Stage, corpus: Corpus, cfg: DictConfig) -> None:
    """Leave the model that ``source`` gives as the artifact of a stage that no other comes before."""
    pl.seed_everything(cfg.seed, verbose=False)
    history = source.history()
    if history.artifact is not None and history.attachments:  # masks and quantizers stay in place
        family = artifact.load(history.artifact)
    else:
        family = _load(source, corpus)
    artifact.save(family, stage.artifact, dtype=_saved_type(cfg), stages=history.stages, key=stage.key)


def train(
    technique: Finetune,
    stage: Stage,
    *,
    previous: Path,
    reference: Path,
    corpus: Corpus,
    cfg: DictConfig,
    tracker: Tracker,
) -> None:
    """Compress the model of one artifact, and leave another.

    Args:
        technique: The stage's technique.
        stage: Where its checkpoint, curves and artifact lie.
        previous: Artifact of the stage before it.
        reference: Artifact of the dense model, which teaches where the technique names no teacher of its own.
        corpus: What the model must serve.
        cfg: The run's configuration.
        tracker: What shows the training.

    Raises:
        ValueError: As ``fit``, or the technique cannot do what it should.
    """
    pl.seed_everything(cfg.seed, verbose=False)
    technique.workplace = machine.device(cfg.trainer)
    technique.prepare(artifact.load(previous), corpus, _teacher(technique, reference, corpus))
    if technique.steps:
        fit(technique, stage, cfg, tracker)
    coverage = technique.finish()
    history = artifact.read_manifest(previous)["stages"]
    done = {"name": stage.name, "technique": type(technique).__name__, "key": stage.key, "coverage": coverage}
    artifact.save(technique.family, stage.artifact, dtype=_saved_type(cfg), stages=[*history, done], key=stage.key)


def fit(technique: Finetune, stage: Stage, cfg: DictConfig, tracker: Tracker) -> None:
    """Train what a stage has prepared.

    Args:
        technique: The stage's technique, prepared.
        stage: Where its checkpoint and curves lie.
        cfg: The run's configuration.
        tracker: What shows the training.

    Raises:
        ValueError: A callback stopped it before its last step.
    """
    checkpoint = Checkpoint(
        path=stage.checkpoint,
        key=stage.key,
        curves=stage.curves,
        every_seconds=cfg.checkpoint.every_seconds,
        every_steps=cfg.checkpoint.every_steps,
    )
    trainer = machine.trainer(
        cfg.trainer,
        steps=technique.steps,
        accumulate=technique.accumulate,
        callbacks=[*machine.callbacks(cfg.trainer, cfg.callback), checkpoint],
        loggers=tracker.loggers(stage.name, stage.curves),
        folder=stage.folder,
    )
    if cfg.compile:
        technique.compile()
    resume = stage.checkpoint if _resumes(stage) else None
    if resume:
        print(f"{stage.name}: resuming from {resume}")
    print(f"{stage.name}: training {technique.steps} steps of {technique.batch_size * technique.accumulate} rows")
    pl.seed_everything(cfg.seed, verbose=False)
    # a help for finding bugs that costs every step
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    try:
        with garbage_collector.frozen():
            trainer.fit(technique, ckpt_path=resume, weights_only=True)
        if trainer.global_step < technique.steps:  # by a Timer, EarlyStopping or the like
            checkpoint.write(trainer)
            raise ValueError(
                f"{stage.name} was stopped at step {trainer.global_step} of {technique.steps} and is not finished: "
                f"the same command goes on from there, or set pipeline.{stage.name}.steps to fewer"
            )
    except RuntimeError as error:
        if resume is None or "loading state_dict" not in str(error):
            raise
        stage.set_aside(resume, "its weights are of another model", then="the next run of the command trains anew")
        raise ValueError(
            f"{stage.name}: {resume} does not fit the model, and is set aside: repeat the command"
        ) from error
    except SystemExit:
        if not trainer.interrupted:
            raise
        # Lightning makes exit status 1 of Ctrl-C and SIGTERM
        raise (Terminated if trainer.received_sigterm else KeyboardInterrupt) from None


def curves(stage: Stage) -> str | None:
    """Rows of the curves that can be read; ``None`` where there are none."""
    path = stage.curves
    if integrity.is_other_kind(path):
        stage.set_aside(path, "it is no file", then="its rows are lost")
    if not path.exists():
        return None
    if wrong := drop_from(path, math.inf):
        _say_lost(stage, wrong)
    return path.read_text()


def _teacher(technique: Finetune, reference: Path, corpus: Corpus) -> Family | None:
    if not technique.needs_teacher:
        return None
    return artifact.deployed(reference) if technique.teacher is None else _load(technique.teacher, corpus)


def _load(source: Source, corpus: Corpus) -> Family:
    return source.load(task=corpus.task, texts=corpus.texts, labels=corpus.labels)


def _saved_type(cfg: DictConfig) -> torch.dtype:
    dtype: torch.dtype = getattr(torch, cfg.save_dtype)
    return dtype


def _say_lost(stage: Stage, why: str) -> None:
    """A training is too dear to repeat it for what it has shown."""
    print(
        f"{stage.name}: its {stage.curves.name} is damaged ({printable(why)}): the rows that can be read are kept",
        flush=True,
    )


def _resumes(stage: Stage) -> bool:
    """Whether the checkpoint of ``stage`` is whole; its curves are left with what was logged before it."""
    path = stage.curves
    if integrity.is_other_kind(path):
        stage.set_aside(path, "it is no file", then="written anew")
    if not os.path.lexists(stage.checkpoint):
        path.unlink(missing_ok=True)
        return False
    try:
        held = check(stage.checkpoint, stage.key)
    except Damaged as error:
        stage.set_aside(stage.checkpoint, error)
        path.unlink(missing_ok=True)
        return False
    size = path.stat().st_size if path.exists() else 0
    lost = drop_from(path, held.step) or (f"{size} of {held.curves} bytes" if size < held.curves else None)
    if lost:
        _say_lost(stage, lost)
    return True
