"""Measure any model: ``python -m slimexp.evaluate model=t5_spelling data=spelling measure=[size,task,latency]``.

An artifact, a local folder or a hub id is ``model=pretrained model.path=...``; ``model@baseline=pretrained
baseline.path=...`` names the dense model it is compared with. Without one, a model that was not compressed is its own.
"""

import os
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from slimexp.config import secret
from slimexp.config.build import build
from slimexp.config.check import check
from slimexp.config.command_line import main
from slimexp.config.composition import chosen
from slimexp.config.schema import Evaluation
from slimexp.record import record, stage
from slimexp.record.environment import environment

if TYPE_CHECKING:
    from slimexp.data.base import Corpus
    from slimexp.measure.base import Measure, Subject
    from slimexp.model.loading import Pretrained

STAGE = "evaluate"


def evaluate(cfg: DictConfig) -> float | None:
    """Check, load, measure, record; returns the headline, ``None`` if it is not measured.

    What was measured before an error or an interrupt is recorded too; readers merge it with what follows.
    """
    check(cfg, schema=Evaluation)
    from slimexp.measure.base import run  # torch is imported only once the config is right
    from slimexp.pipeline.reference import number_classes

    began = time.monotonic()
    _check_device(cfg.device)
    corpus: Corpus = build(cfg.data)
    measures: dict[str, Measure] = {name: build(node) for name, node in chosen(cfg.measure).items()}
    for measure in measures.values():
        measure.validate(corpus.task)
    if not measures:
        raise ValueError("nothing is measured: give measure=[size,task], say")
    source = _source(cfg.model)
    number_classes(corpus, source.validate(corpus.task, corpus.labels))
    record.check_place(Path(cfg.runs) / record.FILE)
    dense = _dense(cfg, source, corpus, [name for name, measure in measures.items() if measure.compares])
    subject = _subject(source, cfg.device, corpus)
    baseline = subject if dense in (None, source) else _subject(dense, cfg.device, corpus)
    metrics: dict[str, float] = {}
    compared: dict[str, float] = metrics if baseline is subject else {}
    add = partial(_record, cfg, source, dense, subject, corpus, measures, metrics, compared, began)
    finished: list[str] = []
    try:
        for name, measure in measures.items():  # shown as they come: some take a minute
            metrics |= (found := run({name: measure}, subject, baseline, corpus))
            if baseline is not subject:
                compared |= run({name: measure}, baseline, baseline, corpus)
            print("\n".join(_lines(found, {} if baseline is subject else compared)), flush=True)
            finished.append(name)
    except BaseException:
        if metrics:
            print(f"{add()}: {', '.join(finished) or 'the model without its baseline'}, of {', '.join(measures)}")
        raise
    print(add())
    return metrics.get(corpus.headline)


def _record(
    cfg: DictConfig,
    source: "Pretrained",
    dense: "Pretrained | None",
    subject: "Subject",
    corpus: "Corpus",
    measures: "dict[str, Measure]",
    metrics: dict[str, float],
    compared: dict[str, float],
    began: float,
) -> str:
    """Add a record of ``metrics`` and of ``compared``, those of the dense model; says where to."""
    from slimexp import artifact
    from slimexp.measure.base import directions, trivial

    metrics |= artifact.reached(subject.folder)
    runs = Path(cfg.runs)
    row = record.Record(
        time=datetime.now(UTC).isoformat(timespec="seconds"),
        name=cfg.name,
        stage=STAGE,
        key=_key(cfg, source),
        parent=None,
        technique=STAGE,
        seed=cfg.seed,
        overrides=secret.masked(HydraConfig.get().overrides.task),
        config=secret.written(cfg),
        kernel=subject.kernel,
        headline=corpus.headline,
        direction=corpus.direction,
        metrics=metrics,
        directions=directions(metrics, measures.values()),
        baseline=compared if dense else {},
        baseline_key=_key(cfg, dense) if dense else None,
        trivial=trivial(measures.values(), corpus),
        seconds={"measure": time.monotonic() - began},
        reused=False,
        artifact=os.path.relpath(subject.folder, runs),
        curves=None,
        **environment(),
    )
    record.append(runs / record.FILE, row)
    return f"recorded in {runs / record.FILE}"


def _lines(metrics: dict[str, float], dense: dict[str, float]) -> Iterator[str]:
    """A figure per line, beside that of the dense model where there is another."""
    width = max(map(len, metrics), default=0)
    for name, value in metrics.items():
        beside = f"   dense {dense[name]:.6g}" if name in dense else ""
        ratio = f"   {value / dense[name]:.3g}x" if dense.get(name) else ""
        yield f"{name:{max(width, 32)}s} {value:<12.6g}{beside}{ratio}".rstrip()


def _source(node: DictConfig) -> "Pretrained":
    """What ``node`` names; an artifact reads as many tokens as it was made for."""
    from slimexp import artifact
    from slimexp.model.loading import Pretrained

    source = build(node)
    if not isinstance(source, Pretrained):
        raise ValueError("only a trained model can be evaluated: choose model=pretrained model.path=...")
    artifact.check_source(source)
    source.max_length = node.max_length = artifact.manifest_of(source).get("max_length", source.max_length)
    return source


def _dense(cfg: DictConfig, source: "Pretrained", corpus: "Corpus", comparing: list[str]) -> "Pretrained | None":
    """The dense model to compare with; ``None`` for a compressed one beside which none is named.

    Args:
        cfg: The configuration.
        source: The model that is measured.
        corpus: Its text.
        comparing: Names of the measures that cannot do without a dense model.

    Raises:
        ValueError: The baseline is compressed itself, or a measure cannot do without one.
    """
    from slimexp.artifact import compressed_by
    from slimexp.pipeline.reference import check_trained

    dense = source if cfg.baseline is None else _source(cfg.baseline)
    check_trained("the model" if dense is source else "the baseline", dense, corpus)
    history = compressed_by(dense, corpus.task)
    if not history:
        return dense
    done = f"'{dense.path}' is compressed ({', '.join(history)})"
    if cfg.baseline is not None:
        raise ValueError(f"the baseline must be a dense model, and {done}: choose another baseline.path")
    if comparing:
        raise ValueError(
            f"{done}, and {', '.join(comparing)} compares with the dense model: name it by model@baseline=pretrained "
            "baseline.path=..., or drop the measure"
        )
    return None


def _check_device(name: str) -> None:
    import torch

    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device must be a torch device such as cpu, cuda or cuda:1, got '{name}'") from error
    if device.type == "meta":
        raise ValueError("device must be one that computes, got 'meta': use device=cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device is '{name}', but torch sees {torch.cuda.device_count()} CUDA devices: use device=cpu")


def _subject(source: "Pretrained", device: str, corpus: "Corpus") -> "Subject":
    from torch import nn

    from slimexp.measure.base import Subject
    from slimexp.model.labels import in_model_order
    from slimexp.model.serving import refusal, served

    ordered = in_model_order(source.validate(corpus.task, corpus.labels), corpus.labels) == tuple(corpus.labels)
    if ordered and Path(source.folder).is_dir() and refusal(Path(source.folder)) is None:
        return Subject(served(source.folder, corpus.task, source.max_length, device=device), Path(source.folder))
    family = source.load(task=corpus.task, texts=corpus.texts, labels=corpus.labels)
    nn.Module.to(family.model.eval(), device)
    return Subject(family, source.local_folder())


def _key(cfg: DictConfig, source: "Pretrained") -> str:
    """The same model on the same text and device has the same key, whatever is measured of it."""
    content = {
        "model": source.path,
        "max_length": source.max_length,
        "weights": source.fingerprint(),
        "data": _resolved(cfg.data),
        "seed": cfg.seed,
        "device": cfg.device,
    }
    return stage.key(content)


def _resolved(node: DictConfig) -> Any:
    return OmegaConf.to_container(node, resolve=True)


if __name__ == "__main__":
    main(evaluate, "evaluate")
