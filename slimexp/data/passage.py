"""Passages: long text cut into pieces of whole lines."""

import textwrap
from collections.abc import Iterator


def cut(text: str, size: int) -> Iterator[str]:
    """Runs of whole lines with at most ``size`` characters each; a longer line is broken between words.

    Only blank passages are left out, and no character is added.
    """
    passage = ""
    for line in text.splitlines(keepends=True):
        for piece in [line] if len(line) <= size else _broken(line, size):
            if len(passage) + len(piece) > size:
                if passage.strip():
                    yield passage
                passage = ""
            passage += piece
    if passage.strip():
        yield passage


def _broken(line: str, size: int) -> list[str]:
    return textwrap.wrap(line, size, expand_tabs=False, replace_whitespace=False, drop_whitespace=False)
