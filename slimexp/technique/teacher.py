"""What a teacher must have in common with its student."""

from collections.abc import Iterable

import torch
from transformers import PreTrainedTokenizerBase

from slimexp.architecture.base import VOCABULARY
from slimexp.cut.remove import remove
from slimexp.cut.vocabulary import ids_within
from slimexp.loss.base import Loss
from slimexp.model.attention import stacks
from slimexp.model.base import Family


def check_vocabularies(student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase) -> None:
    """Refuse a teacher whose token ids mean something else; rows of a model beyond its vocabulary do not matter.

    Nor does it matter that the student's vocabulary was pruned: see ``reading_like``.

    Raises:
        ValueError: The vocabularies differ.
    """
    of_student, of_teacher = student.get_vocab(), teacher.get_vocab()
    if of_student == of_teacher or ids_within(student, teacher) is not None:
        return
    tokens = of_student.keys() | of_teacher.keys()
    differing = [token for token in tokens if of_student.get(token) != of_teacher.get(token)]
    raise ValueError(
        f"teacher and student read different vocabularies ({len(of_teacher)} and {len(of_student)} tokens, "
        f"{len(differing)} differ, e.g. {min(differing)!r}): distillation compares logits id by id. "
        "Choose a teacher with the student's tokenizer, or cut the student out of the teacher"
    )


def reading_like(student: Family, teacher: Family) -> Family:
    """The teacher with the student's token ids.

    Where the student's vocabulary was pruned, rows of the other tokens are taken out of the teacher too. It then reads
    and weighs the tokens that are left exactly as before.

    Raises:
        ValueError: The vocabularies differ otherwise.
    """
    check_vocabularies(student.tokenizer, teacher.tokenizer)
    if student.tokenizer.get_vocab() == teacher.tokenizer.get_vocab():
        return teacher
    ids = ids_within(student.tokenizer, teacher.tokenizer)
    assert ids is not None
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
