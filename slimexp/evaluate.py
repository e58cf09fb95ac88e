"""Measure any model: ``python -m slimexp.evaluate model=t5_spelling data=spelling measure=[size,task,latency]``.

An artifact, a local folder or a hub id is ``model=pretrained model.path=...``; ``baseline=...`` names
the dense model beside which latency is taken.
"""

import hashlib
import json
import os
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from slimexp import record
from slimexp.config import Evaluation, build, check, main

if TYPE_CHECKING:
    from slimexp.data.base import Corpus
    from slimexp.measure.base import Subject

STAGE = "evaluate"


def evaluate(cfg: DictConfig) -> float | None:
    """Check, load, measure, record; returns the headline, ``None`` if it is not measured."""
    check(cfg, schema=Evaluation)
    from slimexp.measure.base import run  # torch is imported only once the config is right
    from slimexp.quantizer.packing import kernel

    began = time.monotonic()
    corpus: Corpus = build(cfg.data)
    subject = _subject(cfg.model, cfg.device, corpus)
    baseline = subject if cfg.baseline is None else _subject(cfg.baseline, cfg.device, corpus)
    measures = {name: build(node) for name, node in cfg.measure.items()}
    metrics = run(measures, subject, baseline, corpus)
    config: Any = OmegaConf.to_container(cfg, resolve=True)
    runs = Path(cfg.runs)
    row = record.Record(
        time=datetime.now(UTC).isoformat(timespec="seconds"),
        name=cfg.name,
        stage=STAGE,
        key=hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:12],
        parent=None,
        technique=STAGE,
        seed=cfg.seed,
        overrides=list(HydraConfig.get().overrides.task),
        config=config,
        kernel=kernel(subject.family.model, subject.folder),
        headline=corpus.headline,
        direction=corpus.direction,
        metrics=metrics,
        baseline=metrics if baseline is subject else run(measures, baseline, baseline, corpus),
        trivial=corpus.trivial(corpus.splits["test"]),
        seconds={"measure": time.monotonic() - began},
        reused=False,
        artifact=os.path.relpath(subject.folder, runs),
        curves=None,
        **record.environment(),
    )
    record.append(runs / record.FILE, row)
    for name, value in metrics.items():
        print(f"{name:32s} {value:.6g}")
    return metrics.get(corpus.headline)


def _subject(node: DictConfig, device: str, corpus: "Corpus") -> "Subject":
    from torch import nn

    from slimexp.measure.base import Subject
    from slimexp.model.loading import Pretrained

    source = build(node)
    if not isinstance(source, Pretrained):
        raise ValueError("only a trained model can be evaluated: choose model=pretrained model.path=...")
    family = source.load(task=corpus.task, texts=corpus.texts, labels=corpus.labels)
    nn.Module.to(family.model.eval(), device)
    return Subject(family, source.local_folder())


if __name__ == "__main__":
    main(evaluate, "evaluate")
