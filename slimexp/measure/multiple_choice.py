"""Questions of multiple choice by likelihood, built from the held-out text of a corpus.

- ``spelling_choice`` (seq2seq): which of N sentences corrects the source? The wrong ones are other misspellings of the
  same sentence, each with one letter replaced, so all are of like length.
- ``next_line`` (causal LM): which of N lines follows the passage? The wrong ones are lines from elsewhere, indented
  like the right one.
"""

import random
import string
from collections.abc import Sequence
from typing import Any

from slimexp.data.base import Example
from slimexp.measure.base import spread

_SHORTEST_LINE = 8  # characters; shorter lines ("else:", ")") follow almost anything
_CONTEXT_LINES = 3  # least lines before the one to be guessed

Item = dict[str, Any]  # context, choices, answer (its index among the choices)


def spelling_items(examples: Sequence[Example], *, choices: int, seed: int) -> list[Item]:
    """One question per example: which is the target of its source, among misspellings of it?

    Raises:
        ValueError: A sentence has too few letters to be misspelt in enough ways.
    """
    items = []
    for i, example in enumerate(examples):
        right = example.target or ""
        chance = random.Random(f"{seed} {i} {right}")
        wrong: set[str] = set()
        for _ in range(100 * choices):
            if len(wrong) == choices - 1:
                break
            wrong |= {_misspell(right, chance)} - {right, example.source}
        else:
            raise ValueError(f"'{right}' has too few letters for {choices - 1} misspellings: lower choices")
        items.append(_item(example.source, right, sorted(wrong), chance))
    return items


def next_line_items(rows: Sequence[Example], *, choices: int, limit: int | None, longest: int, seed: int) -> list[Item]:
    """One question per row that has a line to guess, up to ``limit``, spread evenly.

    Args:
        rows: Passages of several lines.
        choices: Number of answers per question.
        limit: Largest number of questions; ``None`` for all.
        longest: Largest length of an answer in bytes.
        seed: Seed of the choice of rows, lines and wrong answers.

    Raises:
        ValueError: Too few rows have a line to guess.
    """
    guessable = [(row.source.splitlines(), _guessable(row.source, longest)) for row in rows]
    guessable = [(lines, places) for lines, places in guessable if places]
    if len(guessable) < choices:
        raise ValueError(
            f"next_line needs {choices} passages with a line of {_SHORTEST_LINE} characters to {longest} bytes after "
            f"{_CONTEXT_LINES} others, and the split has {len(guessable)}: it is for text of several lines"
        )
    items = []
    for i in spread(len(guessable), limit, seed):
        lines, places = guessable[i]
        chance = random.Random(f"{seed} {i}")
        at = chance.choice(places)
        right = lines[at]
        indent = right[: len(right) - len(right.lstrip())]
        wrong: set[str] = set()
        for j in chance.sample(range(len(guessable)), len(guessable)):
            if len(wrong) < choices - 1 and j != i:
                elsewhere, others = guessable[j]
                wrong |= {indent + elsewhere[chance.choice(others)].strip()} - {right}
        if len(wrong) == choices - 1:
            items.append(_item("\n".join(lines[:at]) + "\n", right, sorted(wrong), chance))
    return items


def _guessable(text: str, longest: int) -> list[int]:
    """Indices of the lines that a question can be about; the last line, which may be cut short, is left out."""
    lines = text.splitlines()
    return [
        i
        for i in range(_CONTEXT_LINES, len(lines) - 1)
        if len(lines[i].strip()) >= _SHORTEST_LINE and len(lines[i].encode()) <= longest and "".join(lines[:i]).strip()
    ]


def _misspell(text: str, chance: random.Random) -> str:
    """``text`` with one letter replaced by another of the same case."""
    letters = [i for i, character in enumerate(text) if character in string.ascii_letters]
    if not letters:
        return text
    at = chance.choice(letters)
    typed = chance.choice(string.ascii_uppercase if text[at].isupper() else string.ascii_lowercase)
    return text[:at] + typed + text[at + 1 :]


def _item(context: str, right: str, wrong: Sequence[str], chance: random.Random) -> Item:
    choices = [right, *wrong]
    chance.shuffle(choices)
    return {"context": context, "choices": choices, "answer": choices.index(right)}
