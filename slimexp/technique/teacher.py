"""What a teacher must have in common with its student."""

from collections.abc import Iterable, Mapping

import torch
from transformers import PreTrainedTokenizerBase

from slimexp.architecture.base import VOCABULARY
from slimexp.completion.base import Completion
from slimexp.cut.remove import remove
from slimexp.cut.vocabulary import ids_within
from slimexp.loss.base import Loss
from slimexp.model.alignment import check_offsets
from slimexp.model.attention import stacks
from slimexp.model.base import Family


def low_precision(precision: str, device: torch.device, *, sharded: bool = False) -> torch.dtype | None:
    """Type of a teacher's weights while a stage trains; ``None`` for the one that they have.

    Args:
        precision: The trainer's precision.
        device: Device that is trained on.
        sharded: Whether the teacher is in shards, whose type is chosen where they are made.
    """
    return torch.bfloat16 if device.type == "cuda" and not sharded and "bf16" in precision else None


def reads_alike(student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase) -> bool:
    """Whether a teacher's token ids mean what they mean to the student, but for a vocabulary that was pruned."""
    return student.get_vocab() == teacher.get_vocab() or ids_within(student, teacher) is not None


def check_vocabularies(
    student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase, losses: Mapping[str, Loss] | None = None
) -> None:
    """Refuse a teacher whose token ids mean something else; rows of a model beyond its vocabulary do not matter.

    Nor does it matter that the student's vocabulary was pruned: see ``reading_like``; nor that both are unlike, where
    all losses that read the teacher align the two.

    Raises:
        ValueError: The vocabularies differ, or one does not say where its tokens lie.
    """
    if reads_alike(student, teacher):
        return
    reading = {name: loss.aligns for name, loss in (losses or {}).items() if loss.needs_teacher}
    if reading and all(reading.values()):
        check_offsets(student)
        check_offsets(teacher)
        return
    of_student, of_teacher = student.get_vocab(), teacher.get_vocab()
    tokens = of_student.keys() | of_teacher.keys()
    differing = [token for token in tokens if of_student.get(token) != of_teacher.get(token)]
    by_id = ", ".join(f"losses.{name}" for name, aligns in reading.items() if not aligns)
    raise ValueError(
        f"teacher and student read different vocabularies ({len(of_teacher)} and {len(of_student)} tokens, "
        f"{len(differing)} differ, e.g. {min(differing)!r}), and {by_id or 'distillation'} compares id by id. "
        "Choose a teacher with the student's tokenizer, cut the student out of the teacher, have the teacher write "
        "(completion=teacher, and no loss that reads it), or take only losses that align tokens "
        "(loss=universal_logit, loss=byte_span)"
    )


def check_unlike(packing: bool | str, completion: Completion | None) -> None:
    """Refuse settings by which batches hold what has no text, and a teacher of other tokens has nothing to read.

    Args:
        packing: As of ``Training``.
        completion: As of ``Training``.

    Raises:
        ValueError: Rows hold pieces of several documents, or tokens that the student wrote.
    """
    if packing is True:
        raise ValueError(
            "packing=true puts pieces of texts into a row, which a teacher of another tokenizer does not read: set it "
            "to auto, which pads rows instead"
        )
    if completion is not None and completion.on_policy:
        raise ValueError(
            "a teacher of another tokenizer does not read the tokens that the student writes (completion=student): "
            "have the teacher write (completion=teacher), or choose one with the student's tokenizer"
        )


def reading_like(student: Family, teacher: Family, losses: Mapping[str, Loss] | None = None) -> Family:
    """The teacher with the student's token ids; as it is where losses align tokens that are unlike.

    Where the student's vocabulary was pruned, rows of the other tokens are taken out of the teacher too. It then reads
    and weighs the tokens that are left exactly as before.

    Raises:
        ValueError: The vocabularies differ otherwise.
    """
    check_vocabularies(student.tokenizer, teacher.tokenizer, losses)
    if student.tokenizer.get_vocab() == teacher.tokenizer.get_vocab():
        return teacher
    ids = ids_within(student.tokenizer, teacher.tokenizer)
    if ids is None:
        return teacher
    whole = {stack: range(len(blocks)) for stack, blocks in teacher.blocks().items()}
    return remove(teacher, whole, {VOCABULARY: {"": torch.tensor(ids)}})


def fit_losses(losses: Iterable[Loss], student: Family, teacher: Family | None, *, seed: int) -> None:
    """Have losses that compare blocks take note of both models.

    Args:
        losses: The losses.
        student: The student.
        teacher: Its teacher, if it has one.
        seed: Seed of the parameters of losses that learn.

    Raises:
        ValueError: A loss does not fit the models.
    """
    if comparing := [loss for loss in losses if loss.compares_blocks]:
        of_student, of_teacher = stacks(student), {} if teacher is None else stacks(teacher)
        for loss in comparing:
            loss.prepare(of_student, of_teacher, seed=seed)
