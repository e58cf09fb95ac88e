"""Python source: language modelling of the standard library's own code."""

from collections.abc import Mapping, Sequence
from functools import partial

from slimexp.data import grading, library
from slimexp.data.base import Corpus, Direction, Example, Split, Task
from slimexp.data.rows import Rows


class PythonSource(Corpus):
    """Source of the standard library in passages of whole lines, split by module.

    Args:
        packages: ``"none"`` or ``"installed"`` (adds the source of installed packages to training).
        passage: Largest number of characters of a passage.
        split_seed: Seed that decides which modules are held out.
    """

    task: Task = "causal_lm"
    headline = "bits_per_byte"
    direction: Direction = "min"

    def __init__(self, *, packages: library.Packages, passage: int, split_seed: int) -> None:
        if passage < 2:
            raise ValueError(f"passage must be >= 2 characters, got {passage}")
        library.check(packages)
        self.packages = packages
        self.passage = passage
        self.split_seed = split_seed

    def load(self) -> Mapping[Split, Sequence[Example]]:
        assign = partial(library.split_of, split_seed=self.split_seed)
        texts = library.passages(size=self.passage, packages=self.packages, assign=assign)
        return {split: [Example(row.text) for row in rows] for split, rows in texts.items()}

    def grade(self, predictions: Sequence[tuple[float, int, int]], examples: Sequence[Example]) -> dict[str, float]:
        return grading.grade_likelihood(predictions, examples)

    def by_row(self, predictions: Sequence[tuple[float, int, int]], examples: Sequence[Example]) -> dict[str, Rows]:
        return grading.likelihood_by_row(predictions, examples)

    def trivial(self, examples: Sequence[Example]) -> float:
        """Bits per byte of predicting bytes by their frequency."""
        return grading.byte_bits(self.splits["train"], examples)
