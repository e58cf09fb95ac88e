"""One stage of a run: the key of its work, the folder it lives in, and the one process that works on it."""

import fcntl
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from slimexp import __version__
from slimexp.file import integrity
from slimexp.file.bounded import OWN_MB, read_object
from slimexp.host.console import printable

DENSE = "dense"  # the stage that holds the model which others are compared with
RUNNING = ".running"  # the file in a runs folder that every run holds, and ``slimexp.clean`` alone
CHECKPOINT = re.compile(r"checkpoint\.(ckpt|(\d+\.)?partial)")  # names that a stage's checkpoints have
START = "start"  # the stage that holds what a run starts from, where that is not the dense model

# Of a trainer: what is seen of a training, and the files Lightning would write of its own.
_SHAPES_NOTHING = frozenset(
    {
        "default_root_dir",
        "enable_checkpointing",
        "enable_model_summary",
        "enable_progress_bar",
        "log_every_n_steps",
        "logger",
        "profiler",
    }
)


class Stopped(ValueError):
    """A stage was given up before its end: what it would have become is of no use."""


@dataclass(frozen=True)
class Stage:
    """A stage and where its results live.

    Attributes:
        name: Its name in the pipeline.
        key: Content hash of everything that shapes its result.
        parent: Key of the stage before it; ``None`` for a root.
        folder: ``artifact/``, ``measures.json``, ``curves.jsonl`` and, while unfinished, ``checkpoint.ckpt``; what was
            found damaged is ``damaged-`` and its name, the newest only.
    """

    name: str
    key: str
    parent: str | None
    folder: Path

    @property
    def artifact(self) -> Path:
        return self.folder / "artifact"

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint.ckpt"

    @property
    def curves(self) -> Path:
        return self.folder / "curves.jsonl"

    def check_place(self) -> None:
        """Refuse a link on the way to the stage: it would be written to, and removed from, wherever that leads.

        The runs folder itself may be one: it is the user's to choose.

        Raises:
            ValueError: The folder of the run or of the stage is one, or is no folder.
        """
        for place in (self.folder.parent, self.folder):
            if place.is_symlink():
                raise ValueError(f"{place} is a link, and a stage writes below its runs folder only: remove the link")
            if os.path.lexists(place) and not place.is_dir():
                raise ValueError(f"{place} is no folder, and a stage writes in one: move what is there, or set runs=")

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Work on the stage as the only process; another that wants it waits here, and then finds it finished."""
        self.check_place()  # again: what was planned is reached much later
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = self.folder / "lock"
        if integrity.is_other_kind(lock):
            self.set_aside(lock, "it is no file")
        with integrity.lock_file(lock) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print(f"{self.name}: another process works on it, waiting", flush=True)
                fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def drop_checkpoint(self) -> None:
        """Remove the checkpoint, and any that a kill left half-written."""
        for path in self.folder.iterdir() if self.folder.is_dir() else ():
            if CHECKPOINT.fullmatch(path.name):
                integrity.remove(path)

    def set_aside(self, path: Path, why: object, *, then: str = "done again") -> None:
        """Keep what is damaged under another name, and say so in a line."""
        aside = integrity.set_aside(path)
        print(f"{self.name}: its {path.name} is damaged ({printable(why)}): set aside as {aside}, {then}", flush=True)

    def measured(self) -> dict[str, Any]:
        """What ``write_measured`` was given last; empty where nothing is there, or what is damaged and set aside."""
        path = self.folder / "measures.json"
        if not os.path.lexists(path):
            return {}
        try:
            known = read_object(path, most_mb=OWN_MB, strict=True, way_out=None)
            integrity.check_numbers(known.get("metrics"), "metrics")
            integrity.check_seal(known)
        except integrity.Damaged as error:
            self.set_aside(path, error)
            return {}
        return {name: value for name, value in known.items() if name != integrity.SEAL}

    def restore_curves(self, rows: str) -> None:
        """Put the curves of a finished stage right where they are not ``rows``."""
        path, wanted = self.curves, rows.encode()
        if path.is_file() and path.stat().st_size == len(wanted) and path.read_bytes() == wanted:
            return
        if os.path.lexists(path):
            self.set_aside(path, "it has other content than was written", then="written again")
        else:
            print(f"{self.name}: its {path.name} is missing: written again", flush=True)
        integrity.write(path, rows)

    def write_measured(self, content: Mapping[str, Any]) -> None:
        """Keep metrics with what they were taken by."""
        integrity.write(self.folder / "measures.json", json.dumps(integrity.sealed(content)))


def at_work(runs: Path) -> IO[str]:
    """Tell ``slimexp.clean`` that a run needs what lies in ``runs``, until what is returned is closed.

    Runs hold it side by side; one that begins while models are removed waits until that is done.

    Raises:
        ValueError: Something is there that is no file.
    """
    runs.mkdir(parents=True, exist_ok=True)
    if integrity.is_other_kind(path := runs / RUNNING):
        raise ValueError(
            f"{path} must be a file, which runs hold while they are at work: remove it, or set runs=FOLDER"
        )
    file = integrity.lock_file(path)
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        print(f"{runs} is being cleaned, waiting", flush=True)
        fcntl.flock(file, fcntl.LOCK_SH)
    return file


def key(content: Mapping[str, Any]) -> str:
    """The same work has the same key; 5 and 5.0 are the same.

    Values of the environment count in it: another value is other work, and the digest does not show it.
    """
    return hashlib.sha256(json.dumps(as_floats(content), sort_keys=True).encode()).hexdigest()[:12]


def as_floats(tree: Any) -> Any:
    """``tree`` with every number as a float: what a command line and a YAML file write differently."""
    if isinstance(tree, Mapping):
        return {name: as_floats(value) for name, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [as_floats(value) for value in tree]
    return float(tree) if isinstance(tree, int) and not isinstance(tree, bool) else tree


def code_version(names: Sequence[str]) -> str:
    """Digest of the sources of modules or rooms: another version of them is other work."""
    root = Path(__file__).parents[1]
    patterns = ("{}.py", "{}/*.py", "{}/*.cpp")
    files = sorted(path for name in names for pattern in patterns for path in root.glob(pattern.format(name)))
    digest = hashlib.sha256(__version__.encode())
    for path in files:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def shaping(trainer: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a trainer that shape what it makes."""
    return {key: value for key, value in trainer.items() if key not in _SHAPES_NOTHING}
