"""Any dataset of the Hugging Face hub, or a local folder in its format."""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from slimexp.data.base import HELD_OUT, Split, Task
from slimexp.data.reader import Row
from slimexp.data.table import Columns, Splits, Table
from slimexp.file.bounded import one_line
from slimexp.host import hub

log = logging.getLogger(__name__)


class Hub(Table):
    """A dataset by hub id or folder, its columns and splits named in conf.

    Args:
        path: Hub id (``"glue"``), folder of data files, or folder written by ``save_to_disk``.
        subset: Configuration of the dataset (``"sst2"``); ``None`` where it has only one.
        task: ``seq2seq``, ``causal_lm`` or ``classification``.
        columns: Names of the columns; those of nested features are joined by a dot (``translation.en``).
        splits: Names of the splits.
        passage: Largest number of characters of a ``causal_lm`` row; ``None`` leaves text whole.
    """

    def __init__(
        self, *, path: str, subset: str | None, task: Task, columns: Columns, splits: Splits, passage: int | None
    ) -> None:
        super().__init__(task=task, columns=columns, splits=splits, passage=passage)
        self.path = path
        self.subset = subset

    def read(self) -> tuple[dict[Split, Iterable[Row]], Sequence[str] | None]:
        tables = {name: self._narrowed(table.flatten()) for name, table in self._tables().items()}
        train = self.split_names.train
        if train not in tables:
            raise ValueError(
                f"dataset {self.path!r} has no split '{train}'; it has: {', '.join(tables)} "
                "(name it in data.splits.train)"
            )
        rows: dict[Split, Iterable[Row]] = {"train": self._rows(train, tables[train])}
        for split in HELD_OUT:
            if (name := self.split_names.names[split]) in tables:
                rows[split] = self._rows(name, tables[name])
        if unread := sorted(tables.keys() - {train, *(self.split_names.names[split] for split in rows)}):
            log.warning("splits of dataset %r that are not read: %s", self.path, ", ".join(unread))
        return rows, getattr(tables[train].features.get(self.columns.label), "names", None)

    def _rows(self, split: str, table: Iterable[Mapping[str, Any]]) -> Iterator[Row]:
        origin = f"split '{split}' of dataset '{self.path}'"
        return (Row(cells, origin, number, "row") for number, cells in enumerate(table, start=1))

    def _narrowed(self, table: Any) -> Any:
        """Only the columns that the task reads (reading others may decode pictures), if none is missing."""
        columns = self.columns.of(self.task)
        return table.select_columns(list(columns)) if set(columns) <= set(table.column_names) else table

    def _tables(self) -> dict[str, Any]:
        """Name of a split in the data -> its table."""
        import datasets

        local = Path(self.path).exists()
        try:
            with nullcontext() if local else hub.reached():
                if any(Path(self.path, mark).is_file() for mark in ("dataset_dict.json", "state.json")):
                    tables = datasets.load_from_disk(self.path)
                else:
                    tables = datasets.load_dataset(self.path, self.subset)
        except Exception as error:  # the libraries below raise every kind, from HTTP's to JSON's
            reason = f"{type(error).__name__}: {one_line(error)}"
            if not local:
                reason = f"{hub.missing(self.path, 'dataset', error, key='data.path')}; data=files reads plain files"
            subset = f" (subset {self.subset!r})" if self.subset else ""
            raise ValueError(f"cannot load dataset {self.path!r}{subset}: {reason}") from error
        return dict(tables) if isinstance(tables, datasets.DatasetDict) else {self.split_names.train: tables}
