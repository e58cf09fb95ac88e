"""Corpora: named splits of text, and the metrics of predictions on it.

A corpus knows text and grading, but not tokens (a model family does).
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from random import Random
from typing import Any, Literal

from slimexp.data.rows import Rows
from slimexp.host.progress import working

Task = Literal["seq2seq", "causal_lm", "classification"]
Split = Literal["train", "validation", "test"]
Direction = Literal["min", "max"]

HELD_OUT: tuple[Split, ...] = ("validation", "test")


def rank(name: str, *, split_seed: int) -> float:
    """A hash of ``name`` and ``split_seed`` in [0, 1): the order in which rows and modules are held out."""
    digest = hashlib.sha256(f"{split_seed}.{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def row_noise(seed: int, epoch: int, index: int) -> Random:
    """The random generator of one training row in one epoch."""
    return Random(((seed << 32) + epoch << 40) + index)


@dataclass(frozen=True, slots=True)
class Example:
    """One row of text.

    Attributes:
        source: Input of the model (for ``causal_lm``, the text itself).
        target: Reference output of a seq2seq model; ``None`` for the other tasks.
        label: Index of the class in ``Corpus.labels``; ``None`` for the other tasks.
    """

    source: str
    target: str | None = None
    label: int | None = None


class Corpus(ABC):
    """Text in three disjoint splits, with its metrics.

    Attributes:
        task: Task of the models that are trained on this corpus.
        labels: Names of the classes (``classification`` only).
        headline: The metric of ``grade`` that is the quality on a Pareto front.
        direction: Whether a smaller (``min``) or a larger (``max``) headline is better.
    """

    task: Task
    labels: tuple[str, ...] = ()
    headline: str
    direction: Direction

    @abstractmethod
    def load(self) -> Mapping[Split, Sequence[Example]]:
        """Read the text; called once.

        Raises:
            ValueError: Names the file, column or split that is wrong.
        """

    @cached_property
    def splits(self) -> Mapping[Split, Sequence[Example]]:
        """Split -> its rows; none of the three is empty.

        Raises:
            ValueError: A split is empty, or the text cannot be read.
        """
        with working("reading the text"):
            splits = self.load()
        for name in ("train", *HELD_OUT):
            if not splits.get(name):
                raise ValueError(
                    f"split '{name}' of corpus {type(self).__name__} is empty: every split needs a row of text that no "
                    "other split holds"
                )
        return splits

    def number_classes(self, names: Sequence[str]) -> None:
        """Number the classes in the order of ``names``, a permutation of ``labels``."""
        if tuple(names) == tuple(self.labels):
            return
        new = [names.index(name) for name in self.labels]
        self.splits = {
            split: [row if row.label is None else replace(row, label=new[row.label]) for row in rows]
            for split, rows in self.splits.items()
        }
        self.labels = tuple(names)

    def training_example(self, index: int, epoch: int) -> Example:
        """Row ``index`` of the training split in ``epoch``.

        A corpus with fresh noise overrides this with a pure function of (seed, epoch, index), so
        that a resumed run trains on the same text as an uninterrupted one.
        """
        return self.splits["train"][index]

    @property
    def is_fixed(self) -> bool:
        """Whether training rows are the same text in every epoch."""
        return getattr(self.training_example, "__func__", None) is Corpus.training_example

    def texts(self) -> Iterator[str]:
        """All training text, sources and targets, for training a tokenizer."""
        for example in self.splits["train"]:
            yield example.source
            if example.target is not None:
                yield example.target

    @abstractmethod
    def grade(self, predictions: Sequence[Any], examples: Sequence[Example]) -> dict[str, float]:
        """Metrics of predictions, by torchmetrics.

        Args:
            predictions: One per example: text (seq2seq), class index (classification), or
                ``(nats, tokens, hits)`` (causal_lm): summed negative log-likelihood in nats, number of
                predicted tokens, number of those whose most likely token was right.
            examples: The examples of these predictions.

        Returns:
            Metric name -> value; the headline is among them.
        """

    def by_row(self, predictions: Sequence[Any], examples: Sequence[Example]) -> Mapping[str, Rows]:
        """Metrics row by row, so that models are compared on the same rows; empty for a corpus that gives none.

        Args:
            predictions: As of ``grade``.
            examples: As of ``grade``.

        Returns:
            Name of a metric of ``grade`` -> its rows; a metric that is no ratio of sums over rows is left out.
        """
        return {}

    @abstractmethod
    def trivial(self, examples: Sequence[Example]) -> float:
        """Headline of the best baseline without a model: copied input, or frequencies of classes or bytes."""
