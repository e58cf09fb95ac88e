"""Runs the stages of a pipeline: each starts from the artifact of the one before, and none is done twice."""

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from slimexp import artifact
from slimexp.config import secret
from slimexp.host import process_group
from slimexp.host.console import printable
from slimexp.host.garbage_collector import frozen, release
from slimexp.host.progress import working
from slimexp.logger.base import Tracker
from slimexp.measure.base import Stored, Subject, run
from slimexp.measure.by_question import ByQuestion
from slimexp.measure.score_store import ScoreStore
from slimexp.pipeline import capacity, key, launch, machine, preflight, resources, teacher_pass
from slimexp.pipeline.finished import is_finished, is_last, is_there
from slimexp.pipeline.fit import curves, save_root, train
from slimexp.pipeline.recording import Recorder, line, score_store
from slimexp.pipeline.summary import summary
from slimexp.record import record
from slimexp.record.schema import MINUS_ARM
from slimexp.record.stage import DENSE, START, Stage, at_work
from slimexp.technique.finetune import Finetune


class Pipeline:
    """A run: a dense model and the stages that compress it.

    Constructing one builds and validates every stage, reads the corpus and the models' configs, so that errors are
    raised before anything is trained.

    Args:
        cfg: The composed and checked configuration.
        overrides: The overrides of the command line, for the records.

    Raises:
        ValueError: The run cannot be done; the message says why, and the way out.
    """

    def __init__(self, cfg: DictConfig, *, overrides: list[str]) -> None:
        self.cfg = cfg
        self.overrides = overrides
        parts = preflight.training(cfg)
        self.corpus, self.source, self.dense = parts.corpus, parts.source, parts.dense
        self.arms = {arm.name: arm for arm in parts.arms}
        self.techniques = parts.techniques | {arm.name: arm.technique for arm in parts.arms}
        self.multiples, self.measures = parts.multiples, parts.measures
        self.tracker, self.chosen = parts.tracker, parts.chosen
        self.cfgs = {name: arm.cfg for name, arm in self.arms.items()}
        self._refuse_early()
        self.recorder = Recorder(
            cfg, overrides=overrides, corpus=self.corpus, measures=self.measures, of_arms=self.cfgs
        )
        self.roots = {DENSE: self.dense} if self.dense is not None else {}
        if self.dense is not self.source:
            self.roots[START] = self.source
        self.stages = list(key.plan(cfg, self.corpus, self.roots, parts.techniques, self.multiples, parts.arms))
        for stage in self.stages:
            stage.check_place()

    def _refuse_early(self) -> None:
        """Refuse what cannot be before the weights are read for their digests, by which finished stages are known."""
        folder = Path(self.cfg.runs) / self.cfg.name
        new = {n: technique for n, technique in self.techniques.items() if not any(folder.glob(f"{n}-*/artifact"))}
        teacher_pass.check_folders(new, self.corpus, self.source.max_length, self.cfg)
        needs = resources.of_run(self.cfg, new, source=self.source, dense=self.dense, corpus=self.corpus)
        capacity.refuse(needs, capacity.Machine.here(machine.device(self.cfg.trainer), Path(self.cfg.runs)))

    def run(self) -> dict[str, float]:
        """Finish every stage in turn.

        Returns:
            Metrics of the last stage.

        Raises:
            ValueError: A process that trains on another device failed.
        """
        with frozen(), launch.processes(self.cfg, self.overrides):
            return self._run(self.tracker)

    def _run(self, tracker: Tracker) -> dict[str, float]:
        """Finish every stage; of several processes, which train together, the first does all the rest."""
        first = process_group.is_first()
        if self.chosen:
            print(
                "chosen to suit model, text and machine:",
                *(f"{key}={_shown(value)}" for key, value in self.chosen.items()),
            )
        device = machine.device(self.cfg.trainer)
        capacity.check(self._needs(), capacity.Machine.here(device, Path(self.cfg.runs)))
        running = at_work(Path(self.cfg.runs))
        if first:
            with working("starting the log"):
                tracker.start(name=self.cfg.name, config=secret.written(self.cfg))
        try:
            metrics: dict[str, float] = {}
            measured = []
            for stage in self.stages:
                with stage.alone() if first else nullcontext():
                    trained = self._finish_training(stage, tracker)
                    random = stage.name == START and self.dense is None  # not worth measuring
                    if random or not (self.cfg.measure_all or stage is self.reference or is_last(stage, self.stages)):
                        continue
                    metrics = process_group.by_first(partial(self._finish_measuring, stage, trained, tracker))
                measured.append((stage.name, metrics))
                if first:
                    tracker.summary(stage.name, metrics)
                    tracker.artifact(stage.name, stage.artifact)
            if first:
                tracker.summary(preflight.FINAL, metrics)
                self._drop_training()
            for row in summary(measured, headline=self.corpus.headline):
                print(row, flush=True)
            return metrics
        finally:
            if first:
                with working("finishing the log"):
                    tracker.finish()
            running.close()

    def _needs(self) -> dict[str, resources.Need]:
        """What the stages take that have no artifact yet."""
        left = [stage.name for stage in self.stages if not (self.cfg.resume and is_there(stage, self.stages))]
        return resources.of_run(
            self.cfg,
            {name: technique for name, technique in self.techniques.items() if name in left},
            source=self.source,
            dense=self.dense,
            corpus=self.corpus,
            measures=self.measures.values(),
        )

    @cached_property
    def reference(self) -> Stage:
        """The stage of the dense model, with which later stages are compared, and which is their default teacher."""
        return self.stages[1 if self.dense is None else 0]

    @cached_property
    def baseline(self) -> Subject:
        """The dense model as it is deployed."""
        return self._subject(self.reference)

    @cached_property
    def scores(self) -> ScoreStore:
        """Results of tests, which all runs in the folder share."""
        return score_store(self.cfg, machine.device(self.cfg.trainer), reuse=self.cfg.resume)

    def _finish_training(self, stage: Stage, tracker: Tracker) -> float | None:
        """Make the stage's artifact.

        Returns:
            Seconds that it took; ``None`` if it was there already.
        """
        if process_group.by_first(partial(self._is_done, stage)):
            return None
        began = time.monotonic()
        if stage.parent is None:
            process_group.by_first(partial(save_root, self.roots[stage.name], stage, self.corpus, self.cfg))
            return time.monotonic() - began
        self.__dict__.pop("baseline", None)  # it is loaded again where it is measured
        release()
        with _released(technique := self.techniques[stage.name]):
            work = partial(
                train,
                technique,
                stage,
                previous=next(earlier for earlier in self.stages if earlier.key == stage.parent).artifact,
                reference=self.reference.artifact,
                corpus=self.corpus,
                code=key.completion_code(technique),
                cfg=self.cfgs.get(stage.name, self.cfg),
                tracker=tracker,
            )
            if technique.steps:
                work()
            else:  # what is not trained is done where all of the weights are
                process_group.by_first(work)
        process_group.by_first(stage.drop_checkpoint)
        return time.monotonic() - began

    def _is_done(self, stage: Stage) -> bool:
        """Whether the stage's artifact can be used again; a checkpoint that is of no more use is removed."""
        done = self.cfg.resume and is_finished(stage)
        if done and not is_there(stage, self.stages):
            print(f"{stage.name}: made anew, as what the next stage goes on from was dropped", flush=True)
            done = False
        if done or not self.cfg.resume:
            stage.drop_checkpoint()  # left by a kill after the artifact was saved
        return bool(done)

    def _drop_training(self) -> None:
        """Remove what finished stages went on from, but for the last, which another run may go on from."""
        if self.cfg.keep_training_state:
            return
        freed = 0
        for stage in self.stages[:-1]:
            with stage.alone():
                freed += artifact.drop_training(stage.artifact)
        if freed:
            print(
                f"{freed / 1e6:.1f} MB freed, which stages went on from (keep_training_state=true keeps it)", flush=True
            )

    def _finish_measuring(self, stage: Stage, trained: float | None, tracker: Tracker) -> dict[str, float]:
        """Measure the stage and append its record, unless that was done before.

        Args:
            stage: The stage, whose artifact is on the disk.
            trained: As ``_finish_training`` returns it.
            tracker: Logger of the run.

        Returns:
            Metrics of the stage.
        """
        beside = [other for other in self.stages if other.name in self.arms and self.arms[other.name].of == stage.name]
        measured_by = key.measures(self.cfg) | ({"arms": [arm.key for arm in beside]} if beside else {})
        stored = stage.measured()
        if stored and trained is None and {**stored, **measured_by} == stored:
            print(f"{stage.name}: finished before, reused from {stage.folder}")
            self._restore(stage, stored)
            return dict(stored["metrics"])
        began = time.monotonic()
        if self.measures:
            print(f"{stage.name}: measuring {', '.join(self.measures)}", flush=True)
        subject = self.baseline if stage is self.reference else self._subject(stage)
        metrics = run(self.measures, subject, self.baseline, self.corpus) | artifact.reached(stage.artifact)
        for arm in beside:
            metrics |= self._minus(subject, arm)
        seconds = {"train": trained or 0.0, "measure": time.monotonic() - began}
        if stage is self.reference:
            self.dense_metrics = metrics
        kernel, rows = subject.kernel, curves(stage)
        # The record first: a kill in between repeats the measuring, and readers keep the later of two records.
        row = self.recorder.record(
            stage=stage.name,
            technique=type(self.techniques[stage.name]).__name__ if stage.parent else stage.name,
            key=stage.key,
            parent=stage.parent,
            kernel=kernel,
            metrics=metrics,
            baseline=self.dense_metrics,
            baseline_key=self.reference.key,
            seconds=seconds,
            reused=trained is None,
            artifact=stage.artifact,
            curves=stage.curves if stage.curves.exists() else None,
            scores=self.scores.taken(stage.artifact),
        )
        record.append(self.recorder.path, row)
        print(line(row, self.recorder.runs))
        stage.write_measured({**measured_by, "metrics": metrics, "record": json.loads(row.to_json()), "curves": rows})
        return metrics

    def _minus(self, subject: Subject, arm: Stage) -> dict[str, float]:
        """Differences of a model from an arm on the same questions, of all measures that ask some."""
        other, end = self._subject(arm), MINUS_ARM[self.arms[arm.name].kind]
        asking = [measure for measure in self.measures.values() if isinstance(measure, ByQuestion)]
        pairs = [measure.minus(subject, other, self.corpus, end) for measure in asking]
        return {name: value for figures in pairs for name, value in figures.items()}

    def _restore(self, stage: Stage, stored: Mapping[str, Any]) -> None:
        """Write the curves and the record of a finished stage again where they were lost.

        Args:
            stage: The stage.
            stored: As ``_finish_measuring`` wrote it.
        """
        if stored.get("curves") is not None:
            stage.restore_curves(stored["curves"])
        if "record" not in stored:  # written by an older slimexp
            return
        try:
            row = record.Record.from_json(json.dumps(stored["record"]))
        except ValueError as error:  # of a schema that is no longer read
            print(f"{stage.name}: its record is damaged ({printable(error)}): not appended again", flush=True)
            return
        if record.append_again(self.recorder.path, row):
            print(f"{stage.name}: its record was lost, appended again")

    @cached_property
    def dense_metrics(self) -> dict[str, float]:
        """Metrics of the dense model; those of an earlier run unless this run has measured it."""
        return dict(self.reference.measured()["metrics"])

    def _subject(self, stage: Stage) -> Subject:
        device = machine.device(self.cfg.trainer)
        return Stored(
            stage.artifact,
            lambda dtype: artifact.served(stage.artifact, device, dtype=dtype),
            device,
            max_length=artifact.read_manifest(stage.artifact)["max_length"],
            store=self.scores,
        )


@contextmanager
def _released(technique: Finetune) -> Iterator[None]:
    """Afterwards, a technique holds what it was built with, and no model."""
    attributes, modules = dict(vars(technique)), dict(technique._modules)
    try:
        yield
    finally:
        vars(technique).clear()
        vars(technique).update(attributes)
        technique._modules.clear()
        technique._modules.update(modules)
        release()


def _shown(value: Any) -> str:
    """A value as it would be typed."""
    return "null" if value is None else str(value)
