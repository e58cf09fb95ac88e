"""A cache as a folder of parts: rows by their keys, and what is kept of each of their labels.

A part is written aside and renamed when it is whole; nobody changes it afterwards. Readers map its values into memory,
and read on while another process adds parts. Who adds some holds the lock.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from slimexp.file import integrity
from slimexp.file.bounded import OWN_MB, read_object
from slimexp.file.integrity import Damaged
from slimexp.host.console import printable
from slimexp.record import lock, removal
from slimexp.record.settings import flat
from slimexp.teacher_cache.row_key import Keys

FOLDER, ABOUT, LOCK = removal.CACHES, removal.CACHE, removal.LOCK
PART = "part.json"
FORMAT = 1
_INDEX = ("keys.npy", "starts.npy")
_VALUES = "values.npy"


@dataclass(frozen=True)
class Part:
    """Some rows.

    Attributes:
        keys: Their keys, sorted, [R].
        starts: Where the labels of each begin among the values, and the last end, [R + 1].
        values: What is kept of each label, uint8 [N, bytes], mapped from the file.
        about: Name of the values' type, seconds that making them took, and how exact they are.
    """

    keys: Keys
    starts: NDArray[np.int64]
    values: NDArray[np.uint8]
    about: Mapping[str, Any]


class Store:
    """The cache in a folder.

    Args:
        folder: The folder.
        about: What it is for, as JSON: the teacher, the text, the form.

    Attributes:
        parts: The parts that were whole when it was looked at.
    """

    def __init__(self, folder: Path, about: Mapping[str, Any]) -> None:
        self.folder = folder
        self.about = dict(about)
        self.parts: list[Part] = []
        self._index: tuple[Keys, NDArray[np.int64], NDArray[np.int64]] | None = None

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Be the only one to add parts; another process waits here, and then finds what this one has added.

        A cache that cannot be written to, on a share perhaps, is read as it is.

        Raises:
            ValueError: The folder holds outputs of another teacher or on other text (says what differs), or no cache.
            OSError: It cannot be written to, and holds none.
        """
        _refuse_strangers(self.folder)
        if self.is_fixed:
            _refuse_other(self.folder, differences(_read(self.folder / ABOUT), self.about))
            self.look()
            yield
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        with lock.held(self.folder / LOCK, f"  teacher cache: another process fills {self.folder}"):
            for leftover in self.folder.glob(".part-*"):  # of a process that was killed
                integrity.remove(leftover)
            self._claim()
            self.look()
            yield

    @property
    def is_fixed(self) -> bool:
        """Whether there is a cache, to which nothing can be added."""
        return _is_fixed(self.folder)

    def _claim(self) -> None:
        """Say what the folder is for, or see that it is for that."""
        path = self.folder / ABOUT
        if not path.exists():
            integrity.write(path, json.dumps(integrity.sealed(self.about), indent=2) + "\n")
        else:
            _refuse_other(self.folder, differences(_read(path), self.about))

    def look(self) -> None:
        """Look for parts; a damaged one is set aside, which a line says."""
        self.parts, self._index = [], None
        for folder in sorted(self.folder.glob("part-*")):
            try:
                self.parts.append(_part(folder))
            except (Damaged, OSError, ValueError) as error:
                aside = integrity.set_aside(folder)
                print(f"  teacher cache: {folder} is damaged ({printable(error)}): set aside as {aside}", flush=True)

    @property
    def index(self) -> tuple[Keys, NDArray[np.int64], NDArray[np.int64]]:
        """Keys of all rows, sorted; the part of each, and its place there."""
        if self._index is None:
            keys = np.concatenate([part.keys for part in self.parts] or [np.empty(0, dtype=np.uint64)])
            parts = np.repeat(np.arange(len(self.parts)), [len(part.keys) for part in self.parts])
            places = np.concatenate([np.arange(len(part.keys)) for part in self.parts] or [np.empty(0, dtype=np.int64)])
            order = np.argsort(keys, kind="stable")
            self._index = keys[order], parts[order], places[order]
        return self._index

    def has(self, keys: Keys) -> NDArray[np.bool_]:
        """Which rows it holds, [B]."""
        known = self.index[0]
        if not len(known):
            return np.zeros(len(keys), dtype=bool)
        held: NDArray[np.bool_] = known[np.searchsorted(known, keys).clip(max=len(known) - 1)] == keys
        return held

    def read(self, keys: Keys, mask: Tensor) -> Tensor:
        """What is kept of the rows of a batch.

        Args:
            keys: Keys of the rows, [B].
            mask: Which labels count, bool [B, T] or [B].

        Returns:
            [B, T, ...] or [B, ...] in the type that was kept; zeros where no label counts.

        Raises:
            ValueError: A row is missing, or has another number of labels.
        """
        wanted = mask.numpy().reshape(len(keys), -1)
        known, parts, places = self.index
        if not self.has(keys).all():
            raise ValueError(f"the teacher cache in {self.folder} lacks a row that it held: repeat the command")
        first = self.parts[0]
        raw = np.zeros((*wanted.shape, first.values.shape[1]), dtype=np.uint8)
        for row, at in enumerate(np.searchsorted(known, keys)):
            part, place = self.parts[parts[at]], places[at]
            raw[row, wanted[row]] = part.values[part.starts[place] : part.starts[place + 1]]
        kept = torch.from_numpy(raw).view(getattr(torch, first.about["type"]))
        return kept.view(*mask.shape, -1)

    def append(self, keys: Keys, counts: NDArray[np.int64], values: Tensor, about: Mapping[str, Any]) -> None:
        """Add a part; see ``alone``.

        Args:
            keys: Keys of its rows, [R].
            counts: Number of labels of each, [R].
            values: What is kept of them, one after the other, [N, ...].
            about: Seconds that making them took, and how exact they are.
        """
        order = np.argsort(keys)
        raw = values.contiguous().view(torch.uint8).numpy()
        ends = np.cumsum(counts)
        pieces = [raw[ends[row] - counts[row] : ends[row]] for row in order]
        number = max((int(path.name.split("-")[1]) for path in self.folder.glob("part-*")), default=-1) + 1
        folder = self.folder / f"part-{number:06d}"
        partial = self.folder / f".{folder.name}.{os.getpid()}"
        partial.mkdir()
        try:
            np.save(partial / _INDEX[0], keys[order])
            np.save(partial / _INDEX[1], np.concatenate([[0], np.cumsum(counts[order])]).astype(np.int64))
            np.save(partial / _VALUES, np.concatenate(pieces))
            content = {**about, "type": str(values.dtype).removeprefix("torch."), "files": integrity.digests(partial)}
            integrity.write(partial / PART, json.dumps(integrity.sealed(content)) + "\n")
            integrity.publish(partial, folder)
        finally:
            integrity.remove(partial)
        self.parts.append(_part(folder))
        self._index = None

    def check_room(self, size: int) -> None:
        """Refuse to begin what the disk has no room for.

        Args:
            size: Bytes that are to be added.

        Raises:
            ValueError: Less is free; says how much.
        """
        free = shutil.disk_usage(self.folder).free
        if size > free:
            raise ValueError(
                f"the teacher cache needs {size:,} bytes more in {self.folder}, where {free:,} are free: use "
                "teacher_cache=compact, fewer steps or epochs, or its folder on a larger disk"
            )


def check_folder(folder: Path, known: Mapping[str, Any]) -> None:
    """Refuse a folder that holds another cache, or none, by what is known before there is a teacher.

    Args:
        folder: The folder; it need not exist.
        known: A part of what the cache is to be for.

    Raises:
        ValueError: It holds something else (says what differs), or is no place for a cache.
    """
    _refuse_strangers(folder)
    if not _is_fixed(folder):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise ValueError(f"cannot write to {folder} ({error.strerror}): name another folder") from error
    held = described(folder / ABOUT) if (folder / ABOUT).exists() else None
    if held is not None:
        wanted, found = dict(flat(known)), dict(flat(held))
        _refuse_other(folder, differences({key: found[key] for key in wanted if key in found}, wanted))


def _is_fixed(folder: Path) -> bool:
    return (folder / ABOUT).exists() and not os.access(folder, os.W_OK)


def _refuse_strangers(folder: Path) -> None:
    strangers = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if strangers and not {ABOUT, LOCK} & strangers:
        raise ValueError(f"{folder} holds something else than a teacher cache: name another folder for it")


def _refuse_other(folder: Path, differing: Sequence[str]) -> None:
    if differing:
        raise ValueError(
            f"the teacher cache in {folder} is of something else ({'; '.join(differing)}): leave its folder at null, "
            "or name another"
        )


def differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """What differs between two descriptions of caches, each as ``key: found, not wanted``."""
    one, other = dict(flat(found)), dict(flat(wanted))
    keys = [key for key in {**one, **other} if one.get(key) != other.get(key)]
    return [f"{key}: {one.get(key, 'nothing')}, not {other.get(key, 'nothing')}" for key in keys]


def described(path: Path) -> dict[str, Any] | None:
    """What the cache is for whose ``ABOUT`` a file is; ``None`` where it is damaged."""
    try:
        return _read(path)
    except Damaged:
        return None


def _read(path: Path) -> dict[str, Any]:
    content = read_object(path, most_mb=OWN_MB, strict=True, way_out="remove the folder of the cache")
    integrity.check_seal(content)
    return {name: value for name, value in content.items() if name != integrity.SEAL}


def _part(folder: Path) -> Part:
    """A part; its index is compared with its digests, its values with their size alone.

    Raises:
        Damaged: It is not what was written.
    """
    about = _read(folder / PART)
    integrity.check_files(folder, {name: about["files"][name] for name in _INDEX})
    expected = about["files"][_VALUES]["bytes"]
    if (size := (folder / _VALUES).stat().st_size) != expected:
        raise Damaged(f"{_VALUES} has {size} of {expected} bytes")
    keys, starts = (np.load(folder / name) for name in _INDEX)
    return Part(keys, starts, np.load(folder / _VALUES, mmap_mode="r"), about)
