"""Files that another program or person may have put there: opened only where they are regular, read up to a bound."""

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

_PIECE = 1 << 16  # bytes


def descriptor(path: str | Path, flags: int = os.O_RDONLY) -> int:
    """A descriptor of a regular file, opened without waiting for the other end of a pipe; links are followed.

    Raises:
        OSError: It cannot be opened, or it is a folder, a pipe or a device.
    """
    file = os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY, 0o644)
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return file


def opened(path: str | Path, flags: int = 0) -> BinaryIO:
    """A regular file to read from; ``flags`` are further ones of ``os.open``, such as ``os.O_NOFOLLOW``.

    Raises:
        OSError: As ``descriptor``.
    """
    return os.fdopen(descriptor(path, os.O_RDONLY | flags), "rb")


def content(path: str | Path, most: int) -> bytes:
    """The content of a file.

    Args:
        path: A regular file.
        most: Largest size, in bytes.

    Raises:
        OSError: As ``descriptor``.
        ValueError: It has more.
    """
    with opened(path) as stream:
        data = stream.read(most + 1)
    if len(data) > most:
        raise ValueError(f"{path} is too large: it must have at most {most / 1e6:.0f} MB")
    return data


def lines(stream: BinaryIO, most: int) -> Iterator[bytes | None]:
    """Lines without their ends; ``None`` for one of more than ``most`` bytes, which is never held as a whole."""
    while line := stream.readline(most + 1):
        if len(line) <= most or line.endswith(b"\n"):
            yield line.rstrip(b"\r\n")
            continue
        while (rest := stream.readline(_PIECE)) and not rest.endswith(b"\n"):
            pass
        yield None


def within(folder: str | Path, relative: str) -> Path | None:
    """The path that ``relative`` names, links followed; ``None`` where it leads out of ``folder``."""
    root = os.path.realpath(folder)
    path = os.path.realpath(os.path.join(root, relative))
    return Path(path) if path.startswith(os.path.join(root, "")) else None
