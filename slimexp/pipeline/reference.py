"""The dense model of a run: what its stages are compared with, and taught by where no other teacher is named."""

import logging
from collections.abc import Iterable, Mapping

from transformers import PreTrainedConfig

from slimexp.data.base import Corpus
from slimexp.model.base import Source
from slimexp.model.labels import by_position, class_names, in_model_order
from slimexp.technique.finetune import Finetune, check_vocabularies

log = logging.getLogger(__name__)

_NEW_HEAD = "has a classifier that nobody trained"
_NAME_IT = "name the dense model by model@baseline=pretrained baseline.path=..."


def number_classes(corpus: Corpus, config: PreTrainedConfig) -> None:
    """Number the corpus' classes as the model's outputs are, so that labels and predictions mean the same.

    Raises:
        ValueError: The model tells other classes apart.
    """
    _say_positions(config, corpus, "the model")
    corpus.number_classes(in_model_order(config, corpus.labels))


def dense(source: Source, named: Source | None, first: Finetune, corpus: Corpus) -> Source | None:
    """Where the dense model comes from; ``None`` where the first stage trains it, or a classifier's new head.

    Args:
        source: What the run starts from.
        named: What was named as the dense model, if anything was.
        first: The first stage.
        corpus: What the models must serve.

    Raises:
        ValueError: It is compressed itself, a part of it was never trained, or there is none.
    """
    if named is not None:
        check_trained("the baseline", named, corpus)
        _say_positions(named.validate(corpus.task, corpus.labels), corpus, "the baseline")
        chosen, way_out = named, "choose another baseline"
    elif not source.is_trained(corpus.task):
        what = "has random weights" if source.is_random else _NEW_HEAD
        if type(first) is not Finetune:
            raise ValueError(
                f"the run's model {what}, which nothing can be compared with or taught by: {_NAME_IT}, or train it "
                "first by a stage of technique finetune, as pipeline=finetune_prune, finetune_quantize, "
                "finetune_distill and finetune_prune_quantize do"
            )
        if not source.is_random:
            log.warning(
                "the run's model %s: the first stage trains it, and what it gives is the dense model", _NEW_HEAD
            )
        return None
    else:
        chosen, way_out = source.origin, _NAME_IT
    if done := chosen.history().compressed_by:
        what = "model" if named is None else "baseline"
        raise ValueError(
            f"stages are compared with a dense model, and this {what} is compressed ({', '.join(done)}): {way_out}"
        )
    return chosen


def check_trained(what: str, source: Source, corpus: Corpus) -> None:
    """Refuse a model that a part of was never trained, where it is measured or teaches.

    Raises:
        ValueError: Its classifier is new, or all of it.
    """
    if not source.is_trained(corpus.task):
        raise ValueError(
            f"{what} {_NEW_HEAD}, whose answers are random: train it by a run of pipeline=finetune first, and name "
            "the artifact of that run"
        )


def check_teachers(techniques: Mapping[str, Finetune], source: Source, dense: Source | None, corpus: Corpus) -> None:
    """Refuse, before anything is trained, a teacher that cannot teach the run's model.

    Args:
        techniques: The stages by name.
        source: What the run starts from.
        dense: As ``dense`` gives it.
        corpus: What the models must serve.

    Raises:
        ValueError: A student would be its own teacher, or the two read differently.
    """
    trains_dense = 0 if dense is source else 1 if dense is None else None  # the stage that starts from the dense model
    for position, (name, technique) in enumerate(techniques.items()):
        if not technique.needs_teacher:
            continue
        if technique.teacher is not None:
            _check(f"pipeline.{name}.teacher", technique.teacher, source, corpus)
        elif position == trains_dense and not technique.alters:
            raise ValueError(
                f"pipeline.{name}: the student would be its own teacher: give a cut (+cut@pipeline.{name}.cut=keep "
                "and what stays) or a teacher"
            )
        elif dense is not None and dense is not source:
            _check("baseline", dense, source, corpus)


def check_unquantized(techniques: Iterable[Finetune], source: Source) -> None:
    """Refuse to quantize what is quantized.

    Raises:
        ValueError: A stage would, and the run starts from a quantized model.
    """
    if any(technique.quantizes for technique in techniques) and source.history().quantized:
        raise ValueError("the model is quantized already: quantize once, starting from the model before that")


def _check(where: str, teacher: Source, student: Source, corpus: Corpus) -> None:
    _say_positions(teacher.validate(corpus.task, corpus.labels), corpus, where)
    check_trained(where, teacher, corpus)
    if teacher.max_length < student.max_length:
        raise ValueError(
            f"{where}.max_length must be >= model.max_length, for the teacher reads what the student reads; got "
            f"{teacher.max_length} and {student.max_length}"
        )
    try:
        check_vocabularies(student.load_tokenizer(corpus.texts), teacher.load_tokenizer(corpus.texts))
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _say_positions(config: PreTrainedConfig, corpus: Corpus, what: str) -> None:
    if by_position(config, corpus.labels):
        pairs = [f"{theirs} = {ours}" for theirs, ours in zip(class_names(config), corpus.labels, strict=True)][:8]
        log.warning("classes of %s are taken by position: %s", what, ", ".join(pairs))
