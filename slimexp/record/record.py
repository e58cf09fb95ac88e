"""Records: one JSON line per finished stage, the truth that reports are rebuilt from.

A record file is append-only and safe under parallel processes: each line is written under a lock, in one piece. Half a
line, which a killed process left, is skipped on reading and never merges with a later one. Lines may come from
anywhere, so that their content is checked when they are read, see ``record.schema``.
"""

import errno
import fcntl
import json
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from slimexp.config import renamed
from slimexp.file import integrity, regular
from slimexp.record import schema
from slimexp.record.plain import finite_numbers, plain

SCHEMA = 1
FILE = "records.jsonl"
LONGEST = 1 << 24  # bytes of a line
LARGEST = 1 << 32  # bytes of a file; a sparse file may claim terabytes
_OPTIONAL = ("schema", "scores")
REASONS = 10  # reasons for skipped lines that are reported of one file


@dataclass(frozen=True, kw_only=True)
class Record:
    """One finished stage.

    Attributes:
        time: When the stage finished, ISO 8601 with time zone.
        name: The run's name.
        stage: Name of the stage in the pipeline.
        key: Content hash of the stage; the same work has the same key.
        parent: Key of the stage before, ``None`` for the first.
        technique: Name of the technique's class.
        seed: Seed of the run.
        overrides: Overrides of the command line, without secrets.
        config: The resolved configuration of the run, without the values that ``config.secret`` hides.
        git: ``{"commit", "dirty"}`` or ``None`` outside a repository.
        versions: Name of a package -> its version.
        hardware: Hardware of the machine, see ``record.environment``.
        kernel: What computed the linear layers while metrics were measured.
        headline: The metric that stands for quality.
        direction: Whether a smaller (``min``) or larger (``max``) headline is better.
        metrics: ``name_unit`` -> finite value.
        directions: Metric -> which direction is better, for metrics of which one is.
        baseline: The same metrics of the dense model.
        baseline_key: Key of the dense model; ``None`` where there is none, and ``baseline`` is empty.
        trivial: Headline of the best guess without a model.
        seconds: Phase -> seconds that the process which finished the stage spent in it.
        reused: Whether the result of an earlier run was used.
        artifact: The stage's model folder, relative to the runs folder.
        curves: The stage's file of training curves, relative to the runs folder; ``None`` where nothing was trained.
        scores: Test -> the file of its results question by question, relative to the runs folder, see ``data.rows``.
        schema: Version of the format of the line.
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
    scores: dict[str, str] = field(default_factory=dict)  # older versions wrote none
    schema: int = SCHEMA

    @property
    def dense(self) -> bool:
        """Whether this record is of the dense model itself."""
        return self.key == self.baseline_key

    def to_json(self) -> str:
        """The record as one line of strict JSON, with its own digest (``integrity.sealed``) and without the line break.

        Raises:
            ValueError: A metric, the baseline, the trivial headline or a duration is not finite, or readers would
                refuse a field.
        """
        numbers = {group: finite_numbers(group, getattr(self, group)) for group in ("metrics", "baseline", "seconds")}
        trivial = finite_numbers("record", {"trivial": self.trivial})
        row = {one.name: getattr(self, one.name) for one in fields(self)}
        content = plain({**row, **numbers, **trivial})
        line = json.dumps(integrity.sealed(content), allow_nan=False)
        schema.check(schema.parse(line))  # readers skip a line that they refuse, so it would be lost
        return line

    @classmethod
    def from_json(cls, line: str | bytes) -> "Record":
        """Parse one line.

        Raises:
            ValueError: The line is no JSON object, was changed since it was written, lacks a field, is of a newer
                schema, or has a field that ``schema.check`` refuses.
        """
        row = schema.parse(line)
        if type(version := row.get("schema", SCHEMA)) is not int or version < 1:
            raise ValueError(f"schema must be a whole number from 1, got {version!r:.60}")
        if version > SCHEMA:
            raise ValueError(f"schema {row['schema']} is newer than {SCHEMA}, which this slimexp reads: update slimexp")
        names = [one.name for one in fields(cls)]
        if missing := [name for name in names if name not in row and name not in _OPTIONAL]:
            raise ValueError(
                f"it lacks {', '.join(missing)}; if an older slimexp wrote it, "
                "the same command with resume=false writes it anew"
            )
        schema.check(row)
        if integrity.SEAL in row:  # older versions wrote no seal
            integrity.check_seal(row)
        row["time"] = schema.in_utc(row["time"])
        row["config"] = renamed.config(row["config"])  # after the seal was checked, which holds for names as written
        return cls(**{name: row[name] for name in names if name in row})


def append(path: str | Path, record: Record) -> None:
    """Add a record to a file, which is created where there is none; the line is on the disk when this returns.

    Raises:
        ValueError: Readers would refuse the record, see ``Record.to_json``; nothing is written.
        OSError: The disk is full or the folder is not writable; the file stays as it was.
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
    """Append a record that was written before, unless its line is still in the file; returns whether it was missing."""
    try:
        with _locked(path, os.O_RDONLY, fcntl.LOCK_SH) as file, os.fdopen(os.dup(file), "rb") as stream:
            present = any(line and _is_of(line, record.key) for line in regular.lines(stream, LONGEST))
    except FileNotFoundError:
        present = False
    if not present:
        append(path, record)
    return not present


def check_place(path: Path) -> None:
    """Refuse a path that no record can be appended to, before anything is computed.

    Raises:
        ValueError: Something is there that is no regular file; a link would lead to a file elsewhere.
    """
    if integrity.is_other_kind(path):
        raise ValueError(
            f"{path} must be a file, for records are appended to it: move what is there, or set runs=FOLDER"
        )


def read(path: str | Path, *, quiet: bool = False) -> list[Record]:
    """Read a record file, or every ``records.jsonl`` below a folder, oldest first.

    Of records with the same key the latest counts, completed by metrics that only earlier ones have. A line that is no
    record (the torn last line of a killed process) is skipped with a warning that names it and the reason, and so is a
    file or folder that cannot be read.

    Args:
        path: A file, or a folder.
        quiet: Whether to leave out the warnings, which an earlier reading has shown.

    Raises:
        FileNotFoundError: ``path`` does not exist.
    """
    latest: dict[str, Record] = {}
    for record in sorted(written(path, quiet=quiet), key=lambda record: record.time):
        latest[record.key] = _merged(latest[record.key], record) if record.key in latest else record
    return sorted(latest.values(), key=lambda record: record.time)


def written(path: str | Path, *, quiet: bool = False) -> list[Record]:
    """Every record as it was written, of which ``read`` merges those with the same key.

    Args:
        path: A file, or a folder.
        quiet: Whether to leave out the warnings.

    Raises:
        FileNotFoundError: ``path`` does not exist.
    """
    path = Path(path)
    if not os.path.exists(path):
        raise FileNotFoundError(
            f"no file or folder {path}: train something first, or name the folder that holds {FILE}"
        )
    with warnings.catch_warnings():
        if quiet:
            warnings.simplefilter("ignore")
        return [record for file in files(path) for record in _lines(file)]


def files(path: Path) -> list[Path]:
    """The record files below a folder, sorted; of a file, the file alone.

    Links to folders are not followed, and a folder that cannot be read is left out with a warning.
    """
    if not os.path.isdir(path):
        return [path]

    def warn(error: OSError) -> None:
        warnings.warn(f"skipped folder {error.filename}: {error.strerror}", stacklevel=3)

    folders = os.walk(path, onerror=warn)
    return sorted(Path(folder, FILE) for folder, inner, names in folders if FILE in names or FILE in inner)


def _merged(older: Record, newer: Record) -> Record:
    """``newer``, completed by metrics that only ``older`` has."""
    return replace(
        newer,
        metrics={**older.metrics, **newer.metrics},
        directions={**older.directions, **newer.directions},
        baseline={**older.baseline, **newer.baseline},
        baseline_key=newer.baseline_key or older.baseline_key,
        trivial=newer.trivial if newer.headline in newer.metrics else older.trivial,
        curves=newer.curves or older.curves,
        scores={**older.scores, **newer.scores},
        seconds={**newer.seconds, "train": older.seconds.get("train", 0.0)} if newer.reused else newer.seconds,
    )


@contextmanager
def _locked(path: str | Path, flags: int, lock: int) -> Iterator[int]:
    """Descriptor of a regular file that is locked until the block ends."""
    file = regular.descriptor(path, flags)
    try:
        fcntl.flock(file, lock)
        yield file
    finally:
        os.close(file)  # releases the lock


def _lines(path: Path) -> Iterator[Record]:
    """Records of a file; what cannot be read is skipped with a warning."""
    try:
        with _locked(path, os.O_RDONLY, fcntl.LOCK_SH) as file, os.fdopen(os.dup(file), "rb") as stream:
            if (size := os.fstat(file).st_size) > LARGEST:
                raise OSError(errno.EFBIG, f"it has {size / 1e9:.1f} GB, of at most {LARGEST / 1e9:.1f}", str(path))
            lines = list(regular.lines(stream, LONGEST))
    except OSError as error:
        warnings.warn(f"skipped {path}: {error.strerror}", stacklevel=3)
        return
    skipped: dict[str, list[int]] = {}
    for number, line in enumerate(lines, start=1):
        if line is None:
            skipped.setdefault(f"it has more than {LONGEST} bytes", []).append(number)
        elif line.strip():
            try:
                yield Record.from_json(line)
            except ValueError as error:
                skipped.setdefault(str(error), []).append(number)
    _warn_of(skipped, path)


def _warn_of(skipped: Mapping[str, Sequence[int]], path: Path) -> None:
    """Warn of lines that were skipped, once for each of the first reasons.

    Args:
        skipped: Reason -> numbers of the lines.
        path: Their file.
    """
    for reason, numbers in list(skipped.items())[:REASONS]:
        which = f"line {numbers[0]}" + (f" and {len(numbers) - 1} more" if len(numbers) > 1 else "")
        warnings.warn(f"skipped {which} of {path}, no record that can be read: {reason}", stacklevel=4)
    if more := sum(map(len, list(skipped.values())[REASONS:])):
        warnings.warn(f"skipped {more} more lines of {path} for other reasons", stacklevel=4)


def _is_of(line: bytes, key: str) -> bool:
    """Whether a line is a whole record of ``key``."""
    try:
        return key.encode() in line and Record.from_json(line).key == key
    except (ValueError, TypeError, AttributeError):
        return False
