"""Texts that are nearly the same as an earlier one, found without comparing all pairs."""

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

SHINGLE = 8  # characters: of words and letters both
BANDS, ROWS = 20, 4
_PRIME = np.uint64(2**31 - 1)


def first_ones(texts: Sequence[str], similarity: float) -> list[int]:
    """Indices of the texts that are no near-duplicate of one that is kept before them.

    Texts are sets of their runs of ``SHINGLE`` characters, and alike by Jaccard's index, the share of runs that two
    have in common. Candidates are found by the smallest of hashes (Broder 1997, "On the resemblance and containment of
    documents"), in bands; each is then compared exactly. A pair of index s is found with the probability
    ``1 - (1 - s^ROWS)^BANDS``: 0.99997 at 0.8, 0.94 at 0.6, 0.72 at 0.5, so that a low ``similarity`` leaves some in.

    Args:
        texts: The texts, in order.
        similarity: Least index of a near-duplicate, in (0, 1]; 1 finds those with the same runs.
    """
    kept: list[int] = []
    sets: dict[int, frozenset[int]] = {}
    bands: list[dict[bytes, list[int]]] = [{} for _ in range(BANDS)]
    for index, text in enumerate(texts):
        runs = _runs(text)
        keys = [band.tobytes() for band in _smallest(runs).reshape(BANDS, ROWS)]
        near = {other for band, key in zip(bands, keys, strict=True) for other in band.get(key, ())}
        if any(_jaccard(runs, sets[other]) >= similarity for other in near):
            continue
        kept.append(index)
        sets[index] = runs
        for band, key in zip(bands, keys, strict=True):
            band.setdefault(key, []).append(index)
    return kept


def _runs(text: str) -> frozenset[int]:
    """Hashes of the runs of characters of a text; of a shorter one, of the whole."""
    plain = " ".join(text.split())
    runs = {plain[i : i + SHINGLE] for i in range(max(1, len(plain) - SHINGLE + 1))}
    return frozenset(
        int.from_bytes(hashlib.blake2b(run.encode("utf-8", "surrogatepass"), digest_size=4).digest(), "big")
        for run in runs
    )


def _jaccard(one: frozenset[int], other: frozenset[int]) -> float:
    return len(one & other) / len(one | other)


_RANDOM = np.random.default_rng(0)
_FACTORS = _RANDOM.integers(1, _PRIME, size=(BANDS * ROWS, 1), dtype=np.uint64)
_SHIFTS = _RANDOM.integers(0, _PRIME, size=(BANDS * ROWS, 1), dtype=np.uint64)


def _smallest(runs: frozenset[int]) -> NDArray[np.uint64]:
    """The smallest hash of the runs under each of ``BANDS * ROWS`` random hash functions."""
    numbers = np.fromiter(runs, dtype=np.uint64, count=len(runs)) % _PRIME
    hashes = (_FACTORS * numbers + _SHIFTS) % _PRIME
    smallest: NDArray[np.uint64] = hashes.min(axis=1)
    return smallest
