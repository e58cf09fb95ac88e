"""What a teacher must have in common with its student."""

from transformers import PreTrainedTokenizerBase


def check_vocabularies(student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase) -> None:
    """Refuse a teacher whose token ids mean something else; rows of a model beyond its vocabulary do not matter.

    Raises:
        ValueError: The vocabularies differ.
    """
    of_student, of_teacher = student.get_vocab(), teacher.get_vocab()
    if of_student == of_teacher:
        return
    tokens = of_student.keys() | of_teacher.keys()
    differing = [token for token in tokens if of_student.get(token) != of_teacher.get(token)]
    raise ValueError(
        f"teacher and student read different vocabularies ({len(of_teacher)} and {len(of_student)} tokens, "
        f"{len(differing)} differ, e.g. {min(differing)!r}): distillation compares logits id by id. "
        "Choose a teacher with the student's tokenizer, or cut the student out of the teacher"
    )
