"""The console of a program: one line when a disk, a folder, a reader or a user ends it."""

import argparse
import errno
import faulthandler
import io
import os
import re
import select
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NoReturn

from slimexp.host import memory
from slimexp.host.out_of_memory import is_out_of_memory

USER_ERROR = 2
INTERRUPTED = 128 + signal.SIGINT  # as a shell counts
TERMINATED = 128 + signal.SIGTERM
UNREAD = 128 + signal.SIGPIPE
GOES_ON = "what is finished is kept, the same command goes on from there"

LABEL = 1_000  # characters of a text from a record that are shown

_AGAIN_S = 2.0  # ``timeout`` signals a process and then its group, and fingers are impatient
_TORN = -1  # torch.save does not say why
_FULL = {
    errno.ENOSPC: "no space left",
    errno.EDQUOT: "no space left",
    _TORN: "a file could not be written whole, for want of space or by a limit (ulimit -f),",
}
_SHUT = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP}
_BROKEN = {errno.EIO, errno.ESTALE, errno.EREMOTEIO}
_FILES = {errno.EMFILE, errno.ENFILE}
_NUMBER = re.compile(r"(?:os error |\[?Errno )(\d+)")
_MAPPED = re.compile(r"unable to mmap (\d+) bytes from file <(.*)>")  # of torch
_PHRASES = {
    **{os.strerror(number): number for number in (*_FULL, *_BROKEN, *_FILES, errno.EFBIG, errno.ENOMEM)},
    "PytorchStreamWriter failed": _TORN,
    "enforce fail at inline_container": _TORN,
}


_phases: list[str] = []  # the one that began last: what ran out of memory


class Terminated(KeyboardInterrupt):
    """SIGTERM, which ends a program as Ctrl-C does."""


class Parser(argparse.ArgumentParser):
    """Parser of a command's arguments, whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        """End the program."""
        self.exit(USER_ERROR, f"error: {printable(message, None)} (--help tells what there is)\n")


def path(text: str) -> Path:
    """The path in an argument; an empty one is refused, as ``Path`` takes it for the folder that the program runs in.

    Raises:
        argparse.ArgumentTypeError: The text is empty, as where a variable of the shell is not set.
    """
    if not text.strip():
        raise argparse.ArgumentTypeError(f"must be a path, got {text!r}: write . for this folder")
    return Path(text)


@contextmanager
def output() -> Iterator[None]:
    """Print whole lines at once, and end in silence when the reader has gone (``| head``).

    A crash in a library's own code (SIGSEGV, SIGFPE, ...) prints where Python was: the engine, and what it did.
    """
    if (
        sys.stderr is not None and sys.stderr is sys.__stderr__ and not faulthandler.is_enabled()
    ):  # a test or a worker has its own
        faulthandler.enable()
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


@contextmanager
def interruptible(kept: str = "the same command begins anew") -> Iterator[None]:
    """Let Ctrl-C and SIGTERM end the program alike, by one line and status 130 or 143.

    A signal that the process was started to ignore, or that another library handles, is left to them, and processes
    that are forked from this one heed both as by default.

    Args:
        kept: End of the line: what is kept of the work done so far.
    """
    stops = _Stops()
    try:
        yield
    except (KeyboardInterrupt, Exception) as error:  # an error after a signal, of a worker that it ended too, is noise
        stop = error if isinstance(error, KeyboardInterrupt) else stops.raised
        if stop is None:
            raise
        ending = "terminated" if isinstance(stop, Terminated) else "interrupted"
        print(f"{ending}: {kept}", file=sys.stderr)
        sys.exit(TERMINATED if isinstance(stop, Terminated) else INTERRUPTED)
    finally:
        stops.restore()


class _Stops:
    """Handlers of SIGINT and SIGTERM: the first signal raises, one right after it is ignored, a later one exits."""

    def __init__(self) -> None:
        self.raised: KeyboardInterrupt | None = None
        self._owner, self._since = os.getpid(), 0.0
        defaults = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
        here = threading.current_thread() is threading.main_thread()
        self._before = {number: old for number, old in defaults.items() if here and signal.getsignal(number) is old}
        for number in self._before:
            signal.signal(number, self._stop)

    def restore(self) -> None:
        """Put the handlers back, unless the program is about to end by one."""
        for number, old in self._before.items():
            if self.raised is None:
                signal.signal(number, old)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._owner:
            if number == signal.SIGINT:
                signal.default_int_handler(number, frame)
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        elif self.raised is None:
            self._since = time.monotonic()
            self.raised = Terminated() if number == signal.SIGTERM else KeyboardInterrupt()
            raise self.raised
        elif time.monotonic() - self._since > _AGAIN_S:
            _leave(128 + number)


def _leave(status: int) -> NoReturn:
    """End at once: whatever is written is written aside and renamed."""
    os._exit(status)


def phase(what: str) -> None:
    """Print, in a line of its own and at once, what begins now and may take long."""
    _phases[:] = [printable(what)]
    print(f"  {_phases[-1]}", flush=True)


def printable(text: object, most: int | None = LABEL) -> str:
    """Text from outside, in one line that no terminal obeys: control characters are shown as ``\\x1b``.

    Args:
        text: Any object; its ``str`` is shown.
        most: Number of characters after which it is cut; ``None`` for a message of slimexp, whose end may matter.
    """
    line = str(text)
    if most is not None and len(line) > most:
        line = f"{line[:most]}…"
    if line.isprintable():
        return line
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in line)


def disk_fault(error: BaseException, folder: str | None, *, setting: str) -> str | None:
    """The message on a disk, folder or memory that fails or is full; ``None`` for any other error.

    Args:
        error: An ``OSError``, or what libraries in C++ and Rust raise instead, with the reason in its text.
        folder: Folder that the program writes to.
        setting: Way to choose another folder, as it is typed.
    """
    number = _number(error)
    file = (error.filename2 or error.filename) if isinstance(error, OSError) else None  # the second is a copy's target
    is_own = file is None or folder is None or _related(str(file), folder)
    where, why = folder or file if is_own else file, os.strerror(number or 0)
    if number == errno.EFBIG:
        return f"a file in {where} would be larger than allowed: raise ulimit -f, or choose another disk by {setting}"
    if number in _FULL:
        return (
            f"{_FULL[number]} in {where}: free some and repeat the command, which goes on "
            f"from what is finished, or choose a folder on another disk by {setting}"
        )
    if number in _BROKEN:
        return f"the disk under {file or where} fails ({why}): repeat the command, or choose another by {setting}"
    if number in _FILES:
        return f"{why.lower()}: raise the limit (ulimit -n) or use fewer workers, and repeat the command"
    if number == errno.ENOMEM and (mapped := _MAPPED.search(str(error))):
        return (
            f"{mapped[2]} is one file of {int(mapped[1]) / 1e9:.3g} GB, which is mapped as a whole, and "
            f"{memory.available() / 1e9:.3g} GB of memory are available: save the model in smaller files "
            "(max_shard_size of save_pretrained), use a smaller model, or a machine with more memory"
        )
    if number == errno.ENOMEM:
        message = (str(error).strip().splitlines() or ["MemoryError"])[0]
        during = f" while {_phases[-1]}" if _phases else ""
        return (
            f"no memory left{during} ({message[:200]}): free some, lower trainer.rows_at_once (a batch in parts, the "
            "result stays) or max_length, or use a smaller model"
        )
    if number in _SHUT and file is not None and is_own:
        why = "a file has that name" if number in (errno.EEXIST, errno.ENOTDIR) else why
        return f"cannot write to {_short(str(file))} ({why}): choose a folder of your own by {setting}"
    return None


def _number(error: BaseException) -> int | None:
    """The ``errno`` of an error, from its attribute or its text."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    if is_out_of_memory(error):
        return errno.ENOMEM
    text = str(error)
    if match := _NUMBER.search(text):
        return int(match[1])
    return next((number for phrase, number in _PHRASES.items() if phrase in text), None)


def _short(path: str) -> str:
    return path if len(path) <= 200 else f"{path[:100]}...{path[-20:]}"


def _related(file: str, folder: str) -> bool:
    """Whether one of two paths lies in the other."""
    file, folder = os.path.abspath(file), os.path.abspath(folder)
    return os.path.commonpath([file, folder]) in (file, folder)


def _unread() -> bool:
    """Whether the other end of the output is closed."""
    poll = select.poll()
    for stream in (sys.stdout, sys.stderr):
        poll.register(stream.fileno(), 0)  # POLLERR is reported unasked
    return any(event & select.POLLERR for _, event in poll.poll(0))
