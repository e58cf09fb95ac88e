"""Typing errors: neighbouring keys, and letters dropped, doubled, swapped or inserted."""

import math
from random import Random

_ROWS = ("1234567890-", "qwertyuiop", "asdfghjkl;", "zxcvbnm,./")  # QWERTY; each row sits half a key to the right
_LETTERS = "etaoinshrdlucmfwypvbgkjqxz"

# Cumulative shares of the kinds of error; the rest are flips of case.
_NEIGHBOUR, _DROP, _DOUBLE, _SWAP, _INSERT = 0.40, 0.58, 0.70, 0.78, 0.88


def _neighbours() -> dict[str, str]:
    """Key -> the adjacent keys, for both cases of letters."""
    keys = {}
    for row, line in enumerate(_ROWS):
        for column, key in enumerate(line):
            positions = ((row, -1), (row, 1), (row - 1, 0), (row - 1, 1), (row + 1, 0), (row + 1, -1))
            near = "".join(
                _ROWS[r][column + shift] for r, shift in positions if 0 <= r < 4 and 0 <= column + shift < len(_ROWS[r])
            )
            keys[key.upper()] = near.upper()
            keys[key] = near  # second, for the keys without case
    return keys


NEIGHBOURS = _neighbours()


def corrupt(text: str, rate: float, random: Random) -> str:
    """``text`` with typing errors.

    Each character has an error with probability ``rate``, independently; the gaps between errors are drawn
    directly (geometric), so that the cost grows with the errors and not with the characters.

    Args:
        text: A sentence.
        rate: Probability of an error at a character, in [0, 1).
        random: Random generator.
    """
    if rate <= 0:
        return text
    uniform, scale = random.random, 1 / math.log1p(-rate)
    pieces: list[str] = []
    start = 0
    at = int(math.log(1 - uniform()) * scale)
    while at < len(text):
        typed, used = _mistype(text[at : at + 2], uniform(), uniform())
        pieces += text[start:at], typed
        start = at + used
        at = start + int(math.log(1 - uniform()) * scale)
    pieces.append(text[start:])
    return "".join(pieces)


def _mistype(pair: str, kind: float, choice: float) -> tuple[str, int]:
    """The text typed in place of the first character of a pair, and the number of characters that it replaces.

    Args:
        pair: A character and, unless it is the last one, the next.
        kind: Kind of the error, uniform in [0, 1).
        choice: Choice of the letter, uniform in [0, 1).
    """
    key = pair[0]
    if kind < _NEIGHBOUR:
        near = NEIGHBOURS.get(key)
        return (near[int(choice * len(near))], 1) if near else (key, 1)
    if kind < _DROP:
        return "", 1
    if kind < _DOUBLE:
        return key + key, 1
    if kind < _SWAP:
        return pair[::-1], len(pair)
    if kind < _INSERT:
        return key + _LETTERS[int(choice * len(_LETTERS))], 1
    return key.swapcase(), 1
