"""Long work says what it does and how far it is: in time, in one line, and no more often than is of use."""

import sys
import threading
from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from itertools import count

import pytest

from slimexp.host import progress
from slimexp.host.progress import Reporter, counted, counted_bytes, working

pytestmark = pytest.mark.fast


class Clock:
    """A clock that stands still until it is moved, and lets the reporter look every second on the way."""

    def __init__(self) -> None:
        self.now = 100.0
        self.reporter: Reporter | None = None

    def __call__(self) -> float:
        return self.now

    def wait(self, seconds: int) -> None:
        assert self.reporter is not None
        for _ in range(seconds):
            self.now += 1
            self.reporter.report()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    clock.reporter = Reporter(clock, watching=False)
    clock.now += 60  # since the program began
    monkeypatch.setattr(progress, "reporter", clock.reporter)
    return clock


@pytest.fixture
def lines(capsys: pytest.CaptureFixture[str]) -> Callable[[], list[str]]:
    return lambda: capsys.readouterr().out.splitlines()


def test_a_single_long_call_is_mentioned_after_three_seconds_and_then_every_ten(
    clock: Clock, lines: Callable[[], list[str]]
) -> None:
    with working("loading a\nb"):
        clock.wait(2)
        assert lines() == []
        clock.wait(25)
        assert lines() == [f"  loading a\\nb, {after} s" for after in (3, 13, 23)]
    assert lines() == ["  loading a\\nb: took 27 s"]


def test_a_loop_says_how_far_it_is_and_how_long_it_will_take(clock: Clock, lines: Callable[[], list[str]]) -> None:
    with working("prune: preparing"):
        for _ in counted(range(30), "block"):
            for _ in counted(iter("ab"), "row", total=2):
                clock.wait(4)
    first, second, third, *_, last, end = shown = lines()
    assert len(shown) == 25  # one at 3 s, and every ten seconds
    assert first == "  prune: preparing: block 1 of 30: row 1 of 2, 3 s"
    assert second == "  prune: preparing: block 2 of 30: row 2 of 2, 13 s"  # one block alone may be unlike others
    assert third == "  prune: preparing: block 3 of 30: row 2 of 2, 23 s, about 3 min 37 s left"
    assert last == "  prune: preparing: block 30 of 30: row 1 of 2, 3 min 53 s, about 7 s left"
    assert end == "  prune: preparing: took 4 min"


def test_what_was_done_before_took_none_of_the_time(clock: Clock, lines: Callable[[], list[str]]) -> None:
    """A loop of 100 that goes on from 80 has 20 to do: after 12 s and two of them, 108 s are left."""
    assert clock.reporter is not None
    work = clock.reporter.begin("step", 100)
    work.before = work.done = 80
    for _ in range(2):
        clock.wait(6)
        work.done += 1
    assert clock.reporter.times(work) == ", 12 s, about 1 min 48 s left"
    work.done = work.before = 100
    assert clock.reporter.times(work) == ", 12 s"
    clock.reporter.end(work)


def test_a_slow_first_item_is_no_measure_of_the_others(clock: Clock, lines: Callable[[], list[str]]) -> None:
    for i in counted(range(70), "kernel of layer"):
        clock.wait(2 if i else 42)
    shown = lines()
    assert shown[4:7] == [
        "  kernel of layer 2 of 70, 43 s",
        "  kernel of layer 7 of 70, 53 s, about 2 min 7 s left",
        "  kernel of layer 12 of 70, 63 s, about 1 min 57 s left",
    ]


def test_an_item_that_takes_long_does_not_lengthen_the_others(clock: Clock, lines: Callable[[], list[str]]) -> None:
    """The first loop within an item is done soon, and the second item takes 40 s: no hour is foretold."""
    for i in counted(range(30), "score"):
        for _ in counted(range(4), "answer"):
            clock.wait(1 if not i else 0)
        clock.wait(40 if i == 1 else 2)
    shown = lines()
    assert [line for line in shown if "left" in line][:2] == [
        "  score 6 of 30, 53 s, about 74 s left",  # of 2 s each, and 6 of the first
        "  score 11 of 30, 63 s, about 48 s left",
    ]


def test_a_loop_of_two_is_as_long_as_its_loops_say(clock: Clock, lines: Callable[[], list[str]]) -> None:
    for _ in counted(range(2), "stage"):
        for _ in counted(range(10), "batch"):
            clock.wait(3)
    assert lines()[1] == "  stage 1 of 2: batch 5 of 10, 13 s, about 47 s left"


def test_bytes_are_shown_as_a_share(clock: Clock, lines: Callable[[], list[str]]) -> None:
    with counted_bytes("digest of x", 40 * 10**9) as read:
        for _ in range(4):
            clock.wait(5)
            read(10**10)
    assert lines()[1:2] == ["  digest of x: 20.0 of 40.0 GB, 13 s, about 10 s left"]


def test_what_is_short_is_not_mentioned(clock: Clock, lines: Callable[[], list[str]]) -> None:
    with working("saving"):
        for _ in counted(range(2), "layer"):
            clock.wait(1)
    assert lines() == []


def test_many_short_phases_are_no_silence(clock: Clock, lines: Callable[[], list[str]]) -> None:
    for phase in range(12):
        with working(f"phase {phase}"):
            clock.wait(2)
    assert len(lines()) >= 2


def test_what_prints_for_itself_is_not_repeated(clock: Clock, lines: Callable[[], list[str]]) -> None:
    assert clock.reporter is not None
    work = clock.reporter.begin("training: step", 100, first_s=progress.EVERY_S)
    for work.done in range(9):
        clock.wait(5)
        clock.reporter.spoke()
    assert lines() == []
    clock.wait(11)  # a long step
    assert len(lines()) == 1
    clock.reporter.end(work)
    clock.wait(30)
    assert lines() == ["  training: step: took 56 s"]


def test_a_loop_of_unknown_length_counts(clock: Clock, lines: Callable[[], list[str]]) -> None:
    for item in counted(count(), "record"):
        clock.wait(1)
        if item == 4:
            break
    assert lines() == ["  record 3, 3 s", "  record: took 5 s"]


def test_a_loop_that_an_error_left_is_not_at_work(clock: Clock, lines: Callable[[], list[str]]) -> None:
    with pytest.raises(ValueError, match="broken") as kept, working("measuring"):
        for _ in counted("ab", "batch"):
            raise ValueError("broken")
    assert kept.tb is not None  # and so is the generator, suspended
    clock.wait(30)
    assert lines() == []


def test_a_terminal_has_one_line_that_is_overwritten(
    clock: Clock, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    with working("loading"):
        clock.wait(5)
    shown = capsys.readouterr().out
    assert shown == "".join(f"\r\x1b[K  loading, {after} s\r" for after in (3, 4, 5)) + "\r\x1b[K  loading: took 5 s\n"


def test_what_hides_a_library_s_output_hides_no_progress(clock: Clock, lines: Callable[[], list[str]]) -> None:
    with working("measuring"), redirect_stdout(StringIO()) as hidden:
        for _ in counted(range(2), "request"):
            clock.wait(4)
    assert lines()[:2] == ["  measuring: request 1 of 2, 3 s", "  measuring: took 8 s"] and hidden.getvalue() == ""


def test_a_reader_that_left_is_the_programs_affair(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    def leave(*_: object, **__: object) -> None:
        raise BrokenPipeError

    monkeypatch.setattr("builtins.print", leave)
    with working("loading"):
        clock.wait(20)


def test_other_threads_and_forked_processes_are_silent(clock: Clock, lines: Callable[[], list[str]]) -> None:
    def beside() -> None:
        with working("beside"):
            clock.wait(20)

    thread = threading.Thread(target=beside)
    thread.start()
    thread.join()
    assert lines() == [] and clock.reporter is not None
    clock.reporter.forget()
    assert clock.reporter.watching is False


def test_the_thread_lives_while_something_is_at_work(
    monkeypatch: pytest.MonkeyPatch, lines: Callable[[], list[str]]
) -> None:
    printed = threading.Event()
    reporter = Reporter()
    monkeypatch.setattr(reporter, "_print", lambda text, **_: printed.set())
    work = reporter.begin("loading", first_s=0.0)
    assert printed.wait(20)
    watch = reporter._thread
    reporter.end(work)
    assert watch is not None
    watch.join(20)
    assert not watch.is_alive() and reporter._thread is None


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0.4, "0 s"),
        (99, "99 s"),
        (100, "1 min 40 s"),
        (348, "5 min 48 s"),
        (599.7, "10 min"),
        (660, "11 min"),
        (7200, "2.0 h"),
    ],
)
def test_durations(seconds: float, shown: str) -> None:
    assert progress.duration(seconds) == shown
