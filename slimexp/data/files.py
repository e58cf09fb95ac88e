"""Local files: csv, tsv, jsonl, parquet or txt, one file or a folder."""

import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from slimexp.data.base import Split, Task
from slimexp.data.reader import READERS, Row, read_file
from slimexp.data.table import Columns, Splits, Table

log = logging.getLogger(__name__)

# Name of a split in conf -> names of its files (``eval`` is left out: it means validation to some and test to others).
SPELLINGS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev", "development"),
    "test": ("test", "heldout", "held_out", "held-out"),
}


class Files(Table):
    """Text from files on this machine.

    In a folder, a file belongs to the split whose name is a word of its name or its folder's (``train.csv``,
    ``imdb_test-00000.parquet``, ``dev/a.jsonl``), in any case and spelling of ``SPELLINGS``; files of no split are not
    read, with a warning. If no file belongs to a split, all are training rows, which the held-out splits are taken
    from. Hidden files are ignored.

    Text of a ``causal_lm`` is held out by whole rows, of which a txt file is one; where there are too few, by passages.

    Args:
        path: A file, or a folder with files of one or several formats.
        task: ``seq2seq``, ``causal_lm`` or ``classification``.
        columns: Names of the columns; a txt file is one row with the column ``text``.
        splits: Names of the splits.
        passage: Largest number of characters of a ``causal_lm`` row; ``None`` leaves text whole.
    """

    def __init__(self, *, path: str, task: Task, columns: Columns, splits: Splits, passage: int | None) -> None:
        super().__init__(task=task, columns=columns, splits=splits, passage=passage)
        self.path = path

    def read(self) -> tuple[dict[Split, Iterable[Row]], Sequence[str] | None]:
        root = Path(self.path).expanduser()
        if not root.exists():
            raise ValueError(f"no such file or folder: {self.path} (set data.path)")
        if root.is_file():
            return {"train": read_file(root)}, None
        if not root.is_dir():
            raise ValueError(f"{root} is neither a file nor a folder: save its text in a file (data.path)")
        present = [
            path for path in sorted(root.rglob("*")) if not path.is_dir() and not _hidden(path.relative_to(root))
        ]
        files = [path for path in present if path.suffix.lower() in READERS and path.is_file()]
        if not files:
            raise ValueError(f"folder {root} has no file that ends with {', '.join(READERS)}")
        splits = self._split(root, files)
        if unread := [path for path in present if not any(path in paths for paths in splits.values())]:
            names = [str(path.relative_to(root)) for path in unread]
            log.warning("not read in %s: %s%s", root, ", ".join(names[:8]), ", ..." if len(names) > 8 else "")
        return {split: _rows(paths) for split, paths in splits.items()}, None

    def _split(self, root: Path, files: Sequence[Path]) -> dict[Split, list[Path]]:
        """Split -> its files, by their names below ``root``."""
        by_split: dict[Split, list[Path]] = {}
        for path in files:
            relative = path.relative_to(root)
            splits = [split for split, name in self.split_names.names.items() if name and _belongs(relative, name)]
            if len(splits) > 1:
                raise ValueError(
                    f"{path} is named after the splits {' and '.join(splits)}: rename it after one of them"
                )
            if splits:
                by_split.setdefault(splits[0], []).append(path)
        if by_split and "train" not in by_split:
            raise ValueError(
                f"folder {root} has files of split '{next(iter(by_split))}' and none of train: "
                f"name one '{self.split_names.train}.*' (or set data.splits.train)"
            )
        return by_split or {"train": list(files)}


def _rows(paths: Iterable[Path]) -> Iterator[Row]:
    return (row for path in paths for row in read_file(path))


def _hidden(path: Path) -> bool:
    """Whether a file is one that systems and notebooks create unasked (``.ipynb_checkpoints``, ``__MACOSX``)."""
    return any(part.startswith((".", "__")) for part in path.parts)


def _belongs(path: Path, split: str) -> bool:
    """Whether a word of the path is a spelling of the split's name."""
    spellings = SPELLINGS.get(split, (split,))
    words = "|".join(map(re.escape, spellings))
    return re.search(rf"(?<![^\W_])(?:{words})(?![^\W\d_])", path.with_suffix("").as_posix(), re.IGNORECASE) is not None
