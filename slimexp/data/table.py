"""Rows of a user's own table -> examples: the part that hub and files share."""

import difflib
import logging
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, get_args

from slimexp.data import grading
from slimexp.data.base import HELD_OUT, Corpus, Direction, Example, Split, Task, rank
from slimexp.data.passage import cut

log = logging.getLogger(__name__)

Row = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Names of the columns; a task reads only its own.

    Attributes:
        source: What a seq2seq model reads.
        target: What it must write.
        text: What a causal LM or a classifier reads.
        label: The class, as text or integer.
    """

    source: str
    target: str
    text: str
    label: str

    def of(self, task: Task) -> tuple[str, ...]:
        """The columns that ``task`` reads, the model's input first."""
        return {
            "seq2seq": (self.source, self.target),
            "causal_lm": (self.text,),
            "classification": (self.text, self.label),
        }[task]


@dataclass(frozen=True, kw_only=True)
class Splits:
    """Names of the splits, and how to make those that the data lack.

    Attributes:
        train: Name of the training split.
        validation: Name of the validation split; ``None``, or a name the data lack: taken out of train.
        test: Name of the test split; the same holds.
        held_out: Share of the training rows that each split made from them gets, in (0, 0.5).
        max_train: Most training rows, chosen by hash; ``None`` for all.
        max_held_out: Most validation and most test rows; ``None`` for all.
        seed: Decides which rows are taken.
    """

    train: str
    validation: str | None
    test: str | None
    held_out: float
    max_train: int | None
    max_held_out: int | None
    seed: int

    def __post_init__(self) -> None:
        if not 0 < self.held_out < 0.5:
            raise ValueError(f"splits.held_out must be in (0, 0.5), got {self.held_out}")
        for name in ("max_train", "max_held_out"):
            if (limit := getattr(self, name)) is not None and limit < 1:
                raise ValueError(f"splits.{name} must be >= 1, or null for all rows, got {limit}")

    @property
    def names(self) -> dict[Split, str | None]:
        return {"train": self.train, "validation": self.validation, "test": self.test}


class Table(Corpus):
    """Text from a table, for any task.

    Args:
        task: ``seq2seq``, ``causal_lm`` or ``classification``.
        columns: What the columns are called.
        splits: What the splits are called.
        passage: Most characters of a ``causal_lm`` row: longer text is cut between lines, else between
            words; ``None`` leaves it whole. Other tasks do not read it.
    """

    def __init__(self, *, task: Task, columns: Columns, splits: Splits, passage: int | None) -> None:
        if task not in get_args(Task):
            raise ValueError(f"task must be one of {', '.join(get_args(Task))}, got {task!r}")
        if passage is not None and passage < 2:
            raise ValueError(f"passage must be >= 2 characters, or null to leave text whole, got {passage}")
        self.task = task
        self.columns = columns
        self.split_names = splits
        self.passage = passage
        self.headline, direction = grading.HEADLINES[task]
        self.direction: Direction = direction
        self._names: tuple[str, ...] = ()
        self._codes: dict[str, int] = {}

    @abstractmethod
    def read(self) -> tuple[dict[Split, Sequence[Row]], Sequence[str] | None]:
        """Rows of the splits that the data have, and the names of the classes where the data declare them."""

    @cached_property
    def labels(self) -> tuple[str, ...]:  # type: ignore[override]
        """Names of the classes, in the order the data declare, else sorted; reads the data."""
        _ = self.splits
        return self._names

    def load(self) -> Mapping[Split, Sequence[Example]]:
        tables, declared = self.read()
        rows = {split: self._checked(split, table) for split, table in tables.items()}
        if self.task == "classification":
            values = [str(index) for index in range(len(declared))] if declared else self._values(rows["train"])
            self._names = tuple(declared or values)
            self._codes = {value: index for index, value in enumerate(values)}
        splits = self._held_out({split: self._examples(split, kept) for split, kept in rows.items()})
        if self.task == "causal_lm" and self.passage is not None:
            size = self.passage
            return {
                split: [Example(piece) for row in examples for piece in cut(row.source, size)]
                for split, examples in splits.items()
            }
        return splits

    def grade(self, predictions: Sequence[Any], examples: Sequence[Example]) -> dict[str, float]:
        if self.task == "seq2seq":
            return grading.grade_text(predictions, examples)
        if self.task == "causal_lm":
            return grading.grade_likelihood(predictions, examples)
        return grading.grade_label(predictions, examples, classes=len(self.labels))

    def trivial(self, examples: Sequence[Example]) -> float:
        """Headline of copying the input, of bytes by their frequency, or of the commonest class in training."""
        if self.task == "seq2seq":
            return self.grade([example.source for example in examples], examples)[self.headline]
        if self.task == "causal_lm":
            return grading.byte_bits(self.splits["train"], examples)
        return self.grade([grading.commonest_label(self.splits["train"])] * len(examples), examples)[self.headline]

    def _checked(self, split: Split, table: Iterable[Row]) -> list[tuple[Any, ...]]:
        """The task's columns of every row that has text."""
        wanted = self.columns.of(self.task)
        texts = wanted[:1] if self.task == "classification" else wanted
        checked, number = [], 0
        for number, row in enumerate(table, start=1):
            for column in wanted:
                if column not in row:
                    raise ValueError(missing_column(column, row, split=split))
            for column in texts:
                if not isinstance(row[column], str):
                    raise ValueError(
                        f"column '{column}' must hold text, row {number} of split '{split}' holds {row[column]!r}: "
                        "fill or drop the row, or name another column"
                    )
            if all(row[column].strip() for column in texts):
                checked.append(tuple(row[column] for column in wanted))
        if lacking := number - len(checked):
            log.warning(
                "%d of %d rows of split '%s' lack %s and are left out", lacking, number, split, " or ".join(texts)
            )
        return checked

    def _values(self, rows: Iterable[tuple[Any, ...]]) -> list[str]:
        """The distinct labels, sorted: integers, written in digits or not, by value; other text by alphabet."""
        found = {label for _, label in rows}
        for label in found:
            if not isinstance(label, str | int):
                raise ValueError(f"column '{self.columns.label}' must hold text or integers, got {label!r}")
        numeric = all(str(label).removeprefix("-").isdecimal() for label in found)
        return list(map(str, sorted(found, key=int if numeric else str)))

    def _examples(self, split: Split, rows: Iterable[tuple[Any, ...]]) -> list[Example]:
        if self.task == "seq2seq":
            return [Example(source, target) for source, target in rows]
        if self.task == "causal_lm":
            return [Example(text) for (text,) in rows]
        return [Example(text, label=self._label(label, split)) for text, label in rows]

    def _label(self, label: Any, split: Split) -> int:
        if str(label) in self._codes:
            return self._codes[str(label)]
        known = [*self._codes][:8]
        raise ValueError(
            f"label {label!r} of split '{split}' is none of the {len(self._codes)} classes of the training split "
            f"({', '.join(known)}{', ...' if len(self._codes) > 8 else ''}): correct it, or, where the data hide the "
            f"labels of their {split} split, set data.splits.{split}=null to take it out of train"
        )

    def _held_out(self, examples: dict[Split, list[Example]]) -> dict[Split, list[Example]]:
        """Make missing splits from train, drop rows that a later split holds too, apply the limits."""
        train = examples.get("train", [])
        order = sorted({_key(example) for example in train}, key=self._rank)
        share = max(1, round(self.split_names.held_out * len(order)))
        for split in HELD_OUT:
            if split not in examples:
                log.warning("split '%s' is taken out of train: %.0f %% of it", split, 100 * self.split_names.held_out)
                taken, order = set(order[:share]), order[share:]
                examples[split] = [example for example in train if _key(example) in taken]
        held_out: set[str] = set()
        kept: dict[Split, list[Example]] = {}
        for split, limit in self._limits():
            kept[split] = [example for example in examples.get(split, []) if _key(example) not in held_out]
            held_out.update(map(_key, kept[split]))
            kept[split] = self._limited(kept[split], limit)
        return kept

    def _limits(self) -> list[tuple[Split, int | None]]:
        """Most rows of each split; a row stays in the first that has it."""
        names = self.split_names
        return [("test", names.max_held_out), ("validation", names.max_held_out), ("train", names.max_train)]

    def _limited(self, examples: list[Example], limit: int | None) -> list[Example]:
        if limit is None or len(examples) <= limit:
            return examples
        chosen = sorted(range(len(examples)), key=lambda index: self._rank(_key(examples[index])))[:limit]
        return [examples[index] for index in sorted(chosen)]

    def _rank(self, key: str) -> float:
        return rank(key, split_seed=self.split_names.seed)


def missing_column(column: str, row: Row, *, split: str) -> str:
    """What to say when ``row`` lacks ``column``."""
    near = difflib.get_close_matches(column, row, n=1)
    return (
        f"column '{column}' is missing in split '{split}'; there are: {', '.join(map(str, row)) or 'none'}"
        + (f"; did you mean '{near[0]}'?" if near else "")
        + " (name yours under data.columns)"
    )


def _key(example: Example) -> str:
    return " ".join(example.source.casefold().split())
