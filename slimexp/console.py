"""What a program says of a long loop, and when its surroundings give way: a disk, a folder, a reader."""

import errno
import io
import os
import re
import select
import signal
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")

USER_ERROR = 2
INTERRUPTED = 128 + signal.SIGINT  # as a shell counts
UNREAD = 128 + signal.SIGPIPE

LABEL = 1_000  # characters of a text from a record that are shown

_FULL = {errno.ENOSPC, errno.EDQUOT}
_SHUT = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST}


@contextmanager
def output() -> Iterator[None]:
    """Print whole lines at once, and end in silence when the reader has gone (``| head``)."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        if not _unread():  # a pipe to a worker or a server: not the reader's doing
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter flushes it once more
        sys.exit(UNREAD)


def counted(items: Collection[T], what: str) -> Iterator[T]:
    """``items``, and how many are done: on a terminal in a line that is written over, else a line at every tenth."""
    live, last = sys.stdout.isatty(), len(items)
    try:
        for done, item in enumerate(items, 1):
            yield item
            if live:
                print(f"\r  {what} {done} of {last}", end="", flush=True)
            elif 10 * done // last > 10 * (done - 1) // last:
                print(f"  {what} {done} of {last}", flush=True)
    finally:
        if live and last:
            print()


def printable(text: object) -> str:
    """Text that somebody else wrote, in one line that no terminal obeys: control characters are shown as ``\\x1b``.

    What is longer than ``LABEL`` characters is cut.
    """
    line = str(text)
    if len(line) > LABEL:
        line = f"{line[:LABEL]}…"
    if line.isprintable():
        return line
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in line)


def disk_fault(error: BaseException, folder: str | None, *, setting: str) -> str | None:
    """What to tell of a full disk, or of a folder that cannot be written; ``None`` for anything else.

    Args:
        error: An ``OSError``, or what the Rust libraries raise instead, with the number in its text.
        folder: Where the program writes.
        setting: How to choose another folder.
    """
    number = error.errno if isinstance(error, OSError) else _rust_number(error)
    file = (error.filename2 or error.filename) if isinstance(error, OSError) else None  # the second is a copy's target
    ours = file is None or folder is None or _related(str(file), folder)
    if number in _FULL:
        return (
            f"no space left in {folder or file if ours else file}: free some and repeat the command, which goes on "
            f"from what is finished, or choose a folder on another disk by {setting}"
        )
    if number in _SHUT and file is not None and ours:
        why = "a file has that name" if number in (errno.EEXIST, errno.ENOTDIR) else os.strerror(number)
        return f"cannot write to {file} ({why}): choose a folder of your own by {setting}"
    return None


def _rust_number(error: BaseException) -> int | None:
    found = re.search(r"\(os error (\d+)\)", str(error))
    return int(found[1]) if found else None


def _related(file: str, folder: str) -> bool:
    """Whether one of the two lies in the other."""
    file, folder = os.path.abspath(file), os.path.abspath(folder)
    return os.path.commonpath([file, folder]) in (file, folder)


def _unread() -> bool:
    """Whether the other end of the output is closed."""
    poll = select.poll()
    for stream in (sys.stdout, sys.stderr):
        poll.register(stream.fileno(), 0)  # POLLERR is reported unasked
    return any(event & select.POLLERR for _, event in poll.poll(0))
