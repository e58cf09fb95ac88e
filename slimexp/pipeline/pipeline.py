"""Folds the stages of a run: each builds on the artifact of the one before, and is never done twice."""

import hashlib
import json
import logging
import os
import time
import warnings
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, OmegaConf

from slimexp import artifact
from slimexp.analysis.point import figures, unshrunk
from slimexp.config import secret
from slimexp.config.build import build
from slimexp.config.composition import chosen
from slimexp.data.base import Corpus
from slimexp.file.integrity import Damaged
from slimexp.host.console import printable
from slimexp.logger.base import Tracker
from slimexp.measure.base import Measure, Subject, directions, run, trivial
from slimexp.model.base import Family, Source
from slimexp.pipeline import machine, reference
from slimexp.pipeline.fit import curves, fit
from slimexp.record import record
from slimexp.record.stage import DENSE, START, Stage, at_work, code_version, key, shaping
from slimexp.technique.compatibility import check_stages
from slimexp.technique.finetune import Finetune

_SHAPES_FIGURES = ("measure", "data/grading", "kernel", "decode")
_SHAPES_RESULTS = (
    "allocation",
    "artifact",
    "budget",
    "calibration",
    "cut",
    "data",
    "format",
    "importance",
    "kernel/base",
    "loss",
    "model",
    "pattern",
    "quantizer",
    "rounding",
    "schedule",
    "smoothing",
    "technique",
    "weight",
)
FINAL = "final"  # what trackers file the last stage's figures under, whatever its name
_SHAPES_NOTHING = ("slimexp.pipeline.progress.", "slimexp.stopper.")  # callbacks


class Pipeline:
    """A run: a dense model and the stages that compress it.

    Args:
        cfg: The composed and checked configuration.
        overrides: What was changed on the command line, for the record.

    Constructing one builds and validates every stage, reads the corpus and looks at the models'
    configs, so that what is wrong is said before anything is trained.
    """

    def __init__(self, cfg: DictConfig, *, overrides: list[str]) -> None:
        _quiet()
        self.cfg = cfg
        self.overrides = overrides
        self.dtype: torch.dtype = getattr(torch, cfg.save_dtype)
        machine.check(cfg.trainer, cfg.callback)
        self.corpus: Corpus = build(cfg.data)
        self.source: Source = build(cfg.model)
        self.techniques: dict[str, Finetune] = {name: build(node) for name, node in cfg.pipeline.items()}
        self.measures: dict[str, Measure] = {name: build(node) for name, node in chosen(cfg.measure).items()}
        if taken := {DENSE, START, FINAL} & self.techniques.keys():
            raise ValueError(f"a stage cannot be called '{min(taken)}', which has a meaning: give it another name")
        named: Source | None = build(cfg.baseline) if cfg.baseline is not None else None
        for source in (self.source, named, *(technique.teacher for technique in self.techniques.values())):
            artifact.check_source(source)
        record.check_place(Path(cfg.runs) / record.FILE)
        config = self.source.validate(self.corpus.task, self.corpus.labels)
        reference.number_classes(self.corpus, config)
        techniques = list(self.techniques.values())
        self.dense = reference.dense(self.source, named, techniques[0], self.corpus)
        reference.check_teachers(self.techniques, self.source, self.dense, self.corpus)
        for position, technique in enumerate(techniques):
            technique.validate(config, before=techniques[:position])
        reference.check_unquantized(techniques, self.source, self.corpus.task)
        self.multiples = check_stages(self.techniques, self.source, self.corpus, config)
        for measure in self.measures.values():
            measure.validate(self.corpus.task)
        self.tracker: Tracker = build(cfg.logger)
        _ = self.corpus.splits
        self.stages = list(self._plan())
        for stage in self.stages:
            stage.check_place()

    def run(self) -> dict[str, float]:
        """Every stage in turn; returns the metrics of the last."""
        held = at_work(Path(self.cfg.runs))
        tracker = self.tracker
        tracker.start(name=self.cfg.name, config=secret.written(self.cfg))
        try:
            metrics: dict[str, float] = {}
            for stage in self.stages:
                with stage.alone():
                    trained = self._finish_training(stage, tracker)
                    if stage.name == START and self.dense is None:
                        continue  # random weights are not worth measuring
                    metrics = self._finish_measuring(stage, trained, tracker)
                tracker.summary(stage.name, metrics)
                tracker.artifact(stage.name, stage.artifact)
            tracker.summary(FINAL, metrics)
            return metrics
        finally:
            tracker.finish()
            held.close()

    @cached_property
    def reference(self) -> Stage:
        """What later stages are compared with and taught by: the dense model, once it is trained."""
        return self.stages[1 if self.dense is None else 0]

    @cached_property
    def baseline(self) -> Subject:
        """The reference, as deployed."""
        return self._subject(self.reference)

    def _plan(self) -> Iterator[Stage]:
        shared = {
            "data": _resolved(self.cfg.data),
            "text": _digest(self.corpus),
            "seed": self.cfg.seed,
            "save_dtype": self.cfg.save_dtype,
            "code": code_version(_SHAPES_RESULTS),
        }
        root = Path(self.cfg.runs) / self.cfg.name
        self.roots = {DENSE: self.dense} if self.dense is not None else {}
        if self.dense is not self.source:
            self.roots[START] = self.source
        keys = {}
        for name, source in self.roots.items():
            node = self.cfg.model if source is self.source else self.cfg.baseline or self.cfg.model
            content = {**shared, "model": _resolved(node), "root": name, "weights": source.fingerprint()}
            keys[name] = key(content)
            yield Stage(name, keys[name], None, root / f"{name}-{keys[name]}")
        parent = keys.get(START, keys.get(DENSE))
        training = {
            **shared,
            "dense": keys.get(DENSE),
            "compile": self.cfg.compile,
            "trainer": shaping(_resolved(self.cfg.trainer)),
            "callback": [node for node in _resolved(self.cfg.callback).values() if not _shapes_nothing(node)],
        }
        for name, technique in self.techniques.items():
            # more processes that load data give the same batches
            own_settings = {
                option: value for option, value in _resolved(self.cfg.pipeline[name]).items() if option != "workers"
            }
            content = {**training, "parent": parent, "stage": own_settings}
            if name in self.multiples:
                content["multiple"] = self.multiples[name]
            if technique.teacher is not None:
                content["teacher"] = technique.teacher.fingerprint()
            yield Stage(name, own := key(content), parent, root / f"{name}-{own}")
            parent = own

    def _finish_training(self, stage: Stage, tracker: Tracker) -> float | None:
        """Leave the stage's artifact on disk; seconds it took, ``None`` if it was there."""
        if self.cfg.resume and _is_finished(stage):
            stage.drop_checkpoint()  # left by a kill after the artifact was saved
            return None
        began = time.monotonic()
        if not self.cfg.resume:
            stage.drop_checkpoint()
        pl.seed_everything(self.cfg.seed, verbose=False)
        if stage.parent is None:
            source = self.roots[stage.name]
            history = artifact.manifest_of(source).get("stages", [])
            artifact.save(self._root(source), stage.artifact, dtype=self.dtype, stages=history, key=stage.key)
            return time.monotonic() - began
        previous = next(one for one in self.stages if one.key == stage.parent)
        technique = self.techniques[stage.name]
        technique.compute_device = machine.device(self.cfg.trainer)
        technique.prepare(artifact.load(previous.artifact), self.corpus, self._teacher(technique))
        if technique.steps:
            fit(technique, stage, self.cfg, tracker)
        coverage = technique.finish()
        history = artifact.read_manifest(previous.artifact)["stages"]
        done = {"name": stage.name, "technique": type(technique).__name__, "key": stage.key, "coverage": coverage}
        artifact.save(technique.family, stage.artifact, dtype=self.dtype, stages=[*history, done], key=stage.key)
        stage.drop_checkpoint()
        return time.monotonic() - began

    def _finish_measuring(self, stage: Stage, trained: float | None, tracker: Tracker) -> dict[str, float]:
        """Metrics of the stage, measured once, and its record."""
        wanted = {"measure": secret.written(self.cfg.measure), "code": code_version(_SHAPES_FIGURES)}
        if secret.hides(self.cfg.measure):  # another value is another measure, and only its digest is kept
            wanted["values"] = key(_resolved(self.cfg.measure))
        known = stage.measured()
        if known and trained is None and {**known, **wanted} == known:
            print(f"{stage.name}: finished before, reused from {stage.folder}")
            self._restore(stage, known)
            return dict(known["metrics"])
        began = time.monotonic()
        subject = self.baseline if stage is self.reference else self._subject(stage)
        metrics = run(self.measures, subject, self.baseline, self.corpus) | artifact.reached(stage.artifact)
        seconds = {"train": trained or 0.0, "measure": time.monotonic() - began}
        if stage is self.reference:
            self.dense_metrics = metrics
        ran, rows = subject.kernel, curves(stage)
        # The record first: a kill in between repeats the measuring, and readers keep the later of two records.
        row = self._record(stage, metrics, seconds, trained is None, ran)
        record.append(Path(self.cfg.runs) / record.FILE, row)
        print(_line(row, Path(self.cfg.runs)))
        stage.write_measured({**wanted, "metrics": metrics, "record": json.loads(row.to_json()), "curves": rows})
        return metrics

    def _restore(self, stage: Stage, known: Mapping[str, Any]) -> None:
        """Write again what a finished stage lost beside its artifact: its curves, and its line in the records."""
        if known.get("curves") is not None:
            stage.restore_curves(known["curves"])
        if "record" not in known:  # an older slimexp kept none
            return
        try:
            row = record.Record.from_json(json.dumps(known["record"]))
        except ValueError as error:  # an older slimexp kept what no reader takes
            print(f"{stage.name}: its record is damaged ({printable(error)}): not appended again", flush=True)
            return
        if record.append_again(Path(self.cfg.runs) / record.FILE, row):
            print(f"{stage.name}: its record was lost, appended again")

    def _record(
        self, stage: Stage, metrics: dict[str, float], seconds: dict[str, float], reused: bool, ran: str
    ) -> record.Record:
        runs = Path(self.cfg.runs)
        return record.Record(
            time=datetime.now(UTC).isoformat(timespec="seconds"),
            name=self.cfg.name,
            stage=stage.name,
            key=stage.key,
            parent=stage.parent,
            technique=type(self.techniques[stage.name]).__name__ if stage.parent else stage.name,
            seed=self.cfg.seed,
            overrides=secret.masked(self.overrides),
            config=secret.written(self.cfg),
            kernel=ran,
            headline=self.corpus.headline,
            direction=self.corpus.direction,
            metrics=metrics,
            directions=directions(metrics, self.measures.values()),
            baseline=self.dense_metrics,
            baseline_key=self.reference.key,
            trivial=self.trivial,
            seconds=seconds,
            reused=reused,
            artifact=str(stage.artifact.relative_to(runs)),
            curves=str(stage.curves.relative_to(runs)) if stage.curves.exists() else None,
            **record.environment(),
        )

    @cached_property
    def dense_metrics(self) -> dict[str, float]:
        """Metrics of the dense model, from an earlier run of it."""
        return dict(self.reference.measured()["metrics"])

    @cached_property
    def trivial(self) -> float:
        """Headline of the best guess without a model."""
        return trivial(self.measures.values(), self.corpus)

    def _subject(self, stage: Stage) -> Subject:
        return Subject(artifact.served(stage.artifact, machine.device(self.cfg.trainer)), stage.artifact)

    def _teacher(self, technique: Finetune) -> Family | None:
        if not technique.needs_teacher:
            return None
        if technique.teacher is not None:
            return self._load(technique.teacher)
        return artifact.deployed(self.reference.artifact)

    def _root(self, source: Source) -> Family:
        """The model as ``source`` gives it; masks and quantizers of an artifact stay in place."""
        if artifact.manifest_of(source).get("attachments"):
            return artifact.load(Path(source.folder))  # type: ignore[attr-defined]
        return self._load(source)

    def _load(self, source: Source) -> Family:
        return source.load(task=self.corpus.task, texts=self.corpus.texts, labels=self.corpus.labels)


def _is_finished(stage: Stage) -> bool:
    """Whether its artifact is there and whole."""
    if not os.path.lexists(stage.artifact):
        return False
    try:
        artifact.check(stage.artifact, key=stage.key)
    except Damaged as error:
        stage.set_aside(stage.artifact, error)
        return False
    return True


def _quiet() -> None:
    """Libraries that greet and advertise say nothing below a warning."""
    for name in ("pytorch_lightning", "lightning_fabric", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for untrue in (
        "dataloader is not resumable",  # training_batches is
        "does not have many workers",  # tokenizing takes a hundredth of a step
        r"Found \d+ module.s. in eval mode",  # on purpose where dropout is off
        "isinstance.treespec, LeafSpec.. is deprecated",  # between Lightning and torch
    ):
        warnings.filterwarnings("ignore", message=f".*{untrue}")


def _line(row: record.Record, runs: Path) -> str:
    """A finished stage in one line."""
    parts = [f"{row.headline} {row.metrics[row.headline]:.4f}"] if row.headline in row.metrics else []
    if not row.dense and (kept := record.kept(row)) is not None:
        parts[0] += f" ({kept:.0%} of the dense gain kept)"
    if cut := row.metrics.get("task_cut_rows"):
        parts.append(f"{cut:.0f} of {row.metrics['task_examples']:.0f} rows were cut at max_length")
    if "disk_mb" in row.metrics:
        ratio = f" ({row.metrics['disk_mb'] / row.baseline['disk_mb']:.2f}x dense)" if not row.dense else ""
        ratio += ", 0 % smaller: its zeros are stored" if not row.dense and unshrunk(figures(row)) else ""
        parts.append(f"{row.metrics['disk_mb']:.2f} MB{ratio}")
    if row.curves is not None and not row.reused:
        parts.append(f"{row.seconds['train']:.0f} s training")
    parts.append(f"{row.seconds['measure']:.0f} s measuring")
    return f"{row.stage}: {', '.join(parts)} -> {runs / row.artifact}"


def _resolved(node: DictConfig) -> Any:
    return OmegaConf.to_container(node, resolve=True)


def _digest(corpus: Corpus) -> str:
    """Digest of the text itself: a file can change under the same path."""
    digest = hashlib.sha256()
    for split, examples in corpus.splits.items():
        for example in examples:
            digest.update(repr((split, example.source, example.target, example.label)).encode())
    return digest.hexdigest()


def _shapes_nothing(callback: Mapping[str, Any]) -> bool:
    return str(callback.get("_target_")).startswith(_SHAPES_NOTHING)
