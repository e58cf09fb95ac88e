"""Corpora of a user's own table: the base class of hub and files."""

import logging
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, get_args

from slimexp.data import grading, label
from slimexp.data.base import HELD_OUT, Corpus, Direction, Example, Split, Task
from slimexp.data.cell import check_text, label_name, missing_column
from slimexp.data.hold_out import hold_out, text_key
from slimexp.data.passage import cut
from slimexp.data.reader import Row
from slimexp.data.rows import Rows

log = logging.getLogger(__name__)

_MANY_CLASSES = 1000


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Names of the columns; a task reads only its own.

    Attributes:
        source: Column of the input of a seq2seq model.
        target: Column of its reference output.
        text: Column of the text of a causal LM or a classifier.
        label: Column of the class, as text or integer.
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
        validation: Name of the validation split; if ``None``, or if the data lack it, it is taken out of train.
        test: Name of the test split; if ``None``, or if the data lack it, it is taken out of train.
        held_out: Share of the training texts that each split taken out of train gets, in (0, 0.5).
        max_train: Largest number of training rows, chosen by hash; ``None`` for all.
        max_held_out: Largest number of validation rows and of test rows; ``None`` for all.
        seed: Seed that decides which rows are taken.
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
        """Split -> its name in the data."""
        return {"train": self.train, "validation": self.validation, "test": self.test}

    @property
    def limits(self) -> dict[Split, int | None]:
        """Split -> largest number of its rows."""
        return {"train": self.max_train, "validation": self.max_held_out, "test": self.max_held_out}


class Table(Corpus):
    """Text from a table, for any task.

    Args:
        task: ``seq2seq``, ``causal_lm`` or ``classification``; commands choose one for ``auto``.
        columns: Names of the columns.
        splits: Names of the splits.
        passage: Largest number of characters of a ``causal_lm`` row: longer text is cut between lines, else between
            words; ``None`` leaves it whole. Other tasks ignore it.
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
        """Rows of the splits that the data have, and the names of the classes, if the data declare them."""

    @cached_property
    def labels(self) -> tuple[str, ...]:  # type: ignore[override]
        """Names of the classes, in the order that the data declare, else sorted; reads the data."""
        _ = self.splits
        return self._names

    def load(self) -> Mapping[Split, Sequence[Example]]:
        tables, declared = self.read()
        rows = {split: self._checked(split, table) for split, table in tables.items()}
        if self.task == "classification":
            self._find_classes(rows, declared)
        examples = {split: [self._example(row, split) for row in table] for split, table in rows.items()}
        if self.task == "causal_lm":
            return self._passages(examples)
        splits = self._hold_out(examples)
        if unseen := set(range(len(self._names))) - {example.label for example in splits["train"]}:
            names = ", ".join(sorted(self._names[i] for i in unseen)[:8])
            log.warning("no training row is of %d of %d classes: %s", len(unseen), len(self._names), names)
        return splits

    def _passages(self, examples: dict[Split, list[Example]]) -> Mapping[Split, Sequence[Example]]:
        """Splits of passages: whole texts are held out and then cut; where there are too few, cut and then held out."""
        missing = len([split for split in HELD_OUT if split not in examples])
        too_few = missing and 0 < len(set(map(text_key, examples["train"]))) <= missing
        if self.passage is None:
            if too_few:
                raise ValueError(
                    f"too few training texts to take {missing} splits out of whole ones: set data.passage, so that "
                    "passages are taken"
                )
            return self._hold_out(examples)
        if too_few:
            log.warning("too few texts to hold whole ones out: passages of %d characters are", self.passage)
            return self._hold_out({split: self._cut(texts) for split, texts in examples.items()})
        return {split: self._cut(texts) for split, texts in self._hold_out(examples).items()}

    def _hold_out(self, examples: Mapping[Split, Sequence[Example]]) -> dict[Split, list[Example]]:
        names = self.split_names
        return hold_out(examples, share=names.held_out, limits=names.limits, seed=names.seed)

    def _cut(self, examples: Iterable[Example]) -> list[Example]:
        assert self.passage is not None
        return [Example(piece) for example in examples for piece in cut(example.source, self.passage)]

    def grade(self, predictions: Sequence[Any], examples: Sequence[Example]) -> dict[str, float]:
        if self.task == "seq2seq":
            return grading.grade_text(predictions, examples)
        if self.task == "causal_lm":
            return grading.grade_likelihood(predictions, examples)
        return grading.grade_label(predictions, examples, classes=len(self.labels))

    def by_row(self, predictions: Sequence[Any], examples: Sequence[Example]) -> dict[str, Rows]:
        if self.task == "seq2seq":
            return grading.text_by_row(predictions, examples)
        if self.task == "causal_lm":
            return grading.likelihood_by_row(predictions, examples)
        return grading.label_by_row(predictions, examples)

    def trivial(self, examples: Sequence[Example]) -> float:
        """Headline of copying the input, of guessing bytes by frequency, or classes by frequency."""
        if self.task == "seq2seq":
            return self.grade([example.source for example in examples], examples)[self.headline]
        if self.task == "causal_lm":
            return grading.byte_bits(self.splits["train"], examples)
        return grading.guessed_macro_f1(self.splits["train"], examples)

    def _checked(self, split: Split, table: Iterable[Row]) -> list[Row]:
        """The task's columns of every row that has text, labels as names of classes."""
        columns = self.columns.of(self.task)
        texts = columns[:1] if self.task == "classification" else columns
        checked, count = [], 0
        for row in table:
            count += 1
            for column in columns:
                if column not in row.cells:
                    raise ValueError(missing_column(column, row, split=split))
            for column in texts:
                check_text(column, row)
            if all(row.cells[column].strip() for column in texts):
                names = {column: label_name(column, row) for column in columns if column not in texts}
                checked.append(replace(row, cells={column: row.cells[column] for column in texts} | names))
        if count and not checked:
            raise ValueError(
                f"{row.place}: no row of split '{split}' holds {' and '.join(texts)}: fill the data, or name what else "
                f"to read (data.path, data.columns.{'source' if self.task == 'seq2seq' else 'text'})"
            )
        if lacking := count - len(checked):
            log.warning(
                "%d of %d rows of split '%s' lack %s and are left out", lacking, count, split, " or ".join(texts)
            )
        return checked

    def _find_classes(self, rows: Mapping[Split, Sequence[Row]], declared: Sequence[str] | None) -> None:
        """Name and number the classes: those that the data declare, else those of the training rows."""
        column = self.columns.label
        first: dict[str, Row] = {}
        for row in (row for table in rows.values() for row in table):
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
        """The example of a checked row; a label by its number."""
        if self.task == "seq2seq":
            return Example(row.cells[self.columns.source], row.cells[self.columns.target])
        if self.task == "causal_lm":
            return Example(row.cells[self.columns.text])
        name = row.cells[self.columns.label]
        if name in self._codes:
            return Example(row.cells[self.columns.text], label=self._codes[name])
        names = [*self._codes][:8]
        raise ValueError(
            f"{row.place}: label '{name}' of split '{split}' is none of the {len(self._codes)} classes of the training "
            f"split ({', '.join(names)}{', ...' if len(self._codes) > 8 else ''}): correct it, or, where the data hide "
            f"the labels of their {split} split, set data.splits.{split}=null to take it out of train"
        )
