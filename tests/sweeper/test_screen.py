"""A terminal shows what runs, what failed, the front and the time left; a file gets plain lines."""

import io
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from slimexp.sweeper import screen as module
from slimexp.sweeper.screen import Lines, Live, clock, screen
from slimexp.sweeper.sweep import Sweep

SWEPT = ["pipeline.prune.sparsity", "pipeline.quantize.bits"]
OBJECTIVES = {"cer": "min", "exact_match": "max"}
LAST = "━━━━ 2 of 12 done, 1 of them failed, 1 on the front, about 4 min left"


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What the clock says."""
    time = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: time[0])
    return time


def recorded(height: int = 30, *, terminal: bool = False) -> Console:
    return Console(
        file=io.StringIO(), width=100, height=height, force_terminal=terminal, _environ={"TERM": "xterm"}, record=True
    )


def params(sparsity: str, bits: str) -> dict[str, Any]:
    return dict(zip(SWEPT, (sparsity, bits), strict=True))


def drawn(live: Live) -> list[list[str]]:
    """What the live part shows: words of every line that is not empty."""
    console = recorded()
    console.print(live.drawn())
    return [words for line in console.export_text().splitlines() if (words := line.split())]


@pytest.mark.fast
def test_running_done_and_failed_trials_the_front_and_the_time_left(now: list[float]) -> None:
    console = recorded()
    live = Live(SWEPT, OBJECTIVES, 12, 0, 0, console=console)
    for number, (sparsity, bits) in enumerate([("0.1", "8"), ("0.1", "4"), ("0.5", "[x]"), ("0.5", "4")]):
        live.started(number, params(sparsity, bits))
    live.reached(0, params("0.1", "8"), [0.3, 0.4])
    live.finished(0, "[1/12] cer 0.3", failures=0, left=330.0)
    live.finished(1, "[2/12] FAILED [all in the log]", failures=1, left=300.0)
    now[0] += 50
    assert drawn(live) == [
        ["trial", "prune.sparsity", "quantize.bits", "cer", "↓", "exact_match", "↑"],
        ["0", "front", "0.1", "8", "0.3", "0.4"],
        ["2", "running", "0.5", "[x]", "50", "s"],
        ["3", "running", "0.5", "4", "50", "s"],
        LAST.split(),
    ]
    kept = console.export_text(styles=True).splitlines()
    assert kept[0] == "[1/12] cer 0.3" and "\x1b[31m[2/12] FAILED [all in the log]" in kept[1]


@pytest.mark.fast
def test_only_the_front_is_kept(now: list[float]) -> None:
    live = Live(SWEPT, OBJECTIVES, 12, 0, 0, console=recorded())
    for number, values in enumerate([(0.3, 0.4), (0.2, 0.3), (0.2, 0.5), (0.1, 0.1)]):
        live.reached(number, params(str(number), "8"), values)
    assert [row[:2] for row in drawn(live)[1:-1]] == [["3", "front"], ["2", "front"]]


@pytest.mark.fast
def test_a_low_terminal_shows_the_ends_of_a_long_front(now: list[float]) -> None:
    live = Live(SWEPT, OBJECTIVES, 50, 0, 0, console=recorded(height=14))
    for number in range(40):
        live.reached(number, params(str(number), "8"), (number / 40, number / 40))
    rows = [row[0] for row in drawn(live)[1:-1]]
    assert len(rows) == 5 and rows[0] == "0" and rows[-1] == "39"


@pytest.mark.fast
def test_keys_are_as_short_as_they_can_be() -> None:
    keys = ["+pipeline.prune.optimizer.lr", "pipeline.distill.optimizer.lr", "pipeline.quantize.bits", "seed"]
    assert module._shortest(keys) == ["prune.optimizer.lr", "distill.optimizer.lr", "quantize.bits", "seed"]
    assert clock(119) == "119 s" and clock(600) == "10 min"


@pytest.mark.fast
def test_a_terminal_gets_the_table_and_all_else_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    def made() -> Lines:
        return screen(SWEPT, OBJECTIVES, 3, 0, 0)

    assert type(made()) is Lines
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm-256color")
    assert type(made()) is Live
    monkeypatch.setenv("TERM", "dumb")
    assert type(made()) is Lines


def test_a_sweep_tells_the_screen(make: Callable[..., Sweep], monkeypatch: pytest.MonkeyPatch) -> None:
    console = recorded(terminal=True)
    lives: list[Live] = []

    def shown(*arguments: Any) -> Live:
        lives.append(Live(*arguments, console=console))
        return lives[-1]

    monkeypatch.setattr("slimexp.sweeper.sweep.screen", shown)
    sweep = make("x=1,2,wrong", "y=1,9", limits={"disk_mb": 5})
    sweep.run()
    (live,) = lives
    assert not live._running and (live.done, live.failures, live._ends) == (6, 2, None)
    assert [(values, number) for number, _, values in live._front] == [
        (trial.values, trial.number) for trial in sweep.front()
    ]
    written = console.export_text()
    assert len(re.findall(r"\[\d/6\] ", written)) == 6 and written.count("FAILED") == 2
    make("x=1,2,wrong", "y=1,9", limits={"disk_mb": 5}).run()
    assert lives[1]._front == live._front and lives[1].done == 6


@pytest.mark.fast
def test_a_pipe_hears_every_ten_seconds_of_what_is_under_way(
    now: list[float], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Which trials, since when and how far: nothing while lines come anyway, and nothing once they ended."""
    log = tmp_path / "trial.log"
    lines = Lines(every_s=10)
    for number in range(6):
        lines.started(number, params("0.5", str(number)), log)
    for _ in range(25):
        now[0] += 1
        lines.alive()
        log.write_text(f"noise\n  step {now[0]:.0f} of 300, loss 0.4\n\n")
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith(
        "  under way: trial 0, 10 s, prune.sparsity=0.5 quantize.bits=0 (step 109 of 300, loss 0.4); "
    )
    assert "trial 3, 20 s, " in second and "trial 4" not in second and second.endswith("; and 2 more")
    lines.finished(0, "[1/6] cer 0.3", failures=0, left=0.0)
    now[0] += 9
    lines.alive()
    for number in range(1, 6):
        lines.ended(number)
    now[0] += 99
    lines.alive()
    assert capsys.readouterr().out == "[1/6] cer 0.3\n"


def test_a_thread_watches_until_the_sweep_ends(capsys: pytest.CaptureFixture[str]) -> None:
    with (lines := Lines(every_s=0.01)):
        lines.started(0, {"a": 1})
        until = time.monotonic() + 20
        while "trial 0" not in capsys.readouterr().out:
            assert time.monotonic() < until
            time.sleep(0.01)
    assert lines._thread is not None and not lines._thread.is_alive()
