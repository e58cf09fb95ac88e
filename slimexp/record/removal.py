"""What of a runs folder may be removed: models and checkpoints that this package wrote there, and nothing else.

Everything is opened from the runs folder down, one name at a time and no symbolic link, and looked at through what
was opened: what a path leads to can change between a look and a removal.
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
from slimexp.record.stage import CHECKPOINT as CHECKPOINT
from slimexp.record.stage import RUNNING

LOCK, MODEL, MANIFEST = "lock", "artifact", "manifest.json"
STAGE = re.compile(r"[^/]+-(?P<key>[0-9a-f]{12})")
DAMAGED = re.compile(r"damaged-(artifact|checkpoint\.ckpt|curves\.jsonl|lock|measures\.json)")
HALF = re.compile(r"\.artifact\.(.+\.)?\d+\.(?P<kind>partial|old)")
BESIDE = {MANIFEST, "training.safetensors"}  # what lies in an artifact that its manifest does not list
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK  # a pipe of that name must not be waited for


class Kept(Exception):
    """Why something is not this package's to remove."""


def stages(runs: Path) -> Iterator[Path]:
    """Folders that are named and locked as stages are, below a folder with records; no link is followed."""
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
    """Files that runs and sweeps hold while they are at work; of folders around ``runs`` those of runs."""
    yield from (folder / RUNNING for folder in runs.parents if (folder / RUNNING).is_file())
    for at, folders, files in os.walk(runs):
        folders[:] = [] if STAGE.fullmatch(Path(at).name) else sorted(folders)
        yield from (Path(at) / name for name in files if name == RUNNING or (name == LOCK and Path(at).name == "sweep"))


@contextmanager
def opened(folder: Path, runs: Path) -> Iterator[int]:
    """A descriptor of ``folder``, which lies in ``runs`` and is reached through no link.

    Raises:
        Kept: It is not.
        OSError: It cannot be opened, or another disk is mounted on the way.
    """
    with ExitStack() as held:
        place = os.open(runs, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        held.callback(os.close, place)
        device = os.fstat(place).st_dev
        for name in folder.relative_to(runs).parts:
            place = _inside(held, place, name)
            if os.fstat(place).st_dev != device:
                raise OSError(errno.EXDEV, f"{name} is a mount point")
        yield place


def _inside(held: ExitStack, place: int, name: str) -> int:
    if name in ("", ".", ".."):
        raise Kept(f"'{name}' in its path leads elsewhere")
    try:
        inner = os.open(name, _FOLDER, dir_fd=place)
    except OSError as error:
        if error.errno in (errno.ENOTDIR, errno.ELOOP):
            raise Kept(f"{name} is a link or a file") from None
        raise
    held.callback(os.close, inner)
    return inner


@contextmanager
def alone(name: str | Path, folder: int | None = None, *, create: bool = False) -> Iterator[bool]:
    """Whether no process holds the lock file ``name``; none can take it meanwhile.

    Raises:
        Kept: It is no plain file, or not there.
    """
    try:
        file = _lock_file(name, folder, os.O_CREAT if create else 0)
    except OSError as error:
        raise Kept(f"its lock '{name}' cannot be opened ({os.strerror(error.errno or 0)})") from None
    try:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            raise Kept(f"its lock '{name}' is no file")
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
    """Whether ``name`` in a stage's folder is a model that the stage of this key wrote, and nothing was added.

    Args:
        stage: Descriptor of the stage's folder.
        name: Of the model's folder.
        key: Of the stage.
        root: Whether the stage is the first of its run, whose key is not in the model's history.

    Raises:
        Kept: It is not.
    """
    with ExitStack() as held:
        model = _inside(held, stage, name)
        manifest = _manifest(model)
        done = manifest.get("stages")
        if not isinstance(done, list) or not isinstance(manifest.get("files"), list):
            raise Kept(f"its {MANIFEST} is none of this package")
        last = done[-1].get("key") if done and isinstance(done[-1], dict) else None
        if not root and last != key:
            raise Kept(f"its {MANIFEST} is of stage {last}")
        known = BESIDE | {str(file) for file in manifest["files"]}
        if strange := sorted(set(os.listdir(model)) - known):
            raise Kept(f"{strange[0]} in it is not of this package")


def _manifest(model: int) -> dict[str, Any]:
    try:
        with os.fdopen(os.open(MANIFEST, os.O_RDONLY | _FILE, dir_fd=model), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise Kept(f"its {MANIFEST} is no file")
            if os.fstat(file.fileno()).st_size > LARGEST:
                raise Kept(f"its {MANIFEST} is too large to be one")
            manifest = json.loads(file.read(LARGEST))
    except (OSError, ValueError, RecursionError) as error:
        raise Kept(f"its {MANIFEST} cannot be read ({type(error).__name__})") from None
    if not isinstance(manifest, dict):
        raise Kept(f"its {MANIFEST} is none of this package")
    return manifest


def size(folder: int, name: str) -> int:
    """Bytes of disk that go with ``name``, each block once.

    Raises:
        Kept: A link or another thing that is neither file nor folder is among it.
        OSError: Another user's file or a mount point is.
    """
    top = os.stat(name, dir_fd=folder, follow_symlinks=False)
    found: dict[int, list[os.stat_result]] = {}
    device = os.fstat(folder).st_dev
    for where, entry in _entries(folder, name, top):
        if stat.S_ISLNK(entry.st_mode):
            raise Kept(f"{where} is a link")
        if not (stat.S_ISREG(entry.st_mode) or stat.S_ISDIR(entry.st_mode)):
            raise Kept(f"{where} is no plain file")
        if entry.st_uid != os.geteuid():
            raise OSError(errno.EPERM, f"{where} belongs to another user")
        if stat.S_ISDIR(entry.st_mode) and entry.st_dev != device:  # an overlay gives its files other numbers
            raise OSError(errno.EXDEV, f"{where} is a mount point")
        found.setdefault(entry.st_ino, []).append(entry)
    # a file with a further name elsewhere keeps its blocks
    gone = (same for same in found.values() if stat.S_ISDIR(same[0].st_mode) or same[0].st_nlink == len(same))
    return sum(512 * same[0].st_blocks for same in gone)


def _entries(folder: int, name: str, top: os.stat_result) -> Iterator[tuple[str, os.stat_result]]:
    yield name, top
    if stat.S_ISDIR(top.st_mode):
        for at, folders, files, place in os.fwalk(name, dir_fd=folder, follow_symlinks=False, onerror=_raise):
            for entry in (*folders, *files):
                yield os.path.join(at, entry), os.stat(entry, dir_fd=place, follow_symlinks=False)


def _raise(error: OSError) -> None:
    raise error


def remove(folder: int, name: str, check: Callable[[str], int]) -> int:
    """Remove what passes ``check``, under another name first: half a model must not be taken for a finished one.

    Args:
        folder: Descriptor of the folder it lies in.
        name: Of it.
        check: Takes the name that it has been given; returns its bytes, or raises what makes it stay.

    Returns:
        Bytes that are free now.

    Raises:
        Kept: It was exchanged since it was looked at, and has its name back.
        OSError: It cannot be removed.
    """
    is_folder = stat.S_ISDIR(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode)
    process = f"{platform.node()}.{os.getpid()}"
    going = f".artifact.{process}.partial" if is_folder else f"checkpoint.{os.getpid()}.partial"
    if going != name:
        if going in os.listdir(folder):
            raise FileExistsError(errno.EEXIST, f"{going} is in the way")
        os.rename(name, going, src_dir_fd=folder, dst_dir_fd=folder)
    try:
        freed = check(going)
    except BaseException:
        os.rename(going, name, src_dir_fd=folder, dst_dir_fd=folder)
        raise
    if is_folder:
        assert shutil.rmtree.avoids_symlink_attacks
        shutil.rmtree(going, dir_fd=folder)
    else:
        os.unlink(going, dir_fd=folder)
    return freed
