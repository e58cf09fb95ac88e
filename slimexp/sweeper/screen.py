"""The screen of a sweep that goes on: a live table on a terminal, plain lines in a file or a pipe."""

import os
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from slimexp.analysis import pareto
from slimexp.host.console import printable
from slimexp.host.progress import EVERY_S, working

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table

SHOWN = 4  # trials under way that a line names
PER_SECOND = 2  # refreshes of the table, which shows whole seconds
_TAIL = 2000  # bytes at the end of a log, which hold its last line
FRAME = 9  # lines of a terminal besides the rows of the table


class Lines:
    """A line for every trial that has ended, and what stays on a terminal.

    A file or a pipe gets besides, where nothing was printed for ``every_s`` seconds, a line on the trials under way.

    Args:
        every_s: Seconds after which a silence is broken; ``None`` for never.
    """

    def __init__(self, every_s: float | None = None) -> None:
        self.every_s = every_s
        self._spoke = time.monotonic()
        self._running: dict[int, tuple[Mapping[str, Any], float]] = {}
        self._logs: dict[int, Path] = {}
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> "Lines":
        if self.every_s is not None:
            self._thread = threading.Thread(target=self._watch, name="sweep", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self._ended.set()
        if self._thread is not None:
            self._thread.join()

    def started(self, number: int, params: Mapping[str, Any], log: Path | None = None) -> None:
        """Trial ``number`` is with a worker, which writes to ``log``."""
        self._running[number] = params, time.monotonic()
        if log is not None:
            self._logs[number] = log

    def alive(self) -> None:
        """Say what is under way, where nothing was printed for long."""
        now = time.monotonic()
        if self.every_s is None or now - self._spoke < self.every_s or not self._running:
            return
        running = sorted(self._running.copy().items())
        shown = [self._state(number, now - began, params) for number, (params, began) in running[:SHOWN]]
        shown += [f"and {len(running) - SHOWN} more"] if len(running) > SHOWN else []
        print(f"  under way: {'; '.join(shown)}", flush=True)
        self._spoke = now

    def _state(self, number: int, seconds: float, params: Mapping[str, Any]) -> str:
        """``trial 3, 67 s, quantize.bits=4 (step 20 of 100)``, the last line of its log in brackets."""
        said = last_line(self._logs[number]) if number in self._logs else ""
        swept = " ".join(f"{key.removeprefix('pipeline.')}={value}" for key, value in params.items())
        return f"trial {number}, {clock(seconds)}, {swept}{f' ({said})' if said else ''}"

    def phase(self, what: str) -> AbstractContextManager[None]:
        """Name work that follows the trials, where it is long."""
        return working(what)

    def _watch(self) -> None:
        assert self.every_s is not None
        while not self._ended.wait(max(0.5, min(self.every_s, self._spoke + self.every_s - time.monotonic()))):
            self.alive()

    def reached(self, number: int, params: Mapping[str, Any], values: Sequence[float]) -> None:
        """A trial has finished within the limits, with these objectives."""

    def returned(self, number: int, message: str) -> None:
        """A trial has lost its worker, and waits for another."""
        self.ended(number)
        print(message, flush=True)

    def finished(self, number: int, message: str, *, failures: int, left: float) -> None:
        """A trial has ended.

        Args:
            number: Number of the trial.
            message: Its result, in a line.
            failures: Number of trials that failed so far.
            left: Seconds until the last trial ends, at the pace so far; 0 when it has ended.
        """
        self.ended(number)
        print(f"{message}; about {clock(left)} left" if left else message, flush=True)

    def ended(self, number: int) -> None:
        """Trial ``number`` is with no worker any more, and a line says so."""
        self._running.pop(number, None)
        self._logs.pop(number, None)
        self._spoke = time.monotonic()


class Live(Lines):
    """Below the lines, a table of the front so far and of the trials under way, and how much is left.

    Args:
        swept: Keys that have several values.
        objectives: Metric -> ``min`` or ``max``.
        total: Number of trials.
        done: Number of trials that ended in earlier commands.
        failures: Number of those that failed.
        console: The terminal.
    """

    def __init__(
        self,
        swept: Sequence[str],
        objectives: Mapping[str, str],
        total: int,
        done: int,
        failures: int,
        *,
        console: "Console",
    ) -> None:
        from rich.live import Live as Region

        super().__init__()
        self.swept = list(swept)
        self.objectives = dict(objectives)
        self.total, self.done, self.failures = total, done, failures
        self.console = console
        self._front: list[tuple[int, Mapping[str, Any], Sequence[float]]] = []
        self._ends: float | None = None
        self._region = Region(get_renderable=self.drawn, console=console, refresh_per_second=PER_SECOND, transient=True)

    def __enter__(self) -> "Live":
        self._region.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self._region.stop()

    def reached(self, number: int, params: Mapping[str, Any], values: Sequence[float]) -> None:
        candidates = [*self._front, (number, params, values)]
        best = pareto.front([candidate[2] for candidate in candidates], list(self.objectives.values()))
        self._front = sorted((candidates[index] for index in best), key=lambda candidate: candidate[2][-1])

    def phase(self, what: str) -> AbstractContextManager[None]:
        return nullcontext()  # the table is there meanwhile

    def returned(self, number: int, message: str) -> None:
        from rich.text import Text

        self._running.pop(number, None)
        self.console.print(Text(message, style="yellow"))

    def finished(self, number: int, message: str, *, failures: int, left: float) -> None:
        from rich.text import Text

        style = "red" if failures > self.failures else ""
        self._running.pop(number, None)
        self.done, self.failures = self.done + 1, failures
        self._ends = time.monotonic() + left if left else None
        self.console.print(Text(message, style=style))

    def drawn(self) -> "RenderableType":
        """The table and the bar, as of now."""
        from rich.console import Group

        return Group("", self._table(), self._bar())

    def _table(self) -> "Table":
        from rich.table import Table

        table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
        table.add_column("trial", no_wrap=True)
        for name in _shortest(self.swept):
            table.add_column(name, justify="right", overflow="ellipsis")
        for name, direction in self.objectives.items():
            table.add_column(f"{name} {'↓' if direction == 'min' else '↑'}", justify="right", no_wrap=True)
        for number, params, values in self._shown():
            figures = [f"[green]{value:.4g}[/green]" for value in values]
            table.add_row(f"{number:4d} [green]front[/green]", *self._settings(params), *figures)
        blank = [""] * (len(self.objectives) - 1)
        for number, (params, began) in sorted(self._running.items()):
            since = f"[cyan]{clock(time.monotonic() - began)}[/cyan]"
            table.add_row(f"{number:4d} [cyan]running[/cyan]", *self._settings(params), since, *blank)
        return table

    def _shown(self) -> list[tuple[int, Mapping[str, Any], Sequence[float]]]:
        """Points of the front that fit on the terminal: evenly spread, the ends among them."""
        room = max(2, self.console.height - FRAME - len(self._running))
        if len(self._front) <= room:
            return self._front
        return [self._front[round(row * (len(self._front) - 1) / (room - 1))] for row in range(room)]

    def _settings(self, params: Mapping[str, Any]) -> list[str]:
        from rich.markup import escape

        values = (params.get(key, "") for key in self.swept)
        return [f"{value:.4g}" if isinstance(value, float) else escape(str(value)) for value in values]

    def _bar(self) -> "Table":
        from rich.progress_bar import ProgressBar
        from rich.table import Table

        parts = [f"{self.done} of {self.total} done"]
        parts += [f"[red]{self.failures} of them failed[/red]"] if self.failures else []
        parts += [f"{len(self._front)} on the front"] if self._front else []
        parts += [f"about {clock(max(0.0, self._ends - time.monotonic()))} left"] if self._ends else []
        line = Table.grid(padding=(0, 2, 0, 0))
        line.add_row(ProgressBar(total=self.total, completed=self.done, width=24), ", ".join(parts))
        return line


def screen(swept: Sequence[str], objectives: Mapping[str, str], total: int, done: int, failures: int) -> Lines:
    """The screen that suits the standard output; arguments as for ``Live``."""
    if not sys.stdout.isatty():
        return Lines(every_s=EVERY_S)
    from rich.console import Console

    console = Console(highlight=False)
    return Lines() if console.is_dumb_terminal else Live(swept, objectives, total, done, failures, console=console)


def last_line(log: Path, most: int = 100) -> str:
    """The last line of a trial's log that says something, at most so many characters of it; empty without one."""
    try:
        with log.open("rb") as file:
            file.seek(-min(_TAIL, file.seek(0, os.SEEK_END)), os.SEEK_END)
            lines = file.read().decode(errors="replace").split("\n")
    except OSError:  # there is none yet
        return ""
    return next((printable(line.strip(), most) for line in reversed(lines) if line.strip()), "")


def clock(seconds: float) -> str:
    """A duration in seconds, or from two minutes on in minutes."""
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def _shortest(keys: Sequence[str]) -> list[str]:
    """The last words of every dotted key: two, or as many as distinguish it from the others."""
    words = [key.lstrip("+~").split(".") for key in keys]

    def tail(key: list[str], length: int) -> str:
        return ".".join(key[-length:])

    def length(key: list[str]) -> int:
        enough = (n for n in range(2, len(key)) if sum(tail(other, n) == tail(key, n) for other in words) == 1)
        return next(enough, len(key))

    return [tail(key, length(key)) for key in words]
