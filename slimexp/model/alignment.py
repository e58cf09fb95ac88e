"""One text in the tokens of two tokenizers: the smallest spans of text that are whole tokens of both.

Tokens say where in the text they end (offsets of the tokenizers library). Where a token of one ends and a token of the
other as well, a span ends; a character of several bytes is never cut, though its bytes may be tokens.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from tokenizers import Encoding
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from slimexp.model.base import Batch, Family, Text
from slimexp.model.tokenizer import unchanged

SPANS = (
    "spans"  # name in a batch of the number of the span in its row that each label is of, -1 for none, as the labels
)
OTHER = "teacher_"  # what names in a batch begin with that are of the teacher's own tokens


@dataclass(frozen=True, slots=True)
class Token:
    """Where a token ends.

    Attributes:
        end: Characters of the text up to its end; ``None`` for a special token, which is no part of the text.
        whole: Whether no character is cut at its end.
    """

    end: int | None
    whole: bool = True


def aligned(student: Family, teacher: Family, rows: Sequence[Text], batch: Batch, *, multiple: int = 1) -> Batch:
    """A batch with the same texts in the teacher's tokens, and the spans that the labels of both make up.

    Args:
        student: Family that encoded the batch.
        teacher: Family of the other tokenizer.
        rows: Texts of the batch.
        batch: The rows in the student's tokens.
        multiple: Number that lengths are padded to a multiple of.

    Returns:
        The batch, with ``spans`` [B, T], and what ``teacher.encode`` gives under names that begin with ``OTHER``, its
        ``spans`` [B, T'] among them.
    """
    other = teacher.encode(rows, multiple=multiple)
    written = student.task == "seq2seq"
    texts = [(target or "") if written else source for source, target, _ in rows]
    both = zip(*(tokens(family, texts, target=written) for family in (student, teacher)), strict=True)
    first = 0 if written else 1  # of a causal LM, no label is the first token
    pairs = [common_spans(own, others, first=first) for own, others in both]
    spans = {**other, SPANS: _laid_out([pair[1] for pair in pairs], other["labels"], first)}
    own = {SPANS: _laid_out([pair[0] for pair in pairs], batch["labels"], first)}
    return {**batch, **own, **{f"{OTHER}{name}": tensor for name, tensor in spans.items()}}


def teacher_batch(batch: Batch) -> Batch:
    """What of a batch the teacher reads: its own tokens where there are any, else those of the student."""
    own = {name.removeprefix(OTHER): tensor for name, tensor in batch.items() if name.startswith(OTHER)}
    return own or batch


def common_spans(student: Sequence[Token], teacher: Sequence[Token], *, first: int = 0) -> tuple[list[int], list[int]]:
    """Number of the span that each token is of, -1 for none, in two encodings of a text.

    A span has tokens of both, all of which are predicted. The ends of both texts are a span of their own, where both
    are whole.

    Args:
        student: Tokens of one encoding.
        teacher: Tokens of the other.
        first: The first token that is predicted.
    """
    shared = _boundaries(student) & _boundaries(teacher)
    ends = sorted(shared)
    numbers = [[_number(token, ends) for token in tokens] for tokens in (student, teacher)]
    if _ends(student) and _ends(teacher) and _length(student) == _length(teacher):
        for own in numbers:
            own[-1] = len(ends)
    lost = set(numbers[0]) ^ set(numbers[1]) | {number for own in numbers for number in own[:first]}
    return tuple([-1 if number in lost else number for number in own] for own in numbers)  # type: ignore[return-value]


def tokens(family: Family, texts: Sequence[str], *, target: bool) -> list[list[Token]]:
    """Where the tokens of each text end, as ``Family.token_ids`` encodes it.

    Args:
        family: Its tokenizer is one of the tokenizers library, see ``check_offsets``.
        texts: The texts.
        target: As of ``Family.token_ids``.
    """
    tokenizer = family.tokenizer
    switches = target and hasattr(tokenizer, "_switch_to_target_mode")
    with unchanged(tokenizer):
        backend = tokenizer.backend_tokenizer
        backend.no_padding()
        backend.enable_truncation(family.max_length, direction=tokenizer.truncation_side)
        if switches:
            tokenizer._switch_to_target_mode()
        encodings = backend.encode_batch(list(texts))
        if switches:
            tokenizer._switch_to_input_mode()
    return [_tokens(encoding) for encoding in encodings]


def check_offsets(tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a tokenizer that does not say where its tokens lie in a text.

    Raises:
        ValueError: It is none of the tokenizers library.
    """
    if not tokenizer.is_fast:
        raise ValueError(
            f"tokens of two tokenizers are aligned by where they lie in a text, which {type(tokenizer).__name__} does "
            "not tell: take a model whose tokenizer is one of the tokenizers library (tokenizer.json)"
        )


def _tokens(encoding: Encoding) -> list[Token]:
    special = encoding.special_tokens_mask
    bounds = encoding.offsets
    found = []
    for position, (_, end) in enumerate(bounds):
        following = bounds[position + 1] if position + 1 < len(bounds) and not special[position + 1] else None
        whole = following is None or following[0] >= end
        found.append(Token(None) if special[position] else Token(end, whole))
    return found


def _boundaries(tokens: Sequence[Token]) -> set[int]:
    return {token.end for token in tokens if token.end is not None and token.whole}


def _number(token: Token, ends: Sequence[int]) -> int:
    if token.end is None or not ends or token.end > ends[-1]:
        return -1
    return bisect_left(ends, token.end)


def _ends(tokens: Sequence[Token]) -> bool:
    """Whether a special token ends the text."""
    return len(tokens) > 1 and tokens[-1].end is None


def _length(tokens: Sequence[Token]) -> int:
    """Characters of the text that the tokens are of, which may be the beginning of a longer one."""
    return max((token.end for token in tokens if token.end is not None), default=0)


def _laid_out(numbers: Sequence[Sequence[int]], labels: Tensor, first: int) -> Tensor:
    """Numbers of spans as labels [B, T] lie: the label of a causal LM is the token after it."""
    laid = torch.full_like(labels, -1)
    for row, own in zip(laid, numbers, strict=True):
        row[: len(own) - first] = torch.tensor(own[first:], dtype=labels.dtype)
    return laid
