"""Results row by row of records, from the files beside them."""

import os
import warnings
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

from slimexp.data import rows
from slimexp.data.rows import Rows
from slimexp.file import regular
from slimexp.file.integrity import Damaged
from slimexp.record import record
from slimexp.record.record import Record

_KEPT = 512  # files in memory; the live page asks for the same ones again and again


class RowScores:
    """Files of results below a folder.

    Args:
        runs: The folder that the records were read from, or one record file.
    """

    def __init__(self, runs: Path) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # reading the records has warned of folders that cannot be read
            self._folders = list(dict.fromkeys(file.parent for file in record.files(runs)))

    def __call__(self, row: Record) -> Mapping[str, Rows]:
        """Metric -> results row by row; a file that is gone is left out, a damaged one with a warning."""
        found: dict[str, Rows] = {}
        for name in row.scores.values():
            if (path := self._path(name)) is not None:
                found |= _read(path, path.stat().st_mtime_ns)
        return found

    def _path(self, name: str) -> Path | None:
        """The file in whichever runs folder holds it: its name is a digest of what it is of."""
        paths = (regular.within(folder, name) for folder in self._folders)
        return next((path for path in paths if path is not None and os.path.isfile(path)), None)


@lru_cache(maxsize=_KEPT)
def _read(path: Path, changed: int) -> Mapping[str, Rows]:
    try:
        return rows.read(path).rows
    except (OSError, Damaged) as error:
        warnings.warn(f"left out {path}, so that its model is compared without its rows: {error}", stacklevel=2)
        return {}
