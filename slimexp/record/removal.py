"""Removal of models and checkpoints that this package wrote in a runs folder, and of nothing else.

Everything is opened from the runs folder down, one name at a time and without following links, and then checked and
removed through its descriptor, because the target of a path can change between a check and a removal.
"""

import errno
import fcntl
import json
import os
import platform
import re
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from slimexp.file.integrity import LARGEST
from slimexp.record.record import FILE
from slimexp.record.stage import RUNNING

LOCK, MODEL, MANIFEST = "lock", "artifact", "manifest.json"
CACHES, CACHE = "teacher_cache", "cache.json"  # a folder in the runs folder, and what says of a folder there what it is
COMPLETIONS = "completions"  # a folder in the runs folder, of texts that teachers wrote, each with its lock
PART = re.compile(r"(damaged-|\.)?part-\d{6}(\.\d+)?")
TEXTS = re.compile(r"(damaged-|\.\d+\.)?(?P<key>[0-9a-f]{16})\.jsonl")
STAGE = re.compile(r"[^/]+-(?P<key>[0-9a-f]{12})")
DAMAGED = re.compile(r"damaged-(artifact|checkpoint\.ckpt|curves\.jsonl|lock|measures\.json)")
HALF = re.compile(r"\.artifact\.(.+\.)?\d+\.(?P<kind>partial|old)")
BESIDE = {MANIFEST, "training.safetensors", "training.dropped"}  # files of an artifact that its manifest does not list
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK  # never wait for the other end of a pipe


class NotRemovable(Exception):
    """Something is not removed, because it is not certain that this package wrote all of it; the message says why."""


def stages(runs: Path) -> Iterator[Path]:
    """Folders below one with records that have the name and the lock of a stage; no link is followed."""
    recorded: list[Path] = []
    for at, folders, files in os.walk(runs):
        here = Path(at)
        if FILE in files:
            recorded.append(here)
        named = STAGE.fullmatch(here.name) and LOCK in files
        if named and any(here != root and here.is_relative_to(root) for root in recorded):
            yield here
        folders[:] = [] if named else sorted(name for name in folders if not name.startswith("."))


def locks(runs: Path) -> Iterator[Path]:
    """Files that runs and sweeps lock while they are at work, in ``runs`` and below it, and those of runs above it."""
    yield from (folder / RUNNING for folder in runs.parents if (folder / RUNNING).is_file())
    for at, folders, files in os.walk(runs):
        folders[:] = [] if STAGE.fullmatch(Path(at).name) else sorted(folders)
        yield from (Path(at) / name for name in files if name == RUNNING or (name == LOCK and Path(at).name == "sweep"))


@contextmanager
def opened(folder: Path, runs: Path) -> Iterator[int]:
    """A descriptor of ``folder``, which lies in ``runs`` and is reached through no link.

    Raises:
        NotRemovable: A link or a file is on the way.
        OSError: The folder cannot be opened, or another file system is mounted on the way.
    """
    with ExitStack() as stack:
        place = os.open(runs, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        stack.callback(os.close, place)
        device = os.fstat(place).st_dev
        for name in folder.relative_to(runs).parts:
            place = _inside(stack, place, name)
            if os.fstat(place).st_dev != device:
                raise OSError(errno.EXDEV, f"{name} is a mount point")
        yield place


def _inside(stack: ExitStack, place: int, name: str) -> int:
    """Descriptor of a folder within the one that ``place`` describes, closed with the stack."""
    if name in ("", ".", ".."):
        raise NotRemovable(f"'{name}' in its path leads elsewhere")
    try:
        inner = os.open(name, _FOLDER, dir_fd=place)
    except OSError as error:
        if error.errno in (errno.ENOTDIR, errno.ELOOP):
            raise NotRemovable(f"{name} is a link or a file") from None
        raise
    stack.callback(os.close, inner)
    return inner


@contextmanager
def alone(name: str | Path, folder: int | None = None, *, create: bool = False) -> Iterator[bool]:
    """Whether no other process holds the lock ``name``, which is then held until the block ends.

    Args:
        name: Path of the lock file, or its name in ``folder``.
        folder: Descriptor of its folder.
        create: Whether to create it where it is missing.

    Raises:
        NotRemovable: The lock is missing, or no regular file.
    """
    try:
        file = _lock_file(name, folder, os.O_CREAT if create else 0)
    except OSError as error:
        raise NotRemovable(f"its lock '{name}' cannot be opened ({os.strerror(error.errno or 0)})") from None
    try:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            raise NotRemovable(f"its lock '{name}' is no file")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(file)


def _lock_file(name: str | Path, folder: int | None, flags: int) -> int:
    try:
        return os.open(name, os.O_RDWR | _FILE | flags, 0o644, dir_fd=folder)  # NFS locks only what can be written
    except PermissionError:
        return os.open(name, os.O_RDONLY | _FILE, dir_fd=folder)


def check_model(stage: int, name: str, key: str, *, root: bool) -> None:
    """Check that ``name`` in a stage's folder is a model that the stage of this key wrote, and that nothing was added.

    Args:
        stage: Descriptor of the stage's folder.
        name: Name of the model's folder.
        key: Key of the stage.
        root: Whether the stage is the first of its run, whose key is not in the history of the model.

    Raises:
        NotRemovable: The folder is no such model, or holds other files.
    """
    with ExitStack() as stack:
        model = _inside(stack, stage, name)
        manifest = _manifest(model)
        history = manifest.get("stages")
        if not isinstance(history, list) or not isinstance(manifest.get("files"), list):
            raise NotRemovable(f"its {MANIFEST} is none of this package")
        last = history[-1].get("key") if history and isinstance(history[-1], dict) else None
        if not root and last != key:
            raise NotRemovable(f"its {MANIFEST} is of stage {last}")
        expected = BESIDE | {str(file) for file in manifest["files"]}
        if unexpected := sorted(set(os.listdir(model)) - expected):
            raise NotRemovable(f"{unexpected[0]} in it is not of this package")


def _manifest(model: int) -> dict[str, Any]:
    """The manifest of a model, whose folder a descriptor stands for."""
    try:
        with os.fdopen(os.open(MANIFEST, os.O_RDONLY | _FILE, dir_fd=model), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise NotRemovable(f"its {MANIFEST} is no file")
            if os.fstat(file.fileno()).st_size > LARGEST:
                raise NotRemovable(f"its {MANIFEST} is too large to be one")
            manifest = json.loads(file.read(LARGEST))
    except (OSError, ValueError, RecursionError) as error:
        raise NotRemovable(f"its {MANIFEST} cannot be read ({type(error).__name__})") from None
    if not isinstance(manifest, dict):
        raise NotRemovable(f"its {MANIFEST} is none of this package")
    return manifest


def size(folder: int, name: str) -> int:
    """Bytes of disk that removing ``name`` frees.

    A file with a further name elsewhere keeps its blocks, and one with two names inside counts once.

    Args:
        folder: Descriptor of the folder that holds it.
        name: Name of a file or a folder.

    Raises:
        NotRemovable: It holds a link, or something else that is neither a file nor a folder.
        OSError: It holds a file of another user, or a mount point.
    """
    top = os.stat(name, dir_fd=folder, follow_symlinks=False)
    by_inode: dict[int, list[os.stat_result]] = {}
    device = os.fstat(folder).st_dev
    for where, entry in _entries(folder, name, top):
        if stat.S_ISLNK(entry.st_mode):
            raise NotRemovable(f"{where} is a link")
        if not (stat.S_ISREG(entry.st_mode) or stat.S_ISDIR(entry.st_mode)):
            raise NotRemovable(f"{where} is no plain file")
        if entry.st_uid != os.geteuid():
            raise OSError(errno.EPERM, f"{where} belongs to another user")
        # of folders only, because an overlay gives its files other device numbers
        if stat.S_ISDIR(entry.st_mode) and entry.st_dev != device:
            raise OSError(errno.EXDEV, f"{where} is a mount point")
        by_inode.setdefault(entry.st_ino, []).append(entry)
    gone = (same for same in by_inode.values() if stat.S_ISDIR(same[0].st_mode) or same[0].st_nlink == len(same))
    return sum(512 * same[0].st_blocks for same in gone)


def _entries(folder: int, name: str, top: os.stat_result) -> Iterator[tuple[str, os.stat_result]]:
    """Path and status of ``name`` and of everything below it."""
    yield name, top
    if stat.S_ISDIR(top.st_mode):
        for at, folders, files, place in os.fwalk(name, dir_fd=folder, follow_symlinks=False, onerror=_raise):
            for entry in (*folders, *files):
                yield os.path.join(at, entry), os.stat(entry, dir_fd=place, follow_symlinks=False)


def _raise(error: OSError) -> None:
    raise error


def remove(folder: int, name: str, check: Callable[[str], int]) -> int:
    """Remove a file or folder that passes ``check``.

    It is renamed first, so that half a model is never taken for a finished one.

    Args:
        folder: Descriptor of the folder that holds it.
        name: Its name.
        check: Called with its temporary name; returns its bytes, or raises the reason to keep it.

    Returns:
        Bytes that were freed.

    Raises:
        NotRemovable: It was exchanged since it was checked first, and has its name again.
        OSError: It cannot be removed.
    """
    is_folder = stat.S_ISDIR(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode)
    process = f"{platform.node()}.{os.getpid()}"
    temporary = f".artifact.{process}.partial" if is_folder else f"checkpoint.{os.getpid()}.partial"
    if temporary != name:
        if temporary in os.listdir(folder):
            raise FileExistsError(errno.EEXIST, f"{temporary} is in the way")
        os.rename(name, temporary, src_dir_fd=folder, dst_dir_fd=folder)
    try:
        freed = check(temporary)
    except BaseException:
        os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
        raise
    if is_folder:
        assert shutil.rmtree.avoids_symlink_attacks
        shutil.rmtree(temporary, dir_fd=folder)
    else:
        os.unlink(temporary, dir_fd=folder)
    return freed
