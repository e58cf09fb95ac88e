"""One stage of a run: the key of its work, its folder, and the lock of the one process that works on it."""

import fcntl
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from slimexp.config.by_name import is_pattern
from slimexp.file import integrity
from slimexp.file.bounded import OWN_MB, read_object
from slimexp.host.console import printable
from slimexp.record import lock

DENSE = "dense"  # name of the stage that holds the model which others are compared with
RUNNING = ".running"  # file in a runs folder that runs lock side by side, and ``slimexp.clean`` exclusively
# names of a stage's checkpoints, and of what it goes on from besides
CHECKPOINT = re.compile(r"checkpoint\.(ckpt|(\d+\.)?partial)|choice\.(json|partial)")
START = "start"  # name of the stage that holds the model a run starts from, where that is not the dense one

# Of a trainer: what is seen of a training, the files Lightning would write of its own, and the devices and the parts of
# a batch, for the batches and the objective are the same on any number of them, so that a training that was stopped
# goes on on more or fewer.
_SHAPES_NOTHING = frozenset(
    {
        "activation_checkpointing",
        "default_root_dir",
        "devices",
        "enable_checkpointing",
        "enable_model_summary",
        "enable_progress_bar",
        "log_every_n_steps",
        "logger",
        "num_nodes",
        "profiler",
        "rows_at_once",
        "strategy",
    }
)


class Stopped(ValueError):
    """A stage was stopped before its end, because its result would be of no use."""


@dataclass(frozen=True)
class Stage:
    """A stage, and the files of its results.

    Attributes:
        name: Name of the stage in the pipeline.
        key: Content hash of everything that shapes its result.
        parent: Key of the stage before it; ``None`` for a root.
        folder: Holds ``artifact/``, ``measures.json``, ``curves.jsonl`` and, while unfinished, ``checkpoint.ckpt``; a
            damaged file is renamed to ``damaged-`` and its name, and only the newest is kept.
    """

    name: str
    key: str
    parent: str | None
    folder: Path

    @property
    def artifact(self) -> Path:
        """Folder of the model."""
        return self.folder / "artifact"

    @property
    def checkpoint(self) -> Path:
        """File from which an unfinished training goes on."""
        return self.folder / "checkpoint.ckpt"

    @property
    def choice(self) -> Path:
        """File of what an unfinished training chose to retain before its first step."""
        return self.folder / "choice.json"

    @property
    def curves(self) -> Path:
        """File of the training curves, a JSON object for each logged step."""
        return self.folder / "curves.jsonl"

    def check_place(self) -> None:
        """Refuse a link on the way to the stage, because files would be written and removed where it leads.

        The runs folder itself may be a link, because the user chooses it.

        Raises:
            ValueError: The folder of the run or of the stage is a link, or no folder.
        """
        for place in (self.folder.parent, self.folder):
            if place.is_symlink():
                raise ValueError(f"{place} is a link, and a stage writes below its runs folder only: remove the link")
            if os.path.lexists(place) and not place.is_dir():
                raise ValueError(f"{place} is no folder, and a stage writes in one: move what is there, or set runs=")

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Lock the stage until the block ends; another process waits here, and then reads the finished stage."""
        self.check_place()  # again, because the check before the run was long ago
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / "lock"
        if integrity.is_other_kind(path):
            self.set_aside(path, "it is no file")
        with lock.held(path, f"{self.name}: another process works on it"):
            yield

    def drop_checkpoint(self) -> None:
        """Remove the checkpoint, and half-written ones that a killed process left."""
        for path in self.folder.iterdir() if self.folder.is_dir() else ():
            if CHECKPOINT.fullmatch(path.name):
                integrity.remove(path)

    def set_aside(self, path: Path, why: object, *, then: str = "done again") -> None:
        """Rename a damaged file, and print a line that says why and what is done then."""
        aside = integrity.set_aside(path)
        print(f"{self.name}: its {path.name} is damaged ({printable(why)}): set aside as {aside}, {then}", flush=True)

    def measured(self) -> dict[str, Any]:
        """What ``write_measured`` wrote last; empty where there is no file, or a damaged one, which is set aside."""
        path = self.folder / "measures.json"
        if not os.path.lexists(path):
            return {}
        try:
            content = read_object(path, most_mb=OWN_MB, strict=True, way_out=None)
            integrity.check_numbers(content.get("metrics"), "metrics")
            integrity.check_seal(content)
        except integrity.Damaged as error:
            self.set_aside(path, error)
            return {}
        return {name: value for name, value in content.items() if name != integrity.SEAL}

    def restore_curves(self, rows: str) -> None:
        """Write the curves of a finished stage again where its file is missing or differs from ``rows``."""
        path, expected = self.curves, rows.encode()
        if path.is_file() and path.stat().st_size == len(expected) and path.read_bytes() == expected:
            return
        if os.path.lexists(path):
            self.set_aside(path, "it has other content than was written", then="written again")
        else:
            print(f"{self.name}: its {path.name} is missing: written again", flush=True)
        integrity.write(path, rows)

    def write_measured(self, content: Mapping[str, Any]) -> None:
        """Write metrics and the settings that they were measured with, sealed by their digest."""
        integrity.write(self.folder / "measures.json", json.dumps(integrity.sealed(content)))


def at_work(runs: Path) -> IO[str]:
    """Lock ``runs`` against ``slimexp.clean`` until the returned file is closed.

    Runs share the lock; one that begins while models are removed waits until that is done.

    Raises:
        ValueError: The lock is no regular file.
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
    """The same work has the same key; 5 and 5.0 are the same, and patterns of names in another order are not.

    Values of the environment count in it: another value is other work, and the digest does not show it.
    """
    return hashlib.sha256(json.dumps(as_floats(content), sort_keys=True).encode()).hexdigest()[:12]


def as_floats(tree: Any) -> Any:
    """``tree`` with every number as a float: what a command line and a YAML file write differently.

    A mapping by patterns of names, of which the first that matches counts, becomes a list of its items.
    """
    if isinstance(tree, Mapping):
        floats = {name: as_floats(value) for name, value in tree.items()}
        return list(floats.items()) if any(is_pattern(str(name)) for name in floats) else floats
    if isinstance(tree, list | tuple):
        return [as_floats(value) for value in tree]
    return float(tree) if isinstance(tree, int) and not isinstance(tree, bool) else tree


def shaping(trainer: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a trainer that shape what it makes."""
    return {key: value for key, value in trainer.items() if key not in _SHAPES_NOTHING}
