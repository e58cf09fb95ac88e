"""Causal text in full rows: which documents share a row, as a pure function of (seed, step)."""

import copy
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import islice
from threading import Lock, Thread
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from slimexp.calibration.observe import undisturbed
from slimexp.data.base import Corpus
from slimexp.host import console
from slimexp.model.base import Family, Ids, PackedRow
from slimexp.model.packed import windows
from slimexp.model.tokenizer import digest, token_ids

Piece = tuple[int, int, int]  # an item, and where the piece of it starts and ends

POOL = 2**20  # characters that are tokenized and packed together: some 600 rows of 512, in a second of one core
_SILENT_S = 5.0


def generator(*seeds: int) -> torch.Generator:
    """A generator on the CPU; torch's reads 32 bits of its seed, so numbers must be mixed and not strung together."""
    mixed = np.random.SeedSequence(seeds).generate_state(1)[0]
    return torch.Generator().manual_seed(int(mixed))


def best_fit(lengths: Sequence[int], width: int) -> list[list[int]]:
    """Items in rows of at most ``width``: the longest first, each into the row where it leaves least room.

    Args:
        lengths: Length of every item, in 1 ... ``width``.
        width: Length of a row.

    Returns:
        Indices of the items of every row.
    """
    rows: list[list[int]] = []
    by_room: dict[int, list[int]] = {}  # room -> rows that have it left
    rooms = 0  # bit n is set where a row has room for just n: the first bit from the length on is the best fit
    for item in sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True):
        length = lengths[item]
        if fitting := rooms >> length:
            room = length + (fitting & -fitting).bit_length() - 1
            row = by_room[room].pop()
            if not by_room[room]:
                rooms ^= 1 << room
        else:
            row, room = len(rows), width
            rows.append([])
        rows[row].append(item)
        if left := room - length:
            by_room.setdefault(left, []).append(row)
            rooms |= 1 << left
    return rows


def fill(lengths: Sequence[int], width: int) -> list[list[Piece]]:
    """Items in rows of at most ``width``, few of them in pieces that leave hardly any room.

    Whole items by ``best_fit`` may leave much room: two texts of 300 tokens share no row of 512. So the items of the
    emptiest rows are cut to fill the others, wherever a 16th of a row is free. A piece starts with the last token of
    the one before, as windows do (``model.packed``), so that no token goes unpredicted.

    Args:
        lengths: Length of every item, in 1 ... ``width``.
        width: Length of a row.

    Returns:
        Item, start and end of the pieces of every row.
    """
    whole = best_fit(lengths, width)
    rows = sorted(([(item, 0, lengths[item]) for item in row] for row in whole), key=_length, reverse=True)
    least = max(2, width // 16)
    target = 0  # the fullest row that still has room for a piece
    while True:
        while target < len(rows) and width - _length(rows[target]) < least:
            target += 1
        if target >= len(rows) - 1:
            return rows
        item, start, end = rows[-1].pop()
        cut = min(end, start + width - _length(rows[target]))
        rows[target].append((item, start, cut))
        if cut < end:
            rows[-1].append((item, cut - 1, end))
        elif not rows[-1]:
            rows.pop()


class _Pool:
    """Packed rows of some documents, in flat arrays."""

    def __init__(self, documents: Sequence[Sequence[int]], width: int) -> None:
        texts = [np.array(part, dtype=np.int32) for ids in documents if ids for part in windows(ids, width)]
        rows = fill([len(text) for text in texts], width)
        ordered = [texts[item][start:end] for row in rows for item, start, end in row]
        self.ids: Ids = np.concatenate(ordered) if ordered else np.empty(0, dtype=np.int32)
        self.lengths: Ids = np.array([len(piece) for piece in ordered], dtype=np.int32)
        self.pieces = _bounds([len(row) for row in rows])
        self.tokens = _bounds([_length(row) for row in rows])

    def __len__(self) -> int:
        return len(self.tokens) - 1

    def row(self, index: int) -> PackedRow:
        return (
            self.ids[self.tokens[index] : self.tokens[index + 1]],
            self.lengths[self.pieces[index] : self.pieces[index + 1]],
        )


class Packed:
    """The training text of a corpus in packed rows.

    Documents are shuffled once, and tokenized and packed in pools when they are first needed, the next pool while the
    one before it is trained on. What shares a row stays together in every epoch; the order of the rows is new in each.
    A document longer than a row is split into windows, as in grading, and some are cut to fill rows (``fill``).

    Args:
        texts: The documents.
        tokenizer: Tokenizer, of which a copy is kept: a thread uses it while training may use the other.
        width: Longest row, in tokens.
        seed: Seed of all orders.
        pool: Number of characters of a pool.
    """

    def __init__(
        self, texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, *, width: int, seed: int, pool: int = POOL
    ) -> None:
        self.texts, self.width, self.seed = texts, width, seed
        self._tokenizer = copy.deepcopy(tokenizer)
        order = torch.randperm(len(texts), generator=generator(seed)).numpy()
        sizes = np.array([len(text) for text in texts], dtype=np.int64)[order]
        number = (np.cumsum(sizes) - sizes) // pool  # of the pool that the first character of a document falls into
        self._documents: list[NDArray[np.int64]] = np.split(order, np.flatnonzero(np.diff(number)) + 1)
        self._pools: dict[int, _Pool] = {}
        self._lock = Lock()

    def __len__(self) -> int:
        """Number of pools."""
        return len(self._documents)

    def pool(self, index: int) -> _Pool:
        with self._lock:
            if index not in self._pools:
                texts = [self.texts[document] for document in self._documents[index]]
                self._pools[index] = _Pool(token_ids(self._tokenizer, texts, limit=None), self.width)
            return self._pools[index]

    def rows(self, epoch: int) -> Iterator[tuple[int, int]]:
        """Pool and index of every row, in the order of ``epoch``; pools come in the order of their first use."""
        for index in range(len(self)):
            count = len(self.pool(index))
            if index + 1 < len(self) and index + 1 not in self._pools:
                Thread(target=self._try_pool, args=(index + 1,), daemon=True).start()
            shuffled = torch.randperm(count, generator=generator(self.seed, epoch, index))
            yield from ((index, row) for row in shuffled.tolist())

    def _try_pool(self, index: int) -> None:
        with suppress(Exception):  # training meets it again when it comes to this pool
            self.pool(index)


class PackedOrder:
    """Which packed rows make up which batch.

    Args:
        packed: The rows.
        batch_size: Number of rows per batch; a corpus that has fewer gives all of them.
    """

    def __init__(self, packed: Packed, batch_size: int) -> None:
        self.packed, self.batch_size = packed, batch_size

    def batches(self, start: int, stop: int) -> Iterator[tuple[int, list[PackedRow]]]:
        """Epoch and rows of batches ``start`` to ``stop - 1``; rows left over are dropped from their epoch.

        A batch far from the first asks for the text before it to be tokenized, and for nothing to be trained.
        """
        step = epoch = 0
        said = time.monotonic()
        while step < stop:
            first, waiting = step, []
            for row in self.packed.rows(epoch):
                waiting.append(row)
                if len(waiting) < self.batch_size:
                    continue
                if step >= start:
                    yield epoch, [self._row(*row) for row in waiting]
                elif time.monotonic() - said > _SILENT_S:
                    said = time.monotonic()
                    console.phase(f"tokenizing the text that was trained on before: {step} of {start} batches")
                step, waiting = step + 1, []
                if step == stop:
                    return
            if step == first:  # less than one batch
                if not waiting:
                    raise ValueError("the training text has no tokens: choose another corpus or tokenizer")
                if step >= start:
                    yield epoch, [self._row(*row) for row in waiting]
                step += 1
            per_epoch = step - first
            skipped = max(start - step, 0) // per_epoch
            step, epoch = step + skipped * per_epoch, epoch + 1 + skipped

    def rows(self, enough: int) -> int:
        """Number of rows of an epoch, counted up to ``enough``: text beyond them is not tokenized."""
        return sum(1 for _ in islice(self.packed.rows(0), enough))

    def _row(self, pool: int, row: int) -> PackedRow:
        return self.packed.pool(pool).row(row)


def check(packing: bool | str, corpus: Corpus) -> None:
    """Refuse rows of several documents where a corpus has none to give.

    Raises:
        ValueError: The text is not causal, or is another in every epoch.
    """
    if packing is True and not _suits(corpus):
        name = type(corpus).__name__
        why = "is new in every epoch" if corpus.task == "causal_lm" else f"is for the task {corpus.task}"
        raise ValueError(
            f"packing=true needs causal text that stays the same, but that of {name} {why}: set it to auto"
        )


def chosen(packing: bool | str, corpus: Corpus, families: Sequence[Family]) -> bool:
    """Whether rows hold several documents, as ``Training.packing`` says.

    Args:
        packing: ``True`` to insist, ``"auto"`` to fall back on padded rows in a line on the console.
        corpus: The text to train on.
        families: The student, and the teacher if there is one, before they are compiled.

    Raises:
        ValueError: ``packing`` is true, and the text or a model does not suit it.
    """
    check(packing, corpus)
    if not packing or not _suits(corpus):
        return False
    for family in families:
        with undisturbed(family):
            packs = family.packs()
        if not packs:
            why = f"{type(family.model).__name__} does not keep documents of one row apart"
            if packing is True:
                raise ValueError(f"packing=true, but {why}: set it to auto, which pads rows instead")
            console.phase(f"rows are padded, not packed: {why}")
            return False
    return True


def _suits(corpus: Corpus) -> bool:
    return corpus.task == "causal_lm" and corpus.is_fixed


_PACKED: WeakKeyDictionary[Corpus, dict[tuple[str, int, int], Packed]] = WeakKeyDictionary()


def packed(corpus: Corpus, tokenizer: PreTrainedTokenizerBase, *, width: int, seed: int) -> Packed:
    """The training text of ``corpus`` in packed rows; what was tokenized for an earlier stage is used again."""
    known = _PACKED.setdefault(corpus, {})
    key = (digest(tokenizer), width, seed)
    if key not in known:
        known[key] = Packed([row.source for row in corpus.splits["train"]], tokenizer, width=width, seed=seed)
    return known[key]


def _length(row: Sequence[Piece]) -> int:
    return sum(end - start for _, start, end in row)


def _bounds(lengths: Sequence[int]) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(np.asarray(lengths, dtype=np.int64))])
