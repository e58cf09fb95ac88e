"""Rules that stop a trial during its training, once other trials show that it is hopeless.

A rung is a share of a stage's steps. There a trial grades itself by the cross-entropy of labels on validation text, the
same yardstick for all, whatever their losses and temperatures, and is compared with other trials' grades there. Grades
lie in files of one folder, so that rules hold on any pool of workers and after a resume, and no trial waits for another
(Li et al. 2020, "A system for massively parallel hyperparameter tuning").

A sweep of several objectives must not stop a model that is worse only because it is smaller: ``among`` sets which
trials compete.
"""

import json
import math
import os
from abc import abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from torch.nn import functional as F

from slimexp.file import integrity, regular
from slimexp.loss.base import IGNORE
from slimexp.measure.base import spread, untouched
from slimexp.record.stage import Stopped
from slimexp.technique.finetune import Finetune

MAX_BYTES = 1 << 16  # of the file of a grade
SEED = 0  # of the choice of rows to grade on: the same in all trials


class Stopper(pl.Callback):
    """Grades a trial at its rungs and raises ``Stopped`` where it is ``hopeless``; a trial that goes on is unchanged.

    Args:
        stage: Name of the stage that has rungs; ``None`` for every one that is trained.
        rungs: Shares of the stage's steps, in (0, 1).
        least: Number of trials graded at a rung, this one included, before any is stopped.
        among: Label of the trials that compete; a trial is compared with those of the same label.
        rows: Number of rows of the validation split to grade on.
        folder: Folder with the grades of all trials.
    """

    def __init__(
        self, *, stage: str | None, rungs: Sequence[float], least: int, among: Any, rows: int, folder: str
    ) -> None:
        if wrong := [rung for rung in rungs if not (isinstance(rung, int | float) and 0 < rung < 1)]:
            raise ValueError(f"rungs must be shares of the steps in (0, 1), got {wrong[0]}")
        for name, value in (("least", least), ("rows", rows)):
            if value < 1:
                raise ValueError(f"{name} must be >= 1, got {value}")
        self.stage = stage
        self.rungs = sorted(rungs)
        self.least = least
        self.among = str(among)
        self.rows = rows
        self.folder = Path(folder)

    @abstractmethod
    def hopeless(self, grade: float, others: Sequence[float]) -> bool:
        """Whether a trial with ``grade`` stops, given the grades of ``others`` at the same rung; lower is better."""

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        for rung in self.rungs:
            if trainer.global_step == math.ceil(rung * trainer.max_steps):
                assert isinstance(pl_module, Finetune)
                self._grade(rung, pl_module, Path(trainer.default_root_dir).name)  # the stage's own folder

    def _grade(self, rung: float, technique: Finetune, trial: str) -> None:
        stage = trial.rpartition("-")[0]
        if self.stage not in (None, stage):
            return
        loss = validation_loss(technique, self.rows)
        folder = self.folder / f"{stage}-at-{rung:g}"
        write(folder / f"{trial}.json", {"among": self.among, "loss": loss})
        grades = read(folder)
        others = [grade["loss"] for name, grade in grades.items() if name != trial and grade["among"] == self.among]
        if len(others) + 1 >= self.least and self.hopeless(loss, others):
            raise Stopped(
                f"{stage} was stopped at {rung:.0%} of its steps: a validation loss of {loss:.4g}, where "
                f"{len(others)} others had {min(others):.4g} to {max(others):.4g}"
            )


def validation_loss(technique: Finetune, rows: int) -> float:
    """Nats per label token (or per text, of a classifier) on ``rows`` of the validation split; leaves no trace."""
    examples = technique.corpus.splits["validation"]
    chosen = [examples[i] for i in spread(len(examples), rows, SEED)]
    batch = technique.family.encode([(row.source, row.target, row.label) for row in chosen])
    batch = {name: tensor.to(technique.device) for name, tensor in batch.items()}
    with untouched(technique.model, seed=SEED):
        logits, _ = technique.family.forward(batch)
    return F.cross_entropy(logits.flatten(0, -2).float(), batch["labels"].flatten(), ignore_index=IGNORE).item()


def write(path: Path, grade: dict[str, Any]) -> None:
    """Write a trial's grade to a file beside ``path`` and rename it, so that no other trial reads half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    integrity.write(path, json.dumps(grade), partial=path.with_suffix(f".{os.getpid()}.partial"))


def read(folder: Path) -> dict[str, dict[str, Any]]:
    """Trial -> its grade in the folder of a rung; what is no file or is damaged (by a full disk, say) is left out."""
    grades = {}
    for path in folder.glob("*.json"):
        with suppress(OSError, ValueError, RecursionError):
            grade = json.loads(regular.content(path, MAX_BYTES))
            if isinstance(grade, dict) and "among" in grade and type(grade.get("loss")) in (int, float):
                grades[path.stem] = grade
    return grades
