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
from operator import length_hint
from typing import TextIO, TypeVar

from slimexp.host.console import printable

T = TypeVar("T")

FIRST_S = 3.0  # a phase that ends before is not mentioned
LEAST_S = 1.0  # the same where phases before it were not mentioned either, for so long that a line is due
EVERY_S = 10.0  # between two lines of a log
LIVE_S = 0.5  # between two looks of the line on a terminal
_CLEAR = "\r\x1b[K"


class Work:
    """A phase, or a loop, that is at work.

    Args:
        what: What is done.
        clock: Seconds of a clock that only advances.
        total: Number of items of the loop, 0 where it is not known; ``None`` for a phase.
        first_s: Seconds after which it is mentioned first.

    Attributes:
        began: When it began.
        before: Number of items that were done before it began, by an earlier run.
        in_bytes: Whether the items are bytes.
    """

    def __init__(self, what: str, clock: Callable[[], float], total: int | None, first_s: float) -> None:
        self.what, self.total, self.first_s = what, total, first_s
        self.before, self.in_bytes = 0, False
        self.began = self._last = clock()  # when the last item was done, or the first began
        self._clock, self._done = clock, 0
        self._spent = 0.0  # seconds that items took which are done
        self._slowest = (0.0, 0)  # seconds and number of those that took longest, each

    @property
    def done(self) -> int:
        """Number of items that are done."""
        return self._done

    @done.setter
    def done(self, number: int) -> None:
        now, new = self._clock(), number - max(self._done, self.before)
        if new > 0:
            seconds = now - self._last
            self._spent += seconds
            if not self._slowest[1] or seconds / new > self._slowest[0] / self._slowest[1]:
                self._slowest = (seconds, new)
        self._done, self._last = number, now

    def pace(self) -> float | None:
        """Seconds for an item: the mean, without the slowest, which compiled or read; ``None`` before two are done."""
        others = self._done - self.before - self._slowest[1]
        return (self._spent - self._slowest[0]) / others if others > 0 else None

    def since(self) -> float:
        """Seconds that the item at work has taken."""
        return self._clock() - self._last

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
        work = Work(printable(what), self.clock, total, first_s)
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
        left = _left([work for work in stack if work.total and work.total > work.before])
        return f", {duration(now - stack[0].began)}" + (f", about {duration(left)} left" if left >= 1 else "")

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


def _left(loops: Sequence[Work]) -> float:
    """Estimated seconds until the first of nested loops is done; 0 where nothing shows it.

    Its own items show it. A loop within one may be the first of several, or a short one: only in an outer loop with no
    more than two items to do is it taken for the whole item.
    """
    if not loops or not loops[0].total:
        return 0.0
    outer, *inner = loops
    to_do = loops[0].total - outer.done
    if (pace := outer.pace()) is not None:
        return max(pace * to_do - outer.since(), pace * (to_do - 1))
    rest = _left(inner) if to_do <= 2 else 0.0
    return rest + (to_do - 1) * (outer.since() + rest) if rest else 0.0


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
