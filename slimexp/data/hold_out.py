"""Held-out splits: those that the data lack are taken out of train, and no text is in two splits."""

import logging
from collections.abc import Mapping, Sequence

from slimexp.data.base import HELD_OUT, Example, Split, rank

log = logging.getLogger(__name__)

_PRECEDENCE: tuple[Split, ...] = ("test", "validation", "train")  # a text stays in the first split that has it


def hold_out(
    examples: Mapping[Split, Sequence[Example]], *, share: float, limits: Mapping[Split, int | None], seed: int
) -> dict[Split, list[Example]]:
    """Three splits without common texts.

    Args:
        examples: Split -> its rows; validation and test may be missing.
        share: Share of the training texts that each missing split gets, in (0, 0.5).
        limits: Split -> largest number of its rows, chosen by hash; ``None`` for all.
        seed: Seed of the hash that decides which rows are taken.
    """
    return _limited(_distinct(_completed(examples, share=share, seed=seed)), limits, seed=seed)


def text_key(example: Example) -> str:
    """The input of a row without regard to case and blanks: rows of equal keys have the same text."""
    return " ".join(example.source.casefold().split())


def _completed(
    examples: Mapping[Split, Sequence[Example]], *, share: float, seed: int
) -> dict[Split, Sequence[Example]]:
    """The splits, of which those that are missing are taken out of train."""
    splits: dict[Split, Sequence[Example]] = dict(examples)
    train = examples.get("train", ())
    order = sorted({text_key(example) for example in train}, key=lambda key: rank(key, split_seed=seed))
    count = max(1, round(share * len(order)))
    for split in HELD_OUT:
        if split not in splits:
            log.warning("split '%s' is taken out of train: %.0f %% of it", split, 100 * share)
            chosen, order = set(order[:count]), order[count:]
            splits[split] = [example for example in train if text_key(example) in chosen]
            splits["train"] = [example for example in splits["train"] if text_key(example) not in chosen]
    return splits


def _distinct(splits: Mapping[Split, Sequence[Example]]) -> dict[Split, list[Example]]:
    """The splits without the rows whose text a split of higher precedence has too."""
    earlier: set[str] = set()
    distinct: dict[Split, list[Example]] = {}
    for split in _PRECEDENCE:
        rows = splits.get(split, ())
        distinct[split] = [example for example in rows if text_key(example) not in earlier]
        if dropped := len(rows) - len(distinct[split]):
            log.warning("%d rows of split '%s' are left out: a held-out split has the same text", dropped, split)
        earlier.update(map(text_key, distinct[split]))
    return distinct


def _limited(
    splits: Mapping[Split, list[Example]], limits: Mapping[Split, int | None], *, seed: int
) -> dict[Split, list[Example]]:
    """At most so many rows of every split, those of least hash, in their order."""
    limited: dict[Split, list[Example]] = {}
    for split, rows in splits.items():
        limit = limits[split]
        if limit is None or len(rows) <= limit:
            limited[split] = rows
            continue
        by_hash = sorted(range(len(rows)), key=lambda index: rank(text_key(rows[index]), split_seed=seed))
        limited[split] = [rows[index] for index in sorted(by_hash[:limit])]
    return limited
