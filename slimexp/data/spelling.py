"""Spelling: correct the typing errors of sentences."""

import hashlib
from collections.abc import Mapping, Sequence
from functools import partial
from random import Random

from slimexp.data import grading, library
from slimexp.data.base import HELD_OUT, Corpus, Direction, Example, Split, Task, row_noise
from slimexp.data.rows import Rows
from slimexp.data.typo import corrupt


class Spelling(Corpus):
    """Sentences of the standard library's documentation with typing errors.

    Training noise is new in every epoch, a pure function of (seed, epoch, row). Held-out noise depends on the sentence
    and ``split_seed`` alone, so that every run is evaluated on the same typing errors.

    Args:
        packages: ``"none"`` or ``"installed"`` (adds the docstrings of installed packages to training).
        rate: Probability of a typing error at a character, in [0, 1).
        split_seed: Seed that decides which modules are held out, and their noise.
        seed: Seed of the training noise.
    """

    task: Task = "seq2seq"
    headline = "cer"
    direction: Direction = "min"

    def __init__(self, *, packages: library.Packages, rate: float, split_seed: int, seed: int) -> None:
        if not 0 <= rate < 1:
            raise ValueError(f"rate of typing errors must be in [0, 1), got {rate}")
        library.check(packages)
        self.packages = packages
        self.rate = rate
        self.split_seed = split_seed
        self.seed = seed

    def load(self) -> Mapping[Split, Sequence[Example]]:
        """Sentences of every split; the source of a training row is clean, ``training_example`` adds the noise."""
        assign = partial(library.split_of, split_seed=self.split_seed)
        texts = library.sentences(packages=self.packages, assign=assign)
        splits: dict[Split, list[Example]] = {"train": [Example(row.text, row.text) for row in texts["train"]]}
        for split in HELD_OUT:
            splits[split] = [Example(self._mistyped(row.text), row.text) for row in texts[split]]
        return splits

    def training_example(self, index: int, epoch: int) -> Example:
        """Row ``index`` with the typing errors of ``epoch``."""
        target = self.splits["train"][index].source
        return Example(corrupt(target, self.rate, row_noise(self.seed, epoch, index)), target)

    def grade(self, predictions: Sequence[str], examples: Sequence[Example]) -> dict[str, float]:
        return grading.grade_text(predictions, examples)

    def by_row(self, predictions: Sequence[str], examples: Sequence[Example]) -> dict[str, Rows]:
        return grading.text_by_row(predictions, examples)

    def trivial(self, examples: Sequence[Example]) -> float:
        """Character error rate of copying the input."""
        return self.grade([example.source for example in examples], examples)["cer"]

    def _mistyped(self, sentence: str) -> str:
        digest = hashlib.sha256(f"{self.split_seed}:{sentence}".encode()).digest()
        return corrupt(sentence, self.rate, Random(int.from_bytes(digest[:8], "big")))
