"""Typing errors: what fingers do to a sentence."""

import math
from random import Random

_ROWS = ("1234567890-", "qwertyuiop", "asdfghjkl;", "zxcvbnm,./")  # QWERTY; each row sits half a key to the right
_LETTERS = "etaoinshrdlucmfwypvbgkjqxz"

# Shares of the kinds of error, cumulated; what remains is a flip of case.
_NEIGHBOUR, _DROP, _DOUBLE, _SWAP, _INSERT = 0.40, 0.58, 0.70, 0.78, 0.88


def _neighbours() -> dict[str, str]:
    """Key -> the keys that touch it, for both cases of letters."""
    keys = {}
    for row, line in enumerate(_ROWS):
        for column, key in enumerate(line):
            spots = ((row, -1), (row, 1), (row - 1, 0), (row - 1, 1), (row + 1, 0), (row + 1, -1))
            near = "".join(
                _ROWS[r][column + shift] for r, shift in spots if 0 <= r < 4 and 0 <= column + shift < len(_ROWS[r])
            )
            keys[key.upper()] = near.upper()
            keys[key] = near  # second, for the keys without case
    return keys


NEIGHBOURS = _neighbours()


def corrupt(text: str, rate: float, random: Random) -> str:
    """``text`` with typing errors.

    Each character is hit with probability ``rate``, independently; the gaps between hits are drawn
    directly (geometric), so the cost is that of the errors and not of the characters.

    Args:
        text: A sentence.
        rate: Probability of an error at a character, in [0, 1).
        random: Source of all chance.
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
    """What is typed for the first character of ``pair`` (itself and the next), and how many characters that covers."""
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
