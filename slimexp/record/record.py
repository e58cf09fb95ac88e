"""Records: one JSON line per finished stage, the truth that reports are rebuilt from.

A record file is append-only and safe under parallel processes: lines are written under a lock, in one
piece. What a killed process left half-written is skipped on reading and never merges with a later line. A line may
have been written by anybody: what it holds is checked when it is read, see ``record_schema``.
"""

import errno
import fcntl
import json
import math
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from slimexp.config import renamed
from slimexp.file import integrity, regular
from slimexp.record import schema as record_schema

SCHEMA = 1
FILE = "records.jsonl"
LONGEST = 1 << 24  # bytes of a line
LARGEST = 1 << 32  # bytes of a file: a sparse one may say that it has terabytes
REASONS = 10  # of lines of a file that cannot be read, which are told


@dataclass(frozen=True, kw_only=True)
class Record:
    """One finished stage.

    Attributes:
        time: When the stage finished, ISO 8601 with time zone.
        name: The run's name.
        stage: Name of the stage in the pipeline.
        key: Content hash of the stage; the same work has the same key.
        parent: Key of the stage before, ``None`` for the first.
        technique: Class name of the technique.
        seed: Seed of the run.
        overrides: What was changed on the command line, without secrets.
        config: The configuration of the run, resolved but for what ``secret`` keeps back.
        git: ``{"commit", "dirty"}`` or ``None`` outside a repository.
        versions: Package name -> version.
        hardware: What it ran on, see ``environment``.
        kernel: What executed in the linear layers while metrics were taken.
        headline: The metric that stands for quality.
        direction: Whether a smaller (``min``) or larger (``max``) headline is better.
        metrics: ``name_unit`` -> finite value.
        directions: Metric -> which way it is better, of those that have a better.
        baseline: The same metrics of the dense model.
        baseline_key: Key of the dense model; ``None`` where none was named, and ``baseline`` is empty.
        trivial: Headline of the best guess without a model.
        seconds: Where the time of the process that finished the stage went, by phase.
        reused: Whether an earlier run's result was taken over.
        artifact: The stage's model folder, relative to the runs folder.
        curves: The stage's curves file, relative to the runs folder; ``None`` where nothing was trained.
    """

    time: str
    name: str
    stage: str
    key: str
    parent: str | None
    technique: str
    seed: int
    overrides: list[str]
    config: dict[str, Any]
    git: dict[str, Any] | None
    versions: dict[str, str]
    hardware: dict[str, Any]
    kernel: str
    headline: str
    direction: Literal["min", "max"]
    metrics: dict[str, float]
    directions: dict[str, Literal["min", "max"]]
    baseline: dict[str, float]
    baseline_key: str | None
    trivial: float
    seconds: dict[str, float]
    reused: bool
    artifact: str
    curves: str | None
    schema: int = SCHEMA

    @property
    def dense(self) -> bool:
        """Whether this is the dense model itself."""
        return self.key == self.baseline_key

    def to_json(self) -> str:
        """The record as one line of strict JSON, with its own digest (``integrity.sealed``) and without the line break.

        Raises:
            ValueError: A metric, the baseline, the trivial headline or a duration is not finite, or a field is one that
                no reader would take.
        """
        numbers = {group: _finite(group, getattr(self, group)) for group in ("metrics", "baseline", "seconds")}
        trivial = _finite("record", {"trivial": self.trivial})
        row = {field.name: getattr(self, field.name) for field in fields(self)}
        content = _plain({**row, **numbers, **trivial})
        line = json.dumps(integrity.sealed(content), allow_nan=False)
        record_schema.check(record_schema.parse(line))  # what no reader takes would be lost in silence
        return line

    @classmethod
    def from_json(cls, line: str | bytes) -> "Record":
        """Parse one line.

        Raises:
            ValueError: It is no JSON object, has other content than was written, lacks a field, is of a newer schema,
                or a field is not as it must be.
        """
        row = record_schema.parse(line)
        if type(schema := row.get("schema", SCHEMA)) is not int or schema < 1:
            raise ValueError(f"schema must be a whole number from 1, got {schema!r:.60}")
        if schema > SCHEMA:
            raise ValueError(f"schema {row['schema']} is newer than {SCHEMA}, which this slimexp reads: update slimexp")
        names = [field.name for field in fields(cls)]
        if missing := [name for name in names if name not in row and name != "schema"]:
            raise ValueError(
                f"it lacks {', '.join(missing)}; if an older slimexp wrote it, "
                "the same command with resume=false writes it anew"
            )
        record_schema.check(row)
        if integrity.SEAL in row:  # older versions wrote none
            integrity.check_seal(row)
        row["time"] = record_schema.in_utc(row["time"])
        row["config"] = renamed.config(row["config"])  # after its seal was checked
        return cls(**{name: row[name] for name in names if name in row})


def append(path: str | Path, record: Record) -> None:
    """Add one line to a record file, creating it; complete and on disk when this returns.

    Raises:
        ValueError: The record holds a number that is not finite; nothing is written.
        OSError: The disk is full or the folder not writable; the file stays as it was.
    """
    line = record.to_json().encode() + b"\n"
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with _locked(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, fcntl.LOCK_EX) as file:
        size = os.fstat(file).st_size
        if size and os.pread(file, 1, size - 1) != b"\n":  # a killed process left half a line
            line = b"\n" + line
        if os.write(file, line) != len(line):
            os.ftruncate(file, size)
            raise OSError(errno.ENOSPC, "could not write the whole record, is the disk full?", str(path))
        os.fsync(file)


def append_again(path: str | Path, record: Record) -> bool:
    """Append a record that was written before, unless its line is there still; whether it had to be."""
    try:
        with _locked(path, os.O_RDONLY, fcntl.LOCK_SH) as file, os.fdopen(os.dup(file), "rb") as stream:
            there = any(line and _is_of(line, record.key) for line in regular.lines(stream, LONGEST))
    except FileNotFoundError:
        there = False
    if not there:
        append(path, record)
    return not there


def check_place(path: Path) -> None:
    """Refuse, before anything is computed, a place that no record can be appended to.

    Raises:
        ValueError: Something is there that is no file of its own; a link would lead to another's.
    """
    if integrity.is_other_kind(path):
        raise ValueError(
            f"{path} must be a file, for records are appended to it: move what is there, or set runs=FOLDER"
        )


def read(path: str | Path, *, quiet: bool = False) -> list[Record]:
    """Read a record file, or every ``records.jsonl`` below a folder, oldest first.

    Records with the same key are one, the latest, with the figures that only earlier ones hold. A line that
    is no record (the torn last line of a killed process) is skipped with a warning that names it and says why,
    and so is a file or folder that cannot be read.

    Args:
        path: A file, or a folder.
        quiet: Without warnings, where an earlier reading has given them.

    Raises:
        FileNotFoundError: ``path`` does not exist.
    """
    latest: dict[str, Record] = {}
    for record in sorted(written(path, quiet=quiet), key=lambda record: record.time):
        latest[record.key] = _merged(latest[record.key], record) if record.key in latest else record
    return sorted(latest.values(), key=lambda record: record.time)


def written(path: str | Path, *, quiet: bool = False) -> list[Record]:
    """Every record as it was written; what ``read``, which has the same arguments, puts together.

    Raises:
        FileNotFoundError: ``path`` does not exist.
    """
    path = Path(path)
    if not os.path.exists(path):
        raise FileNotFoundError(f"no file or folder {path}")
    with warnings.catch_warnings():
        if quiet:
            warnings.simplefilter("ignore")
        return [record for file in files(path) for record in _lines(file)]


def files(path: Path) -> list[Path]:
    """The record files below a folder, whose linked folders are not entered, in order; a file is itself the only one.

    A folder that cannot be read is left out with a warning.
    """
    if not os.path.isdir(path):
        return [path]

    def unread(error: OSError) -> None:
        warnings.warn(f"skipped folder {error.filename}: {error.strerror}", stacklevel=3)

    found = os.walk(path, onerror=unread)
    return sorted(Path(folder, FILE) for folder, inner, names in found if FILE in names or FILE in inner)


def _merged(older: Record, newer: Record) -> Record:
    """``newer``, with the figures that it did not take again."""
    return replace(
        newer,
        metrics={**older.metrics, **newer.metrics},
        directions={**older.directions, **newer.directions},
        baseline={**older.baseline, **newer.baseline},
        baseline_key=newer.baseline_key or older.baseline_key,
        trivial=newer.trivial if newer.headline in newer.metrics else older.trivial,
        curves=newer.curves or older.curves,
        seconds={**newer.seconds, "train": older.seconds.get("train", 0.0)} if newer.reused else newer.seconds,
    )


@contextmanager
def _locked(path: str | Path, flags: int, lock: int) -> Iterator[int]:
    file = regular.descriptor(path, flags)
    try:
        fcntl.flock(file, lock)
        yield file
    finally:
        os.close(file)  # releases the lock


def _lines(path: Path) -> Iterator[Record]:
    try:
        with _locked(path, os.O_RDONLY, fcntl.LOCK_SH) as file, os.fdopen(os.dup(file), "rb") as stream:
            if (size := os.fstat(file).st_size) > LARGEST:
                raise OSError(errno.EFBIG, f"it has {size / 1e9:.1f} GB, of at most {LARGEST / 1e9:.1f}", str(path))
            lines = list(regular.lines(stream, LONGEST))
    except OSError as error:
        warnings.warn(f"skipped {path}: {error.strerror}", stacklevel=3)
        return
    wrong: dict[str, list[int]] = {}
    for number, line in enumerate(lines, start=1):
        if line is None:
            wrong.setdefault(f"it has more than {LONGEST} bytes", []).append(number)
        elif line.strip():
            try:
                yield Record.from_json(line)
            except ValueError as error:
                wrong.setdefault(str(error), []).append(number)
    _tell(path, wrong)


def _tell(path: Path, wrong: Mapping[str, Sequence[int]]) -> None:
    """Warn of lines that were skipped, by reason; of a file of many reasons the first are enough."""
    for why, numbers in list(wrong.items())[:REASONS]:
        which = f"line {numbers[0]}" + (f" and {len(numbers) - 1} more" if len(numbers) > 1 else "")
        warnings.warn(f"skipped {which} of {path}, no record that can be read: {why}", stacklevel=4)
    if more := sum(map(len, list(wrong.values())[REASONS:])):
        warnings.warn(f"skipped {more} more lines of {path} for other reasons", stacklevel=4)


def _is_of(line: bytes, key: str) -> bool:
    """Whether a line is a whole record of ``key``."""
    try:
        return key.encode() in line and Record.from_json(line).key == key
    except (ValueError, TypeError, AttributeError):
        return False


def _finite(group: str, numbers: Mapping[str, float]) -> dict[str, float]:
    """Plain numbers of ``numbers`` (NumPy scalars and one-element tensors included)."""
    plain = {name: value if isinstance(value, int) else float(value) for name, value in numbers.items()}
    if bad := {name: value for name, value in plain.items() if not math.isfinite(value)}:
        named = ", ".join(f"{group}.{name} = {value}" for name, value in bad.items())
        raise ValueError(f"a record holds finite numbers only, got {named}")
    return plain


def _plain(value: Any) -> Any:
    """JSON types only: what JSON cannot say (paths, infinities of a configuration) becomes text."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, bool | int | str) or (isinstance(value, float) and math.isfinite(value)):
        return value
    return str(value)
