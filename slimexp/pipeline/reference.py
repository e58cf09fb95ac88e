"""The dense model of a run, with which its stages are compared, and which is the teacher of those that name none."""

import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

from transformers import PreTrainedConfig

from slimexp.data.base import Corpus
from slimexp.loss.base import Loss
from slimexp.model.attention import stacks
from slimexp.model.base import Source
from slimexp.model.labels import by_position, class_names, in_model_order
from slimexp.model.unknown_words import check_words
from slimexp.technique.finetune import Finetune
from slimexp.technique.teacher import check_unlike, check_vocabularies, reads_alike

log = logging.getLogger(__name__)

_NEW_HEAD = "has a classifier that nobody trained"
_NAME_BASELINE = "name the dense model by model@baseline=pretrained baseline.path=..."


def number_classes(corpus: Corpus, config: PreTrainedConfig) -> None:
    """Number the corpus' classes as the model's outputs, so that labels and predictions mean the same.

    Args:
        corpus: The corpus, whose classes are numbered anew.
        config: The model's config, which may name its classes.

    Raises:
        ValueError: The model has other classes than the corpus.
    """
    _warn_of_positions(config, corpus, "the model")
    corpus.number_classes(in_model_order(config, corpus.labels))


def dense(source: Source, baseline: Source | None, first: Finetune, corpus: Corpus) -> Source | None:
    """Source of the dense model; ``None`` where the first stage trains the model, or a classifier's new head.

    Args:
        source: Source of the model that the run starts from.
        baseline: The baseline in the configuration, if there is one.
        first: Technique of the first stage.
        corpus: The corpus that the models serve.

    Raises:
        ValueError: The dense model is compressed, a part of it was never trained, or there is none.
    """
    if baseline is not None:
        with found_at("baseline"):
            config = baseline.validate(corpus.task, corpus.labels)
        check_trained("the baseline", baseline, corpus)
        _warn_of_positions(config, corpus, "the baseline")
        chosen, way_out = baseline, "choose another baseline"
    elif not source.is_trained(corpus.task):
        state = "has random weights" if source.is_random else _NEW_HEAD
        if type(first) is not Finetune:
            raise ValueError(
                f"the run's model {state}, which nothing can be compared with or taught by: {_NAME_BASELINE}, or train "
                "it first by a stage of technique finetune, as pipeline=finetune_prune, finetune_quantize, "
                "finetune_distill and finetune_prune_quantize do"
            )
        if not source.is_random:
            log.warning(
                "the run's model %s: the first stage trains it, and what it gives is the dense model", _NEW_HEAD
            )
        return None
    else:
        chosen, way_out = source.origin, _NAME_BASELINE
    if history := chosen.history().compressed_by:
        role = "model" if baseline is None else "baseline"
        raise ValueError(
            f"stages are compared with a dense model, and this {role} is compressed ({', '.join(history)}): {way_out}"
        )
    return chosen


def check_trained(name: str, source: Source, corpus: Corpus) -> None:
    """Refuse to measure a model, or to learn from it, while a part of it was never trained.

    Args:
        name: Name of the model in messages.
        source: Source of the model.
        corpus: The corpus that it serves.

    Raises:
        ValueError: Its classifier has random weights, or all of it has.
    """
    if not source.is_trained(corpus.task):
        raise ValueError(
            f"{name} {_NEW_HEAD}, whose answers are random: train it by a run of pipeline=finetune first, and name "
            "the artifact of that run"
        )


def check_teachers(techniques: Mapping[str, Finetune], source: Source, dense: Source | None, corpus: Corpus) -> None:
    """Refuse, before anything is trained, teachers that cannot teach the run's model.

    Args:
        techniques: Technique of each stage, by the stage's name.
        source: Source of the model that the run starts from.
        dense: Source of the dense model, as ``dense`` returns it.
        corpus: The corpus that the models serve.

    Raises:
        ValueError: A student would be its own teacher, or teacher and student have other vocabularies or lengths.
    """
    trains_dense = 0 if dense is source else 1 if dense is None else None  # the stage that starts from the dense model
    for position, (name, technique) in enumerate(techniques.items()):
        if not technique.consults_teacher:
            continue
        if technique.teacher is not None:
            _check_teacher(f"pipeline.{name}.teacher", technique.teacher, source, corpus, technique)
        elif position == trains_dense and not technique.alters:
            raise ValueError(
                f"pipeline.{name}: the student would be its own teacher: give a cut (+cut@pipeline.{name}.cut=keep "
                f"and what stays), a teacher (+model@pipeline.{name}.teacher=pretrained "
                f"pipeline.{name}.teacher.path=...), or, for a student of its teacher's own size, a stage before that "
                "compresses it (pipeline=[quantize,distill])"
            )
        elif dense is not None and dense is not source:
            _check_teacher("baseline", dense, source, corpus, technique)


def taught_in_other_tokens(
    techniques: Mapping[str, Finetune], source: Source, dense: Source | None, corpus: Corpus
) -> list[str]:
    """Names of the stages whose teacher has another tokenizer; arguments as of ``check_teachers``."""
    found = []
    for name, technique in techniques.items():
        teacher = technique.teacher or dense
        aligns = any(loss.needs_teacher and loss.aligns for loss in technique.named_losses.values())
        if aligns and teacher is not None and teacher is not source:
            tokenizers = (model.load_tokenizer(corpus.texts) for model in (source, teacher))
            found += [] if reads_alike(*tokenizers) else [name]
    return found


def check_losses(techniques: Mapping[str, Finetune], source: Source, dense: Source | None, corpus: Corpus) -> None:
    """Refuse losses that do not fit teacher and student, where both are known before anything is done.

    Args:
        techniques: Technique of each stage, by the stage's name.
        source: Source of the model that the run starts from.
        dense: Source of the dense model, as ``dense`` returns it.
        corpus: The corpus that the models serve.

    Raises:
        ValueError: Names the loss, and the way out.
    """
    for name, technique in techniques.items():
        if comparing := {key: loss for key, loss in technique.named_losses.items() if loss.compares_blocks}:
            _check_losses(f"pipeline.{name}.losses", comparing, technique, (source, technique.teacher or dense), corpus)
        if technique.removes:
            return  # later stages meet another model


def check_tokenizers(
    source: Source, dense: Source | None, corpus: Corpus, techniques: Mapping[str, Finetune] | None = None
) -> None:
    """Refuse models whose tokenizer cannot write most words of the training text, which is read for it.

    Args:
        source: Source of the model that the command starts from.
        dense: Source of the dense model, as ``dense`` returns it.
        corpus: The corpus that the models serve.
        techniques: Technique of each stage, by the stage's name, whose teachers are looked at too.

    Raises:
        ValueError: As of ``check_words``.
    """
    models = {"the model": source, "the baseline": dense}
    models |= {f"pipeline.{name}.teacher": technique.teacher for name, technique in (techniques or {}).items()}
    seen: list[Source] = []
    for name, model in models.items():
        if model is None or model in seen or not model.has_tokenizer:
            continue
        seen.append(model)
        path = getattr(model, "path", None)
        check_words(model.load_tokenizer(corpus.texts), corpus, name if path is None else f"{name} '{path}'")


def check_unquantized(techniques: Iterable[Finetune], source: Source) -> None:
    """Refuse to quantize a quantized model.

    Args:
        techniques: Techniques of the stages.
        source: Source of the model that the run starts from.

    Raises:
        ValueError: A stage quantizes, and the run starts from a quantized model.
    """
    if any(technique.quantizes for technique in techniques) and source.history().quantized:
        raise ValueError("the model is quantized already: quantize once, starting from the model before that")


@contextmanager
def found_at(where: str) -> Iterator[None]:
    """Name ``where`` in what a model refuses that is at another key than ``model``, and in the way out.

    Args:
        where: Key of the model, such as ``pipeline.distill.teacher``.

    Raises:
        ValueError: The model refused something.
    """
    try:
        yield
    except ValueError as error:
        way_out = re.sub(r"\bmodel(?=\.(path|max_length)\b)", where, str(error))
        choice = f"{'' if where == 'baseline' else '+'}model@{where}="
        way_out = re.sub(r"(?<![\w@.])model=", choice, way_out)
        raise ValueError(f"{where}: {way_out}") from error


def _check_teacher(where: str, teacher: Source, student: Source, corpus: Corpus, technique: Finetune) -> None:
    """Refuse a teacher that cannot teach; of one that no loss reads, and that only writes, less is asked."""
    with found_at(where):
        config = teacher.validate(corpus.task, corpus.labels)
    _warn_of_positions(config, corpus, where)
    check_trained(where, teacher, corpus)
    if not technique.needs_teacher:
        return
    if teacher.max_length < student.max_length:
        raise ValueError(
            f"{where}.max_length must be >= model.max_length, for the teacher reads what the student reads; got "
            f"{teacher.max_length} and {student.max_length}"
        )
    of_student = student.load_tokenizer(corpus.texts)
    with found_at(where):
        tokenizers = of_student, teacher.load_tokenizer(corpus.texts)
    try:
        check_vocabularies(*tokenizers, technique.named_losses)
        if not reads_alike(*tokenizers):
            check_unlike(technique.packing, technique.completion)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _check_losses(
    where: str, losses: Mapping[str, Loss], technique: Finetune, models: tuple[Source, Source | None], corpus: Corpus
) -> None:
    """Refuse losses that do not fit a technique's incoming model and its teacher, which may be that model."""
    outlines = [model.outline(task=corpus.task, labels=corpus.labels) for model in models if model is not None]
    student = None if outlines[0] is None else technique.student_stacks(outlines[0])
    if student is None or outlines[-1] is None:
        return
    for name, loss in losses.items():
        try:
            loss.prepare(student, stacks(outlines[-1]), seed=technique.seed)
        except ValueError as error:
            raise ValueError(f"{where}.{name}: {error}") from error


def _warn_of_positions(config: PreTrainedConfig, corpus: Corpus, name: str) -> None:
    """Warn where the classes of the model ``name`` have other names than those of the corpus."""
    if by_position(config, corpus.labels):
        pairs = [f"{of_model} = {label}" for of_model, label in zip(class_names(config), corpus.labels, strict=True)]
        log.warning("classes of %s are taken by position: %s", name, ", ".join(pairs[:8]))
