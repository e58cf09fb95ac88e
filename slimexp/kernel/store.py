"""What is kept between processes, compiled kernels and results of races, and is looked at before it is used."""

import functools
import os
import stat
import sys
from pathlib import Path

from slimexp.file import regular

_OTHERS = stat.S_IWGRP | stat.S_IWOTH


def folders() -> list[Path]:
    """Where things are kept: ``$SLIMEXP_CACHE``, then the user's cache folder; none where there is neither."""
    own, base = os.environ.get("SLIMEXP_CACHE"), os.environ.get("XDG_CACHE_HOME") or ""
    if not os.path.isabs(base):  # which its specification has ignored
        home = "" if os.environ.get("HOME") == "" else os.path.expanduser("~")
        base = os.path.join(home, ".cache")
    users = [Path(base) / "slimexp" / "kernel"] if os.path.isabs(base) else []
    return [Path(own).absolute() / "kernel", *users] if own else users


def read(path: Path, *, most: int, trusted: bool = False) -> bytes:
    """All of a small file.

    Args:
        path: Of the file.
        most: Bytes that it may have.
        trusted: Whether nobody but this user and the administrator may be able to write it, or in its folder.

    Raises:
        FileNotFoundError: There is none.
        OSError: It cannot be read, or is no file.
        ValueError: It is longer, or others could have written it.
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
    """Refuse what others can write: a library is run as it is loaded.

    Raises:
        ValueError: They can.
    """
    if about.st_uid not in (0, os.geteuid()):
        raise ValueError(f"{path} belongs to another user")
    if about.st_mode & _OTHERS:
        raise ValueError(f"{path} can be written by others (chmod go-w makes it yours)")


@functools.cache
def say(line: str) -> None:
    """Tell the user, once in a process."""
    print(line, file=sys.stderr, flush=True)
