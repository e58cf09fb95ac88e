"""The user's cache, of compiled kernels and of the autotuner's choices among them; its files are checked before use."""

import functools
import os
import stat
import sys
from pathlib import Path

from slimexp.file import regular

_OTHERS = stat.S_IWGRP | stat.S_IWOTH


def folders(room: str = "kernel") -> list[Path]:
    """The cache folders: of ``$SLIMEXP_CACHE``, then of the user; empty where there is neither.

    Args:
        room: Name of the folder within the cache.
    """
    own, base = os.environ.get("SLIMEXP_CACHE"), os.environ.get("XDG_CACHE_HOME") or ""
    if not os.path.isabs(base):  # which its specification has ignored
        home = "" if os.environ.get("HOME") == "" else os.path.expanduser("~")
        base = os.path.join(home, ".cache")
    users = [Path(base) / "slimexp" / room] if os.path.isabs(base) else []
    return [Path(own).absolute() / room, *users] if own else users


def read(path: Path, *, most: int, trusted: bool = False) -> bytes:
    """The content of a small file.

    Args:
        path: Path of the file.
        most: Largest size in bytes.
        trusted: Whether to refuse a file that others than this user and the administrator can write, or whose folder
            they can write to.

    Raises:
        FileNotFoundError: There is no such file.
        OSError: The file cannot be read.
        ValueError: The path is no regular file, it is too long, or other users could have written it.
    """
    with regular.opened(path, os.O_NOFOLLOW) as file:
        about = os.fstat(file.fileno())
        if about.st_size > most:
            raise ValueError(f"it is longer than {most} bytes")
        if trusted:
            check_own(path.parent, os.stat(path.parent))
            check_own(path, about)
        return file.read(most + 1)


def check_own(path: Path, about: os.stat_result) -> None:
    """Refuse a path that other users can write: loading a library runs it.

    Raises:
        ValueError: The path belongs to another user, or others can write it.
    """
    if about.st_uid not in (0, os.geteuid()):
        raise ValueError(f"{path} belongs to another user")
    if about.st_mode & _OTHERS:
        raise ValueError(f"{path} can be written by others (chmod go-w makes it yours)")


@functools.cache
def print_once(line: str) -> None:
    """Print a line for the user, once in a process."""
    print(line, file=sys.stderr, flush=True)
