"""Training batches as a pure function of (seed, step), so that a resumed run sees what the straight run saw."""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from slimexp.data.base import Corpus
from slimexp.model.alignment import aligned
from slimexp.model.base import Batch, Family, PackedRow
from slimexp.technique.automatic import Auto
from slimexp.technique.packing import PackedOrder, generator, packed

Workers = int | Auto
Taught = Callable[[Batch], Batch]

MOST_PROCESSES = 8  # one tokenizes about a million tokens a second, several times what a GPU trains on
POOL = 32  # batches sorted by length together: little padding, and still a random order


@dataclass(frozen=True)
class Order:
    """Which training rows make up which batch.

    Attributes:
        lengths: Length of every row, in characters.
        batch_size: Number of rows per batch.
        seed: Seed of the shuffle.
    """

    lengths: Sequence[int]
    batch_size: int
    seed: int

    def rows(self, enough: int) -> int:
        """Number of rows of an epoch, counted up to ``enough``."""
        return min(len(self.lengths), enough)

    def batches(self, start: int, stop: int) -> Iterator[tuple[int, list[int]]]:
        """Epoch and row indices of batches ``start`` to ``stop - 1``."""
        per_epoch = max(len(self.lengths) // self.batch_size, 1)
        for epoch in range(start // per_epoch, (stop - 1) // per_epoch + 1):
            first = epoch * per_epoch
            batches = self._epoch(epoch, per_epoch)
            for rows in batches[max(start - first, 0) : stop - first]:
                yield epoch, rows

    def _epoch(self, epoch: int, count: int) -> list[list[int]]:
        """Batches of rows of similar length, in random order; rows left over are dropped from this epoch."""
        random = generator(self.seed, epoch)
        shuffled = torch.randperm(len(self.lengths), generator=random).tolist()[: count * self.batch_size]
        pool = POOL * self.batch_size
        batches = []
        for begin in range(0, len(shuffled), pool):
            rows = sorted(shuffled[begin : begin + pool], key=self.lengths.__getitem__)
            batches += [rows[i : i + self.batch_size] for i in range(0, len(rows), self.batch_size)]
        return [batches[i] for i in torch.randperm(len(batches), generator=random).tolist()]


class _Steps(Sampler[tuple[int, list[Any]]]):
    """Epoch and rows of every batch: the one place where the rows of a batch are chosen."""

    def __init__(self, order: Order | PackedOrder, start: int, stop: int) -> None:
        self.order, self.start, self.stop = order, start, stop

    def __iter__(self) -> Iterator[tuple[int, list[Any]]]:
        return self.order.batches(self.start, self.stop)

    def __len__(self) -> int:
        """Number of batches of the whole run: a resumed Lightning loop counts on from ``start``."""
        return self.stop


class _Unseen(_Steps):
    """The batches in which a row is read first; text that is new in every epoch is, in ``epochs`` of them."""

    def __init__(self, order: Order | PackedOrder, start: int, stop: int, *, epochs: int) -> None:
        super().__init__(order, start, stop)
        self.epochs = epochs

    def __iter__(self) -> Iterator[tuple[int, list[Any]]]:
        seen: set[tuple[int, Any]] = set()
        for epoch, rows in super().__iter__():
            names = {(epoch % self.epochs, row if isinstance(row, int) else _digest(row)) for row in rows}
            if not names <= seen:
                seen |= names
                yield epoch, rows


def _digest(row: PackedRow) -> bytes:
    return blake2b(row[0].tobytes() + row[1].tobytes(), digest_size=16).digest()


class _Batches(Dataset[Batch]):
    def __init__(
        self,
        corpus: Corpus,
        family: Family,
        multiple: int,
        share: tuple[int, int] = (0, 1),
        unlike: Family | None = None,
        *,
        epochs: int | None = None,
        taught: Taught | None = None,
    ) -> None:
        self.corpus, self.family, self.multiple, self.unlike = corpus, family, multiple, unlike
        self.first, self.every = share
        self.epochs, self.taught = epochs, taught

    def __getitem__(self, key: tuple[int, list[int]]) -> Batch:
        epoch, rows = key
        epoch = epoch if self.epochs is None else epoch % self.epochs
        examples = [self.corpus.training_example(row, epoch) for row in rows[self.first :: self.every]]
        texts = [(example.source, example.target, example.label) for example in examples]
        batch = self.family.encode(texts, multiple=self.multiple)
        if self.unlike is not None:
            batch = aligned(self.family, self.unlike, texts, batch, multiple=self.multiple)
        return batch if self.taught is None else self.taught(batch)


class _PackedBatches(Dataset[Batch]):
    def __init__(self, family: Family, multiple: int, share: tuple[int, int], *, taught: Taught | None = None) -> None:
        self.family, self.multiple = family, multiple
        self.first, self.every = share
        self.taught = taught

    def __getitem__(self, key: tuple[int, list[PackedRow]]) -> Batch:
        batch = self.family.pack(key[1][self.first :: self.every], multiple=self.multiple)
        return batch if self.taught is None else self.taught(batch)


def training_batches(
    corpus: Corpus,
    family: Family,
    *,
    batch_size: int,
    seed: int,
    start: int,
    stop: int,
    workers: Workers,
    multiple: int = 1,
    packing: bool = False,
    devices: int = 1,
    share: tuple[int, int] = (0, 1),
    unlike: Family | None = None,
    epochs: int | None = None,
    taught: Taught | None = None,
    unseen: bool = False,
) -> DataLoader[Batch]:
    """Batches ``start`` to ``stop - 1`` of a run.

    Args:
        corpus: Corpus whose training split is read.
        family: Family whose tokenizer encodes the text.
        batch_size: Number of rows per batch.
        seed: Seed of the order.
        start: First batch (where a resumed run goes on).
        stop: One past the last batch.
        workers: Number of loader processes; 0 loads in the training process, ``auto`` as ``processes`` chooses.
        multiple: Lengths are padded to a multiple of it.
        packing: Whether several documents share a row; where ``Family.packs``.
        devices: Number of devices of this machine that load batches side by side.
        share: First row of each batch, and distance to the next: the number of this process and of all of them, which
            together read the batches that one process would read.
        unlike: A teacher that reads the same texts in tokens of its own, see ``alignment.aligned``; not with packing.
        epochs: Of text that is new in every epoch: number of epochs after which it comes again; ``None`` for never.
        taught: Adds to a batch what a teacher says of it.
        unseen: Whether batches are left out all of whose rows were in others before.

    Raises:
        ValueError: There are fewer rows than processes that share a batch.
    """
    order: Order | PackedOrder
    batches: Dataset[Batch]
    if packing:
        order = PackedOrder(packed(corpus, family.tokenizer, width=family.max_length, seed=seed), batch_size)
        batches = _PackedBatches(family, multiple, share, taught=taught)
    else:
        rows = corpus.splits["train"]
        order = Order([len(row.source) for row in rows], min(batch_size, len(rows)), seed)
        batches = _Batches(corpus, family, multiple, share, unlike, epochs=epochs, taught=taught)
    if (count := share[1]) > 1 and (found := order.rows(count)) < count:
        kind = f"packed rows of {family.max_length} tokens" if packing else "rows"
        raise ValueError(
            f"each of {count} devices needs a row of every batch, but the number of {kind} of the training text is "
            f"{found}: set trainer.devices={max(found, 1)}, or give more text"
        )
    new = 1 if corpus.is_fixed else epochs
    steps = _Unseen(order, start, stop, epochs=new) if unseen and new is not None else _Steps(order, start, stop)
    return _loader(batches, steps, processes(workers, family.device, packing=packing, devices=devices))


def _loader(batches: Dataset[Batch], steps: Sampler[Any], count: int) -> DataLoader[Batch]:
    """Batches in the order of ``steps``, loaded by ``count`` processes.

    They are forked where that is safe, also in a pool's worker, whose own way would be to spawn: what is spawned
    imports everything anew and takes a copy of the model, which cannot even be pickled once it has quantizers.
    """
    forks = count > 0 and sys.platform == "linux"
    if count:  # a tokenizer that was not told of it warns in each process
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    return DataLoader(
        batches,
        batch_size=None,
        sampler=steps,
        num_workers=count,
        pin_memory=torch.cuda.is_available(),
        prefetch_factor=4 if count else None,
        persistent_workers=count > 0,
        worker_init_fn=_in_worker if count else None,
        multiprocessing_context="fork" if forks else None,
    )


def processes(workers: Workers, device: torch.device, *, packing: bool, devices: int = 1) -> int:
    """Number of loader processes: ``auto`` gives a GPU its share of the cores, at most 8.

    None where the model trains on the CPU, which the processes would take from it, nor for packed rows, which are
    tokenized ahead by a thread and only copied here.
    """
    if isinstance(workers, int):
        return workers
    if packing or device.type != "cuda":
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(MOST_PROCESSES, cores // devices) if cores > 2 else 0


def _in_worker(_: int) -> None:
    """The threads of a Rust tokenizer do not survive the fork."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


def calibration_batches(
    corpus: Corpus, family: Family, *, rows: int, seed: int, unlike: Family | None = None
) -> Iterator[Batch]:
    """Batches of one training row each, hence without padding; no global random state is touched.

    Args:
        corpus: Corpus whose training split, and no other, is read.
        family: Family whose tokenizer encodes the text.
        rows: Number of rows; beyond the size of the split they are drawn again.
        seed: Seed of the choice.
        unlike: As of ``training_batches``.
    """
    batches = _Batches(corpus, family, multiple=1, unlike=unlike)
    order = Order([len(row.source) for row in corpus.splits["train"]], 1, seed)
    return (batches[key] for key in order.batches(0, rows))
