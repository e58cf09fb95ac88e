"""Files that hold what was written: digests are taken when files are made, and compared before they are used.

Files are written under another name, brought to the disk and then renamed, so that a kill or a power cut at any moment
leaves the old or the new one. What other programs, a full disk or a failing one did to them since is ``Damaged``.
"""

import errno
import hashlib
import json
import os
import re
import shutil
import stat
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any

from slimexp.file import regular

Read = Callable[[int], object]  # is told how many bytes more were read

_PIECE = 2**20  # bytes that are read at once
LARGEST = 2**28  # bytes of a JSON file: slimexp writes none that is larger
SEAL = "sha256"
PID = re.compile(r"[0-9]{1,9}")  # a larger one is of no process
_DIGESTS: dict[tuple[int, ...], str] = {}  # by what changes with every write, so that a file is read once per process


class Damaged(ValueError):
    """A file or folder is not what was written there."""


def digests(folder: Path) -> dict[str, dict[str, Any]]:
    """Size in bytes and SHA-256 of every file below ``folder``, by its name relative to it."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    take_digests(files)
    return {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": digest(path)} for path in files
    }


def take_digests(files: Iterable[Path], *, read: Read | None = None) -> None:
    """Take the digests of files side by side, so that ``digest`` knows them: one takes a second for each 1 to 2 GB."""
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        list(pool.map(partial(digest, read=read), files))


def digest(path: Path, *, read: Read | None = None) -> str:
    """SHA-256 of a file, read in pieces; ``read`` is told of the bytes of each, or of a file's that is known."""
    with path.open("rb") as file:
        identity = _identity(file)
        if identity not in _DIGESTS:
            hasher = hashlib.sha256()
            while piece := file.read(_PIECE):
                hasher.update(piece)
                if read is not None:
                    read(len(piece))
            _DIGESTS[identity] = hasher.hexdigest()
        elif read is not None:
            read(os.fstat(file.fileno()).st_size)
    return _DIGESTS[identity]


def rename(path: Path, new: Path) -> None:
    """Rename a file, whose digest is known by its new name too where it was by the old one."""
    with path.open("rb") as file:
        known = _DIGESTS.get(_identity(file))
        path.rename(new)
        if known is not None:
            _DIGESTS[_identity(file)] = known


def _identity(file: IO[bytes]) -> tuple[int, ...]:
    status = os.fstat(file.fileno())
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def check_files(folder: Path, expected: Mapping[str, Mapping[str, Any]]) -> None:
    """Compare files with their ``digests``; files without one are not examined.

    Raises:
        Damaged: One is missing, of another size or of other content, or lies elsewhere by its name.
    """
    for name, file in expected.items():
        # the names are another program's, perhaps; libraries keep some of their files in folders below
        if not name.isprintable() or "\\" in name or {"", ".", ".."} & set(name.split("/")):
            raise Damaged(f"{name!r:.80} is no name of a file in it")
        path = folder / name
        if not os.path.lexists(path):
            raise Damaged(f"{name} is missing")
        _check_regular(path)
        if (size := path.stat().st_size) != file["bytes"]:
            raise Damaged(f"{name} has {size} of {file['bytes']} bytes")
    take_digests(folder / name for name in expected)
    for name, file in expected.items():
        if digest(folder / name) != file["sha256"]:
            raise Damaged(f"{name} has other content than was written")


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """``content`` with its own digest, for ``check_seal``."""
    return {**content, SEAL: _seal(content)}


def check_seal(content: Mapping[str, Any]) -> None:
    """Raise ``Damaged`` where ``content`` differs from what was sealed."""
    try:
        whole = content.get(SEAL) == _seal(content)
    except RecursionError:  # brackets in brackets
        whole = False
    if not whole:
        raise Damaged("it has other content than was written")


def check_numbers(figures: Any, name: str) -> None:
    """Raise ``Damaged`` unless ``figures`` are finite numbers by name."""
    if not isinstance(figures, dict):
        raise Damaged(f"{name} are no figures by name")
    for metric, value in figures.items():
        if type(value) not in (int, float) or not is_finite(value):
            raise Damaged(f"{name}.{metric} is no finite number")


def is_finite(value: float) -> bool:
    """Whether a number is finite; integers that no float can hold are not, for which ``math.isfinite`` raises."""
    return abs(value) <= sys.float_info.max


def write(path: Path, text: str, *, partial: Path | None = None) -> None:
    """Write a file that is whole at every moment: the old one, or the new one.

    Args:
        path: The file.
        text: Its content.
        partial: Name of the file until it is whole, in the same folder; one of each process's own where several may
            write at once. ``None`` for ``path`` with the suffix ``.partial``.
    """
    partial = partial or path.with_suffix(".partial")
    remove(partial)  # a pipe would be waited for, and a link written through
    with partial.open("x", encoding="utf-8") as file:
        file.write(text)
    publish(partial, path)


@contextmanager
def aside(path: Path) -> Iterator[Path]:
    """A name of this process's own for a file or folder that becomes ``path`` when it is whole.

    A file or link at ``path`` is replaced, and not written through; a folder is to be removed first. What processes
    that were killed left under such names is removed.
    """
    for leftover in path.parent.glob(f".*.{path.name}"):
        if PID.fullmatch(pid := leftover.name.split(".")[1]) and not is_alive(int(pid)):
            remove(leftover)
    partial = path.with_name(f".{os.getpid()}.{path.name}")
    remove(partial)
    try:
        yield partial
        publish(partial, path)
    finally:
        remove(partial)


def publish(partial: Path, path: Path) -> None:
    """Rename what was written aside, a file or a folder, once it is on the disk."""
    for written in [*sorted(partial.rglob("*")), partial] if partial.is_dir() else [partial]:
        sync(written)
    os.replace(partial, path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Bring a file's content, or a folder's names, to the disk."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system that has no such thing for folders
            raise
    finally:
        os.close(opened)


def lock_file(path: Path) -> IO[str]:
    """A file to lock, created where there is none; no link is followed, and no pipe waited for.

    Raises:
        OSError: It cannot be opened, or is no regular file.
    """
    return os.fdopen(regular.descriptor(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW), "a")


def set_aside(path: Path) -> Path:
    """Rename a damaged file or folder, in place of one that was set aside earlier; returns its new path."""
    aside = path.with_name(f"damaged-{path.name}")
    remove(aside)
    os.replace(path, aside)
    return aside


def remove(path: Path) -> None:
    """Remove ``path``, whether it is a file, a folder, a link or nothing."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def is_other_kind(path: Path) -> bool:
    """Whether ``path`` exists and is no regular file: a folder, a pipe, or a link, whatever that leads to."""
    return os.path.lexists(path) and (path.is_symlink() or not path.is_file())


def is_alive(pid: int) -> bool:
    """Whether a process of this machine has the number ``pid``."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # it is another user's
        return True
    return True


def _check_regular(path: Path) -> None:
    """Raise ``Damaged`` unless ``path`` is a regular file: a pipe would be waited for without end."""
    if not path.exists() or not stat.S_ISREG(path.stat().st_mode):
        raise Damaged(f"{path.name} is no file")


def _seal(content: Mapping[str, Any]) -> str:
    rest = {name: value for name, value in content.items() if name != SEAL}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()
