"""Progress of long work: what is done, how far it is and how long it will take, so that no phase is silent.

``working`` names a phase and ``counted`` a loop in it; they nest, and cost next to nothing. Neither prints. A thread
does, so that a single long call (reading a model, compiling) is no more silent than a loop: on a terminal in a line
that is overwritten, else in a line every ten seconds. What ends within three seconds is not mentioned.
"""

import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from operator import length_hint
from typing import TextIO, TypeVar

from slimexp.host.console import printable

T = TypeVar("T")

FIRST_S = 3.0  # a phase that ends before is not mentioned
LEAST_S = 1.0  # the same where phases before it were not mentioned either, for so long that a line is due
EVERY_S = 10.0  # between two lines of a log
LIVE_S = 0.5  # between two looks of the line on a terminal
_CLEAR = "\r\x1b[K"


@dataclass(eq=False)
class Work:
    """A phase, or a loop, that is at work.

    Attributes:
        what: What is done.
        began: When it began, in seconds of the reporter's clock.
        total: Number of items of the loop, 0 where it is not known; ``None`` for a phase.
        first_s: Seconds after which it is mentioned first.
        done: Number of items that are done.
        before: Number of those that were done before it began, by an earlier run.
        in_bytes: Whether the items are bytes.
        seen: When a line first showed that something was done of the loop, and what share of it.
    """

    what: str
    began: float
    total: int | None
    first_s: float
    done: int = 0
    before: int = 0
    in_bytes: bool = False
    seen: tuple[float, float] | None = None

    def __str__(self) -> str:
        if self.total is None:
            return self.what
        if self.in_bytes:
            return f"{self.what}: {self.done / 1e9:.1f} of {self.total / 1e9:.1f} GB"
        at_work = self.done + 1
        return f"{self.what} {at_work}" if not self.total else f"{self.what} {min(at_work, self.total)} of {self.total}"


class Reporter:
    """Prints what is at work, by a thread that lives while anything is.

    It prints where its outermost phase began to print: what redirects a library's output hides none of its lines.

    Args:
        clock: Seconds of a clock that only advances.
        watching: Whether a thread watches; without one, what is due is printed by ``report`` alone.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, *, watching: bool = True) -> None:
        self.clock = clock
        self.watching = watching
        self._stack: list[Work] = []
        self._out: TextIO = sys.stdout
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._printed = self._ended = clock()
        self._announced = False  # whether the outermost phase was mentioned

    def begin(self, what: str, total: int | None = None, *, first_s: float = FIRST_S) -> Work:
        """Begin a phase, or a loop of ``total`` items, inside those that are at work.

        Args:
            what: What is done, or what an item is.
            total: Number of items, 0 where it is not known; ``None`` for a phase.
            first_s: Seconds after which it is mentioned first.
        """
        now = self.clock()
        work = Work(printable(what), now, total, first_s)
        if threading.current_thread() is not threading.main_thread():  # what is beside the main work would garble it
            return work
        with self._changed:
            if not self._stack:
                self._out = sys.stdout
                self._announced = False
                if now - self._ended > 1:  # something else was at work, and it prints for itself
                    self._printed = now
            self._stack.append(work)
            if self.watching and self._thread is None:
                self._thread = threading.Thread(target=self._watch, name="progress", daemon=True)
                self._thread.start()
        return work

    def end(self, work: Work) -> None:
        """End a phase or loop, and what was begun in it; of an outermost one that was mentioned, say how long it took.

        A loop that an error left is in the way of nothing: its generator may end long after, with the traceback.
        """
        with self._changed:
            if work not in self._stack:
                return
            del self._stack[self._stack.index(work) :]
            if self._stack:
                return
            self._ended = self.clock()
            if self._announced:
                self._print(f"{work.what}: took {duration(self._ended - work.began)}", last=True)
                self._announced = False
            self._changed.notify()

    def report(self) -> None:
        """Print what is at work, if that is due."""
        with self._changed:
            if not self._stack or self._wait() > 0:
                return
            self._print(": ".join(map(str, self._stack)) + self._times(self._stack))
            self._announced = True

    def spoke(self) -> None:
        """Count a line that the work has printed itself as one of progress."""
        with self._changed:
            self._printed = self.clock()
            self._announced = False
            for work in self._stack:
                work.first_s = self._printed - work.began + EVERY_S

    def silent_s(self) -> float:
        """Seconds since a line was printed."""
        return self.clock() - self._printed

    def times(self, work: Work) -> str:
        """How long a phase or loop has taken, and what is left of it: ``, 43 s, about 68 s left``."""
        with self._changed:
            return self._times([work])

    def _wait(self) -> float:
        """Seconds until the next line is due."""
        if self._announced:
            due = self._printed + (LIVE_S if self._out.isatty() else EVERY_S)
        else:  # many short phases are one silence
            began, first_s = self._stack[0].began, self._stack[0].first_s
            due = min(began + first_s, max(self._printed + EVERY_S, began + LEAST_S))
        return due - self.clock()

    def _times(self, stack: Sequence[Work]) -> str:
        now = self.clock()
        left = self._left(stack, now)
        return f", {duration(now - stack[0].began)}" + (f", about {duration(left)} left" if left >= 1 else "")

    @staticmethod
    def _left(stack: Sequence[Work], now: float) -> float:
        """Estimated seconds until the outermost loop is done; 0 where nothing shows it.

        The pace is that since a line first showed something done, for the first items are slow: they compile, or read.
        Until then it is that of all, unless a single item shows it.
        """
        loops = [work for work in stack if work.total and work.total > work.before]
        share, unit = 0.0, 1.0
        for work in loops:
            assert work.total
            to_do = work.total - work.before
            share += unit * (work.done - work.before) / to_do
            unit /= to_do
        if not 0 < share < 1:
            return 0.0
        outer = loops[0]
        first = outer.seen is None
        since, before = outer.seen = outer.seen or (now, share)
        if share > before:
            return (now - since) * (1 - share) / (share - before)
        single = sum(work.done - work.before for work in loops) == 1
        return 0.0 if first and single else (now - outer.began) * (1 - share) / share

    def _print(self, text: str, *, last: bool = False) -> None:
        """Print a line; on a terminal one that the next text overwrites, unless it is the last of its phase."""
        self._printed = self.clock()
        with suppress(OSError, ValueError):  # the reader has left, which the program will find out by itself
            if self._out.isatty():
                room = shutil.get_terminal_size().columns - 3  # a line that is broken cannot be overwritten
                print(f"{_CLEAR}  {text[:room]}", end="\n" if last else "\r", file=self._out, flush=True)
            else:
                print(f"  {text}", file=self._out, flush=True)

    def _watch(self) -> None:
        """Report until nothing is at work."""
        with self._changed:
            while self._stack:
                self.report()
                self._changed.wait(max(self._wait(), 0.05))
            self._thread = None

    def move(self, before: TextIO, after: TextIO) -> None:
        """Go on in ``after`` where lines went to ``before``."""
        with self._changed:
            if self._out is before:
                self._out = after

    def forget(self) -> None:
        """Forget all work and stay silent: in a process that was forked, whose thread did not come along."""
        self._changed, self._stack, self.watching = threading.Condition(), [], False


reporter = Reporter()
os.register_at_fork(after_in_child=lambda: reporter.forget())


@contextmanager
def working(what: str) -> Iterator[None]:
    """Name the phase that the block is."""
    work = reporter.begin(what)
    try:
        yield
    finally:
        reporter.end(work)


def counted(items: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
    """``items``, with progress of the loop over them.

    Args:
        items: What to go over.
        what: What one of them is, such as ``layer``.
        total: Their number, where ``items`` does not know it.
    """
    work = reporter.begin(what, length_hint(items) if total is None else total)
    try:
        for item in items:
            yield item
            work.done += 1
    finally:
        reporter.end(work)


@contextmanager
def counted_bytes(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Progress over ``total`` bytes; yields what tells it, from any thread, of more that were read or written."""
    work, lock = reporter.begin(what, total), threading.Lock()
    work.in_bytes = True

    def add(number: int) -> None:
        with lock:
            work.done += number

    try:
        yield add
    finally:
        reporter.end(work)


def duration(seconds: float) -> str:
    """``42 s``, ``5 min 48 s``, ``12 min`` or ``3.1 h``."""
    whole = round(seconds)
    if whole < 100:
        return f"{whole} s"
    if whole < 600:
        return f"{whole // 60} min {whole % 60} s" if whole % 60 else f"{whole // 60} min"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
