"""Runs of a benchmark: composed and checked before any is trained, and found again by their records."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from omegaconf import DictConfig, OmegaConf

from slimexp.config.check import check
from slimexp.config.composition import compose
from slimexp.record.record import Record

SHAPING = ("seed", "data", "model", "pipeline", "trainer", "save_dtype", "measure")  # root keys a result depends on
LABELS_ONLY = "slimexp.loss.cross_entropy.CrossEntropy"  # the one term that stays without a teacher


@dataclass(frozen=True)
class Run:
    """One training run, known by its composed config.

    Attributes:
        label: For logs.
        overrides: Its command line.
        cfg: What that composes to.
    """

    label: str
    overrides: tuple[str, ...]
    cfg: DictConfig

    @classmethod
    def composed(cls, label: str, overrides: Sequence[str]) -> "Run":
        """The run of a command line.

        Raises:
            ValueError: The config is wrong; says where.
        """
        cfg = compose(overrides)
        check(cfg)
        return cls(label, tuple(overrides), cfg)

    def train(self, log: Path, environment: Mapping[str, str] = MappingProxyType({})) -> None:
        """Run it in a process of its own, ``environment`` added to this one's; output goes to ``log``.

        Raises:
            RuntimeError: It failed.
        """
        log.parent.mkdir(parents=True, exist_ok=True)
        began = time.monotonic()
        with log.open("w") as file:
            words = [sys.executable, "-m", "slimexp.train", *self.overrides]
            own = {**os.environ, **environment}
            status = subprocess.run(words, stdout=file, stderr=subprocess.STDOUT, env=own, check=False).returncode
        if status:
            raise RuntimeError(f"{self.label} failed with status {status}: see {log}")
        print(f"{self.label}: {time.monotonic() - began:.0f} s", flush=True)

    def train_here(self) -> str:
        """Run it in this process; returns the key of its last stage."""
        from slimexp.pipeline.pipeline import Pipeline

        pipeline = Pipeline(self.cfg, overrides=list(self.overrides))
        pipeline.run()
        return pipeline.stages[-1].key

    def record(self, records: Sequence[Record]) -> Record:
        """The latest record of its last stage.

        Raises:
            RuntimeError: There is none.
        """
        config = json.loads(json.dumps(OmegaConf.to_container(self.cfg, resolve=True)))
        stage = list(config["pipeline"])[-1]
        found = [r for r in records if r.stage == stage and all(r.config.get(key) == config[key] for key in SHAPING)]
        if not found:
            raise RuntimeError(f"no record of {self.label}: its measures may have been taken with other settings")
        return found[-1]


def headline(found: Record) -> float:
    """The figure of a record's headline."""
    return found.metrics[found.headline]


def teacher_terms(cfg: DictConfig) -> list[str]:
    """Overrides that take every term out of the losses that reads the teacher."""
    return [
        f"~pipeline.{stage}.losses.{name}"
        for stage, technique in cfg.pipeline.items()
        for name, loss in technique.losses.items()
        if loss["_target_"] != LABELS_ONLY
    ]
