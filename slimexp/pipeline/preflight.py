"""The parts of a command, built and checked, so that errors are raised before anything is trained or measured.

Checks that cost little, and those that others build on, come first; text is read last.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from transformers import PreTrainedConfig

from slimexp.config.build import build
from slimexp.config.composition import chosen
from slimexp.data.base import Corpus
from slimexp.logger.base import Tracker
from slimexp.measure.base import Measure
from slimexp.model.base import Source
from slimexp.model.loading import Pretrained
from slimexp.pipeline import devices, machine, reference, rows
from slimexp.pipeline.arms import Arm, arms
from slimexp.record import record
from slimexp.record.stage import DENSE, START
from slimexp.technique import packing
from slimexp.technique.automatic import AUTO, conditions
from slimexp.technique.compatibility import check_order, check_stages
from slimexp.technique.finetune import Finetune

FINAL = "final"  # name under which loggers get the last stage's figures, whatever the stage is called


@dataclass(frozen=True, kw_only=True)
class TrainingParts:
    """The parts of a run.

    Attributes:
        corpus: Its text, with classes in the order of the model's outputs.
        source: Source of the model that it starts from.
        dense: Source of the model that its stages are compared with; ``None`` where the first stage trains it.
        techniques: Technique of each stage, by the stage's name.
        arms: Stages that others are held against.
        multiples: Multiple that the widths of a stage are rounded to for later stages, see ``check_stages``.
        chosen: Key of a setting that was ``auto`` -> the value that was chosen for it.
        measures: The measures that are taken after every stage, by name.
        tracker: Logger of the run.
    """

    corpus: Corpus
    source: Source
    dense: Source | None
    techniques: dict[str, Finetune]
    arms: list[Arm]
    multiples: dict[str, int]
    chosen: dict[str, Any]
    measures: dict[str, Measure]
    tracker: Tracker


@dataclass(frozen=True, kw_only=True)
class EvaluationParts:
    """The parts of an evaluation.

    Attributes:
        corpus: Its text, with classes in the order of the model's outputs.
        source: Source of the model that is measured.
        dense: Source of the model that it is compared with; ``None`` for a compressed model without a baseline.
        measures: The measures that are taken, by name.
    """

    corpus: Corpus
    source: Pretrained
    dense: Pretrained | None
    measures: dict[str, Measure]


def training(cfg: DictConfig) -> TrainingParts:
    """Build and check the parts of a run.

    Settings of stages and measures that are ``auto`` get their values, in ``cfg`` too: they are in records and keys.

    Raises:
        ValueError: The run cannot be done; the message says why, and the way out.
    """
    machine.quiet()
    machine.check(cfg.trainer, cfg.callback)
    source: Source = build(cfg.model)
    corpus = corpus_for(source, cfg.data)
    techniques: dict[str, Finetune] = {name: build(node) for name, node in cfg.pipeline.items()}
    measures = _measures(cfg)
    for name, technique in techniques.items():
        packing.check(technique.packing, corpus)
        _check_completion(name, technique, corpus, source.max_length)
    if reserved := {DENSE, START, FINAL} & techniques.keys():
        raise ValueError(f"a stage cannot be called '{min(reserved)}', which has a meaning: give it another name")
    baseline: Source | None = build(cfg.baseline) if cfg.baseline is not None else None
    source.check_files()
    others = {"baseline": baseline} | {f"pipeline.{name}.teacher": stage.teacher for name, stage in techniques.items()}
    for where, model in others.items():
        if model is not None:
            with reference.found_at(where):
                model.check_files()
    _check_records(cfg)
    config = _validated_config(source, corpus)
    machine.check_model(cfg.trainer, cfg.callback, config)
    dense = reference.dense(source, baseline, next(iter(techniques.values())), corpus)
    reference.check_teachers(techniques, source, dense, corpus)
    _adapt(techniques, source, corpus, config, cfg.trainer)
    devices.check_stages(cfg.trainer, techniques, config)
    multiples = _check_stages(techniques, source, corpus, config)
    reference.check_losses(techniques, source, dense, corpus)
    chosen = _write_chosen(techniques, cfg.pipeline)
    unlike = reference.taught_in_other_tokens(techniques, source, dense, corpus) if cfg.arms else []
    beside = arms(cfg, techniques, corpus, trains_dense=dense is None, unlike=unlike)
    for arm in beside:
        line = arm.line(techniques)
        devices.check_stages(cfg.trainer, line, config)
        multiples |= {name: n for name, n in _check_stages(line, source, corpus, config).items() if name == arm.name}
    _check_measures(measures, corpus)
    tracker: Tracker = build(cfg.logger)
    chosen |= _adapt_measures(measures, cfg.measure, corpus, machine.device(cfg.trainer))
    reference.check_tokenizers(source, dense, corpus, techniques)
    return TrainingParts(
        corpus=corpus,
        source=source,
        dense=dense,
        techniques=techniques,
        arms=beside,
        multiples=multiples,
        chosen=chosen,
        measures=measures,
        tracker=tracker,
    )


def evaluation(cfg: DictConfig) -> EvaluationParts:
    """Build and check the parts of an evaluation.

    An artifact reads as many tokens as it was made for: its ``max_length`` in ``cfg`` is set to that. Settings of
    measures that are ``auto`` get their values, in ``cfg`` too.

    Raises:
        ValueError: The evaluation cannot be done; the message says why, and the way out.
    """
    _check_device(cfg.device)
    corpus = corpus_for(build(cfg.model), cfg.data)
    measures = _measures(cfg)
    _check_measures(measures, corpus)
    if not measures:
        raise ValueError("nothing is measured: give measure=[size,task], say")
    source = _trained(cfg.model)
    _validated_config(source, corpus)
    _check_records(cfg)
    baseline = _trained(cfg.baseline) if cfg.baseline is not None else None
    comparing = [name for name, measure in measures.items() if measure.compares]
    dense = _dense(source, baseline, corpus, comparing)
    _adapt_measures(measures, cfg.measure, corpus, torch.device(cfg.device))
    reference.check_tokenizers(source, dense, corpus)
    return EvaluationParts(corpus=corpus, source=source, dense=dense, measures=measures)


def corpus_for(source: Source, node: DictConfig) -> Corpus:
    """The corpus of ``node``; a task that is ``auto`` becomes what the model of ``source`` serves, in ``node`` too."""
    if node.get("task") == AUTO:
        node.task = source.usual_task()
    corpus: Corpus = build(node)
    return corpus


def _check_completion(name: str, technique: Finetune, corpus: Corpus, max_length: int) -> None:
    if technique.completion is None:
        return
    if technique.completion.needs_teacher and technique.teacher is not None:
        max_length = min(max_length, technique.teacher.max_length)
    try:
        technique.completion.check(corpus, max_length)
    except ValueError as error:
        raise ValueError(f"pipeline.{name}.completion: {error}") from error


def _measures(cfg: DictConfig) -> dict[str, Measure]:
    return {name: build(node) for name, node in chosen(cfg.measure).items()}


def _check_measures(measures: Mapping[str, Measure], corpus: Corpus) -> None:
    for measure in measures.values():
        measure.validate(corpus.task)


def _adapt_measures(
    measures: Mapping[str, Measure], nodes: DictConfig, corpus: Corpus, device: torch.device
) -> dict[str, Any]:
    """Read the text, and write what measures choose by it into their configuration; returns full key -> value."""
    rows.tell(corpus)
    chosen = {}
    for name, measure in measures.items():
        for key, value in measure.adapt(corpus, on_cpu=device.type == "cpu").items():
            nodes[name][key] = chosen[f"measure.{name}.{key}"] = value
    return chosen


def _check_records(cfg: DictConfig) -> None:
    record.check_place(Path(cfg.runs) / record.FILE)


def _validated_config(source: Source, corpus: Corpus) -> PreTrainedConfig:
    """The config of a model that can serve the corpus; the corpus' classes are numbered as the model's outputs."""
    config = source.validate(corpus.task, corpus.labels)
    reference.number_classes(corpus, config)
    return config


def _check_stages(
    techniques: Mapping[str, Finetune], source: Source, corpus: Corpus, config: PreTrainedConfig
) -> dict[str, int]:
    """Refuse stages that cannot follow each other on this model; returns the multiples of ``check_stages``."""
    stages = list(techniques.values())
    for position, (name, technique) in enumerate(techniques.items()):
        try:
            technique.validate(config, before=stages[:position])
        except ValueError as error:
            raise ValueError(f"pipeline.{name}: {error}") from error
    check_order(techniques, source.history())
    reference.check_unquantized(stages, source)
    return check_stages(techniques, source, corpus, config)


def _adapt(
    techniques: Mapping[str, Finetune],
    source: Source,
    corpus: Corpus,
    config: PreTrainedConfig,
    trainer: DictConfig,
) -> None:
    """Choose values for settings that are ``auto``; only the first stage can meet random weights."""
    given = conditions(
        config,
        is_random=source.is_random,
        predicts_tokens=corpus.task != "classification",
        max_length=source.max_length,
        logits_at_once=trainer.logits_at_once,
        memory=machine.memory(trainer),
        shards=devices.shards(trainer),
    )
    given = replace(given, devices=devices.total(trainer))
    for position, technique in enumerate(techniques.values()):
        technique.adapt(config, replace(given, is_random=given.is_random and position == 0))


def _write_chosen(techniques: Mapping[str, Finetune], pipeline: DictConfig) -> dict[str, Any]:
    """Write what the stages chose into their configuration; returns full key -> value."""
    chosen = {}
    for name, technique in techniques.items():
        for key, value in technique.chosen.items():
            *parents, last = key.split(".")
            node = pipeline
            for part in (name, *parents):
                if OmegaConf.is_interpolation(node, part):  # what it stands for may be another stage's
                    node[part] = copy.deepcopy(node[part])
                node = node[part]
            node[last] = chosen[f"pipeline.{name}.{key}"] = value
    return chosen


def _trained(node: DictConfig) -> Pretrained:
    """The trained model of ``node``, whose files can be measured."""
    source = build(node)
    if not isinstance(source, Pretrained):
        raise ValueError("only a trained model can be evaluated: choose model=pretrained model.path=...")
    source.check_files()
    source.max_length = node.max_length = source.history().max_length or source.max_length
    return source


def _dense(
    source: Pretrained, baseline: Pretrained | None, corpus: Corpus, comparing: Sequence[str]
) -> Pretrained | None:
    """The dense model to compare with; ``None`` for a compressed model without a baseline.

    Args:
        source: Source of the model that is measured.
        baseline: The baseline in the configuration, if there is one.
        corpus: Its text.
        comparing: Names of the measures that need a dense model.

    Raises:
        ValueError: The baseline is compressed itself, or a measure needs one and there is none.
    """
    dense = baseline or source
    reference.check_trained("the model" if baseline is None else "the baseline", dense, corpus)
    dense.validate(corpus.task)
    history = dense.history().compressed_by
    if not history:
        return dense
    compressed = f"'{dense.path}' is compressed ({', '.join(history)})"
    if baseline is not None:
        raise ValueError(f"the baseline must be a dense model, and {compressed}: choose another baseline.path")
    if comparing:
        raise ValueError(
            f"{compressed}, and {', '.join(comparing)} compares with the dense model: name it by "
            "model@baseline=pretrained baseline.path=..., or drop the measure"
        )
    return None


def _check_device(name: str) -> None:
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device must be a torch device such as cpu, cuda or cuda:1, got '{name}'") from error
    if device.type == "meta":
        raise ValueError("device must be one that computes, got 'meta': use device=cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device is '{name}', but torch sees {torch.cuda.device_count()} CUDA devices: use device=cpu")
