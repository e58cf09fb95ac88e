"""Rows of a user's own table -> examples: the part that hub and files share."""

import difflib
import logging
import re
import textwrap
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, get_args

from slimexp.data import grading, label
from slimexp.data.base import HELD_OUT, Corpus, Direction, Example, Split, Task, rank
from slimexp.data.passage import cut
from slimexp.data.reader import Row

log = logging.getLogger(__name__)

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")  # half a character: JSON can say it, UTF-8 cannot
_MANY_CLASSES = 1000


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
    def read(self) -> tuple[dict[Split, Iterable[Row]], Sequence[str] | None]:
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
            self._find_classes(rows, declared)
        examples = {split: [self._example(row, split) for row in kept] for split, kept in rows.items()}
        if self.task == "causal_lm":
            return self._passages(examples)
        splits = self._held_out(examples)
        if unseen := set(range(len(self._names))) - {example.label for example in splits["train"]}:
            names = ", ".join(sorted(self._names[i] for i in unseen)[:8])
            log.warning("no training row is of %d of %d classes: %s", len(unseen), len(self._names), names)
        return splits

    def _passages(self, examples: dict[Split, list[Example]]) -> Mapping[Split, Sequence[Example]]:
        """Whole texts held out and then cut; where they are too few, cut and then held out."""
        missing = len([split for split in HELD_OUT if split not in examples])
        too_few = missing and 0 < len(set(map(_key, examples["train"]))) <= missing
        if self.passage is None:
            if too_few:
                raise ValueError(
                    f"too few training texts to take {missing} splits out of whole ones: set data.passage, so that "
                    "passages are taken"
                )
            return self._held_out(examples)
        if too_few:
            log.warning("too few texts to hold whole ones out: passages of %d characters are", self.passage)
            return self._held_out({split: self._cut(kept) for split, kept in examples.items()})
        return {split: self._cut(kept) for split, kept in self._held_out(examples).items()}

    def _cut(self, examples: Iterable[Example]) -> list[Example]:
        assert self.passage is not None
        return [Example(piece) for example in examples for piece in cut(example.source, self.passage)]

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

    def _checked(self, split: Split, table: Iterable[Row]) -> list[Row]:
        """The task's columns of every row that has text; a label by its name."""
        wanted = self.columns.of(self.task)
        texts = wanted[:1] if self.task == "classification" else wanted
        checked, count = [], 0
        for row in table:
            count += 1
            for column in wanted:
                if column not in row.cells:
                    raise ValueError(missing_column(column, row, split=split))
            for column in texts:
                _check_text(column, row)
            if all(row.cells[column].strip() for column in texts):
                names = {column: _label_name(column, row) for column in wanted if column not in texts}
                checked.append(replace(row, cells={column: row.cells[column] for column in texts} | names))
        if lacking := count - len(checked):
            log.warning(
                "%d of %d rows of split '%s' lack %s and are left out", lacking, count, split, " or ".join(texts)
            )
        return checked

    def _find_classes(self, rows: Mapping[Split, Sequence[Row]], declared: Sequence[str] | None) -> None:
        """Name and number the classes: those that the data declare, else those of the training rows."""
        column = self.columns.label
        first: dict[str, Row] = {}
        for row in (row for kept in rows.values() for row in kept):
            first.setdefault(row.cells[column], row)
        label.check({name: row.place for name, row in first.items()}, column)
        trained = {row.cells[column] for row in rows["train"]}
        label.check_count(trained, len(rows["train"]), column)
        values = [str(index) for index in range(len(declared))] if declared else label.ordered(trained)
        if len(values) > _MANY_CLASSES:
            log.warning("column '%s' holds %d classes", column, len(values))
        self._names = tuple(declared or values)
        self._codes = {value: index for index, value in enumerate(values)}

    def _example(self, row: Row, split: Split) -> Example:
        if self.task == "seq2seq":
            return Example(row.cells[self.columns.source], row.cells[self.columns.target])
        if self.task == "causal_lm":
            return Example(row.cells[self.columns.text])
        name = row.cells[self.columns.label]
        if name in self._codes:
            return Example(row.cells[self.columns.text], label=self._codes[name])
        known = [*self._codes][:8]
        raise ValueError(
            f"{row.place}: label '{name}' of split '{split}' is none of the {len(self._codes)} classes of the training "
            f"split ({', '.join(known)}{', ...' if len(self._codes) > 8 else ''}): correct it, or, where the data hide "
            f"the labels of their {split} split, set data.splits.{split}=null to take it out of train"
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
                examples["train"] = [example for example in examples["train"] if _key(example) not in taken]
        held_out: set[str] = set()
        kept: dict[Split, list[Example]] = {}
        for split, limit in self._limits():
            kept[split] = [example for example in examples.get(split, []) if _key(example) not in held_out]
            if dropped := len(examples.get(split, [])) - len(kept[split]):
                log.warning("%d rows of split '%s' are left out: a held-out split has the same text", dropped, split)
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
    near = difflib.get_close_matches(column, row.cells, n=1)
    return (
        f"{row.place}: column '{column}' is missing in split '{split}'; there are: "
        f"{', '.join(map(str, row.cells)) or 'none'}"
        + (f"; did you mean '{near[0]}'?" if near else "")
        + " (name yours under data.columns)"
    )


def _check_text(column: str, row: Row) -> None:
    value = row.cells[column]
    if not isinstance(value, str):
        raise ValueError(
            f"{row.place}: column '{column}' must hold text, got {textwrap.shorten(repr(value), 40)}: "
            "fill or drop the row, or name another column"
        )
    if half := _LONE_SURROGATE.search(value):
        raise ValueError(
            f"{row.place}: column '{column}' holds half a character (\\u{ord(half[0]):x}, character "
            f"{half.start() + 1}): write the whole one, or drop the row"
        )


def _label_name(column: str, row: Row) -> str:
    try:
        name = label.name_of(row.cells[column])
    except ValueError as error:
        raise ValueError(f"{row.place}: column '{column}' {error}") from error
    if not name:
        raise ValueError(f"{row.place}: column '{column}' is empty: give the row a label, or take it away")
    return name


def _key(example: Example) -> str:
    return " ".join(example.source.casefold().split())
