"""Measure any model: ``python -m slimexp.evaluate model=t5_spelling data=spelling measure=[size,task,latency]``.

An artifact, a local folder or a hub id is ``model=pretrained model.path=...``; ``model@baseline=pretrained
baseline.path=...`` names the dense model it is compared with. Without one, a model that was not compressed is its own.
"""

import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from slimexp.config.check import check
from slimexp.config.command_line import main
from slimexp.config.schema import Evaluation
from slimexp.host.console import phase
from slimexp.host.progress import working
from slimexp.record import record, stage
from slimexp.record.figures import PERPLEXITY, same_tokens
from slimexp.record.schema import DIFFERENCE

if TYPE_CHECKING:
    from slimexp.data.base import Corpus
    from slimexp.measure.base import Subject
    from slimexp.model.loading import Pretrained
    from slimexp.pipeline.preflight import EvaluationParts

STAGE = "evaluate"


def evaluate(cfg: DictConfig) -> float | None:
    """Check the configuration, load the models, measure them and record the figures.

    What was measured before an error or an interrupt is recorded too; readers merge it with what follows.

    Returns:
        The headline figure; ``None`` if it is not measured.
    """
    check(cfg, schema=Evaluation)
    phase("checking the model, the data and the measures")
    began = time.monotonic()
    with working("importing the libraries"):  # torch, only once the config is right
        import torch

        from slimexp.measure.base import run
        from slimexp.pipeline import preflight
        from slimexp.pipeline.recording import score_store
    with working("checking the model, the data and the measures"):
        parts = preflight.evaluation(cfg)
    corpus, measures, source, dense = parts.corpus, parts.measures, parts.source, parts.dense
    store = score_store(cfg, torch.device(cfg.device))
    subject = replace(_subject(source, cfg.device, corpus), store=store)
    baseline = subject if dense in (None, source) else replace(_subject(dense, cfg.device, corpus), store=store)
    metrics: dict[str, float] = {}
    compared: dict[str, float] = metrics if baseline is subject else {}
    append = partial(_record, cfg, parts, subject, metrics, compared, began)
    finished: list[str] = []
    try:
        for name, measure in measures.items():  # each is shown at once, for some take a minute
            phase(f"measuring {name}")
            metrics |= (figures := run({name: measure}, subject, baseline, corpus))
            if baseline is not subject:
                phase(f"measuring {name} of the dense model")
                compared |= run({name: measure}, baseline, baseline, corpus)
            print("\n".join(_lines(figures, {} if baseline is subject else compared)), flush=True)
            finished.append(name)
    except BaseException:
        if metrics:
            print(f"{append()}: {', '.join(finished) or 'the model without its baseline'}, of {', '.join(measures)}")
        raise
    print(append())
    return metrics.get(corpus.headline)


def _record(
    cfg: DictConfig,
    parts: "EvaluationParts",
    subject: "Subject",
    metrics: dict[str, float],
    compared: dict[str, float],
    began: float,
) -> str:
    """Append the record of an evaluation.

    Args:
        cfg: The evaluation's configuration.
        parts: What it is made of.
        subject: The model that was measured.
        metrics: Its figures, which those of its artifact are added to.
        compared: Figures of the dense model.
        began: When the evaluation began, in seconds of the monotonic clock.

    Returns:
        A line that names the file of records.
    """
    from slimexp import artifact
    from slimexp.pipeline.recording import Recorder

    metrics |= artifact.reached(subject.folder)
    overrides = HydraConfig.get().overrides.task
    recorder = Recorder(cfg, overrides=overrides, corpus=parts.corpus, measures=parts.measures)
    row = recorder.record(
        stage=STAGE,
        technique=STAGE,
        key=_key(cfg, parts.source),
        parent=None,
        kernel=subject.kernel,
        metrics=metrics,
        baseline=compared if parts.dense else {},
        baseline_key=_key(cfg, parts.dense) if parts.dense else None,
        seconds={"measure": time.monotonic() - began},
        reused=False,
        artifact=subject.folder,
        curves=None,
        scores={} if subject.store is None else subject.store.taken(subject.folder),
    )
    record.append(recorder.path, row)
    return f"recorded in {recorder.path}"


def _lines(metrics: dict[str, float], dense: dict[str, float]) -> Iterator[str]:
    """One line per figure, beside the figure of the dense model where that is another model."""
    from slimexp.pipeline.recording import beside, sampled

    width = max(map(len, metrics), default=0)
    other_tokens = PERPLEXITY in dense and not same_tokens([metrics, dense])
    for name, value in metrics.items():
        if DIFFERENCE in name:
            continue  # it stands beside its figure
        of_dense = f"   dense {dense[name]:.6g}" if name in dense else ""
        ratio = f"   {value / dense[name]:.3g}x" if dense.get(name) else ""
        if ratio and name == PERPLEXITY and other_tokens:
            ratio = "   of other tokens, see bits_per_byte"
        paired = f"   minus dense {words}" if (words := beside(name, metrics)) else ""
        yield f"{name:{max(width, 32)}s} {value:<12.6g}{of_dense}{ratio}{paired}".rstrip()
    if sample := sampled(metrics):
        yield f"graded {sample}, spread evenly: measure.task.limit=null grades all"


def _subject(source: "Pretrained", device: str, corpus: "Corpus") -> "Subject":
    """The model as it is deployed, on ``device``; its classes in the order of the corpus."""
    from torch import nn

    from slimexp.measure.base import Subject
    from slimexp.model.labels import in_model_order
    from slimexp.model.serving import refusal, served

    phase(f"loading {source.path}")
    ordered = in_model_order(source.validate(corpus.task, corpus.labels), corpus.labels) == tuple(corpus.labels)
    with working(f"loading {source.path}"):
        if ordered and Path(source.folder).is_dir() and refusal(Path(source.folder)) is None:
            return Subject(served(source.folder, corpus.task, source.max_length, device=device), Path(source.folder))
        family = source.load(task=corpus.task, texts=corpus.texts, labels=corpus.labels)
        nn.Module.to(family.model.eval(), device)
        return Subject(family, source.local_folder())


def _key(cfg: DictConfig, source: "Pretrained") -> str:
    """Key of a model on a text and a device, whatever is measured of it."""
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
