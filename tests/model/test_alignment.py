"""Spans that are whole tokens of two tokenizers, held against the bytes of the tokens themselves."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from slimexp.loss.base import IGNORE
from slimexp.model.alignment import OTHER, SPANS, Token, aligned, check_offsets, common_spans, teacher_batch
from slimexp.model.loading import Pretrained, Scratch
from slimexp.model.tokenizer import Bpe

Make = Callable[..., Any]
TEXTS = ["two words", "", "a", "and three more words, äöü € 漢字 🙂!", "  spaces  and\ttabs\n", "x" * 40]


def tokens(*ends: int | None) -> list[Token]:
    return [Token(end) for end in ends]


@pytest.mark.fast
def test_a_span_ends_where_a_token_of_both_does() -> None:
    #  ab|c|de|f   and   a|bc|d|e|f
    assert common_spans(tokens(2, 3, 5, 6), tokens(1, 3, 4, 5, 6)) == ([0, 0, 1, 2], [0, 0, 1, 1, 2])


@pytest.mark.fast
def test_what_only_one_has_is_of_no_span() -> None:
    assert common_spans(tokens(2, 4), tokens(2, 3)) == ([0, -1], [0, -1])
    assert common_spans(tokens(2), tokens(3)) == ([-1], [-1])
    assert common_spans([], tokens(3)) == ([], [-1])


@pytest.mark.fast
def test_a_character_is_never_cut() -> None:
    """Its three bytes are tokens of one, and the first two a token of the other."""
    one = [Token(1, whole=False), Token(1, whole=False), Token(1), Token(2)]
    other = [Token(1, whole=False), Token(1), Token(2)]
    assert common_spans(one, other) == ([0, 0, 0, 1], [0, 0, 1])


@pytest.mark.fast
def test_the_end_of_a_text_is_a_span_where_both_say_it() -> None:
    assert common_spans(tokens(2, None), tokens(1, 2, None)) == ([0, 1], [0, 0, 1])
    assert common_spans(tokens(2, None), tokens(1, 2)) == ([0, -1], [0, 0])
    assert common_spans(tokens(2, 4, None), tokens(2, None)) == ([0, -1, -1], [0, -1])  # the second was cut off


@pytest.mark.fast
def test_a_span_of_which_a_token_is_not_predicted_is_none() -> None:
    assert common_spans(tokens(1, 2, 3), tokens(None, 2, 3), first=1) == ([-1, -1, 1], [-1, -1, 1])
    assert common_spans(tokens(None, 2, 3), tokens(None, 2, 3), first=1) == ([-1, 0, 1], [-1, 0, 1])


@pytest.fixture(scope="module")
def families() -> Callable[[str], tuple[Any, Any]]:
    """Task -> a student of byte-pair tokens and a teacher of bytes."""
    from slimexp.model.tokenizer import Bytes
    from tests.conftest import TINY

    def make(task: str, *, max_length: int = 64) -> tuple[Any, Any]:
        made = []
        for recipe in (Bpe(vocab_size=300, characters=10_000), Bytes()):
            source = Scratch(config=TINY[task], tokenizer=recipe, max_length=max_length)
            made.append(source.load(task=task, texts=lambda: ["and three more words"] * 9, labels=()))
        return made[0], made[1]

    return make


def rows_of(task: str) -> list[tuple[str, str | None, None]]:
    return [(text, text, None) if task == "seq2seq" else (text, None, None) for text in TEXTS]


@pytest.mark.parametrize("task", ["seq2seq", "causal_lm"])
@pytest.mark.parametrize("multiple", [1, 16])
def test_both_sides_of_a_span_are_the_same_bytes(families: Make, task: str, multiple: int) -> None:
    student, teacher = families(task)
    batch = aligned(
        student, teacher, rows_of(task), student.encode(rows_of(task), multiple=multiple), multiple=multiple
    )
    other = teacher_batch(batch)
    assert all(
        torch.equal(other[name], tensor) for name, tensor in teacher.encode(rows_of(task), multiple=multiple).items()
    )
    for row, text in enumerate(TEXTS):
        own = pieces(student, batch["labels"][row], batch[SPANS][row])
        others = pieces(teacher, other["labels"][row], other[SPANS][row])
        assert own == others
        covered = "".join(value for value in own.values())
        assert covered == text.encode().decode("latin-1")[-len(covered) :] if covered else len(text) <= 1
        assert (batch[SPANS][row][batch["labels"][row] == IGNORE] == -1).all()


def pieces(family: Any, labels: torch.Tensor, spans: torch.Tensor) -> dict[int, str]:
    """Number of a span -> the bytes of its tokens, as latin-1."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    byte = {character: chr(value) for value, character in bytes_to_unicode().items()}
    found: dict[int, str] = {}
    for label, span in zip(labels.tolist(), spans.tolist(), strict=True):
        if span >= 0:
            token = family.tokenizer.convert_ids_to_tokens(label)
            special = token in family.tokenizer.all_special_tokens
            found[span] = found.get(span, "") + ("" if special else "".join(byte[character] for character in token))
    return found


def test_texts_that_are_cut_off_are_aligned_as_far_as_both_read(families: Make) -> None:
    student, teacher = families("causal_lm", max_length=16)
    rows = [("and three more words and three more words", None, None)]
    batch = aligned(student, teacher, rows, student.encode(rows))
    own = pieces(student, batch["labels"][0], batch[SPANS][0])
    assert own == pieces(teacher, teacher_batch(batch)["labels"][0], teacher_batch(batch)[SPANS][0])
    assert list(own.values()) == [" three", " more"]
    assert (batch[SPANS] == -1).any()


def test_a_batch_without_tokens_of_a_teacher_is_read_as_it_is(families: Make) -> None:
    student, _ = families("causal_lm")
    batch = student.encode([("a", None, None)])
    assert teacher_batch(batch) is batch
    assert not [name for name in batch if name.startswith(OTHER)]


def test_models_of_the_zoo() -> None:
    """A byte-level translator taught by a byte-pair tokenizer: spans are words and pieces of them."""
    student = Pretrained(path="zoo:t5_spelling", max_length=128).load(task="seq2seq", texts=tuple, labels=())
    other = Pretrained(path="zoo:llama_python_source", max_length=128).load(task="causal_lm", texts=tuple, labels=())
    other.task = "seq2seq"  # the tokenizer alone is of interest here
    from slimexp.model.alignment import tokens as of_text

    text = "Return the sum of two numbers."
    one, two = (of_text(family, [text], target=False)[0] for family in (student, other))
    first, second = common_spans(one, two)
    spans = {number for number in first if number >= 0}
    assert spans == {number for number in second if number >= 0} and 5 <= len(spans) <= len(second)


def test_a_tokenizer_that_does_not_say_where_its_tokens_lie_is_refused() -> None:
    from transformers import ByT5Tokenizer

    with pytest.raises(ValueError, match="which ByT5Tokenizer does not tell: take a model whose tokenizer"):
        check_offsets(ByT5Tokenizer())
