"""Local files: csv, tsv, jsonl, parquet or txt, one of them or a folder."""

import csv
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from slimexp.data.base import Split, Task
from slimexp.data.table import Columns, Row, Splits, Table


class Files(Table):
    """Text from files on this machine.

    In a folder, a file belongs to the split that its name starts with (``train.csv``,
    ``test-00000.parquet``) or that its folder is named after; where none does, all files are training
    rows, from which the held-out splits are taken.

    Args:
        path: A file, or a folder with files of one or several formats.
        task: ``seq2seq``, ``causal_lm`` or ``classification``.
        columns: What the columns are called; a txt file is one row with the column ``text``.
        splits: What the splits are called.
        passage: Most characters of a ``causal_lm`` row; ``None`` leaves text whole.
    """

    def __init__(self, *, path: str, task: Task, columns: Columns, splits: Splits, passage: int | None) -> None:
        super().__init__(task=task, columns=columns, splits=splits, passage=passage)
        self.path = path

    def read(self) -> tuple[dict[Split, Sequence[Row]], Sequence[str] | None]:
        root = Path(self.path).expanduser()
        if not root.exists():
            raise ValueError(f"no such file or folder: {self.path} (set data.path)")
        if root.is_file():
            return {"train": list(read_file(root))}, None
        files = sorted(path for path in root.rglob("*") if path.suffix.lower() in READERS)
        if not files:
            raise ValueError(f"folder {root} has no file that ends with {', '.join(READERS)}")
        splits = self._split(root, files)
        return {split: [row for path in paths for row in read_file(path)] for split, paths in splits.items()}, None

    def _split(self, root: Path, files: Sequence[Path]) -> dict[Split, list[Path]]:
        found: dict[Split, list[Path]] = {}
        for split, name in self.split_names.names.items():
            paths = [path for path in files if name and _belongs(path.relative_to(root), name)]
            if paths:
                found[split] = paths
        if found and "train" not in found:
            raise ValueError(
                f"folder {root} has files of split '{next(iter(found))}' and none of train: "
                f"name one '{self.split_names.train}.*' (or set data.splits.train)"
            )
        return found or {"train": list(files)}


def read_file(path: Path) -> Iterator[Row]:
    """Rows of one file.

    Raises:
        ValueError: Unknown ending, unreadable, or malformed; names the file and, where there is one, the line.
    """
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise ValueError(f"{path}: cannot read '{path.suffix}' files, only {', '.join(READERS)}")
    try:
        yield from reader(path)
    except UnicodeDecodeError as error:
        problem = f"not UTF-8 text ({error.reason} at byte {error.start})"
        raise ValueError(f"{path}: {problem}: save the file as UTF-8") from error
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror or error}") from error


def _belongs(path: Path, split: str) -> bool:
    rest = path.name.removeprefix(split)
    return split in path.parts[:-1] or (path.name.startswith(split) and not rest[:1].isalnum())


def _csv(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig", newline="") as stream:
        lines = csv.reader(stream, delimiter="\t" if path.suffix.lower() == ".tsv" else ",", strict=True)
        try:
            header = next(lines, [])
            _refuse_twins(header, path)
            for fields in lines:
                if len(fields) not in (0, len(header)):
                    raise ValueError(
                        f"{path}, line {lines.line_num}: {len(fields)} fields, the header has {len(header)}: "
                        "quote fields that hold the delimiter"
                    )
                if fields:
                    yield dict(zip(header, fields, strict=True))
        except csv.Error as error:
            raise ValueError(f"{path}, line {lines.line_num}: {error}") from error


def _refuse_twins(columns: Sequence[str], path: Path) -> None:
    """Of two columns of one name a row would keep the last."""
    if twins := [name for name in columns if name and columns.count(name) > 1]:
        raise ValueError(f"{path}: {columns.count(twins[0])} columns are called '{twins[0]}': rename all but one")


def _jsonl(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig") as stream:
        for number, line in enumerate(stream, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}, line {number}: not JSON: {error.msg} at column {error.colno}") from error
            if not isinstance(row, dict):
                raise ValueError(f"{path}, line {number}: each line must be one JSON object, got {type(row).__name__}")
            yield row


def _parquet(path: Path) -> Iterator[Row]:
    import pyarrow.lib  # type: ignore[import-untyped]
    import pyarrow.parquet  # type: ignore[import-untyped]

    try:
        _refuse_twins(pyarrow.parquet.read_schema(path).names, path)
        yield from pyarrow.parquet.read_table(path).to_pylist()
    except pyarrow.lib.ArrowException as error:
        raise ValueError(f"{path}: not a readable parquet file: {error}") from error


def _txt(path: Path) -> Iterator[Row]:
    yield {"text": path.read_text(encoding="utf-8-sig")}


READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".csv": _csv,
    ".tsv": _csv,
    ".jsonl": _jsonl,
    ".parquet": _parquet,
    ".txt": _txt,
}
