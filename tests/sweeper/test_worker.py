"""Whatever happens to a trial is an outcome with its cause, and its log is a file that only the trial writes."""

import os
from pathlib import Path

import pytest

from slimexp.sweeper.worker import _TOOK_LONGER, Job, _cause, lost_outcome, work

pytestmark = pytest.mark.fast


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (OSError(28, "No space left on device"), "machine"),
        (OSError(122, "Disk quota exceeded"), "machine"),
        (OSError(5, "Input/output error"), "machine"),
        (OSError(12, "Cannot allocate memory"), "machine"),
        (OSError(24, "Too many open files"), "machine"),
        (MemoryError(), "machine"),
        (type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory"), "machine"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"), "machine"),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."), "machine"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), "machine"),
        (ValueError("x is wrong"), "trial"),
        (FileNotFoundError(2, "No such file"), "trial"),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), "trial"),
        (KeyError("cer"), "trial"),
    ],
)
def test_whose_fault_an_error_is(error: Exception, cause: str) -> None:
    assert _cause(error) == cause
    behind = RuntimeError("cannot save")
    behind.__cause__ = error
    assert _cause(behind) == cause


@pytest.mark.parametrize("kind", ["pipe", "link", "folder"])
def test_a_log_that_is_no_file_is_neither_waited_for_nor_written_through(tmp_path: Path, kind: str) -> None:
    log, other = tmp_path / "trial.log", tmp_path / "other"
    other.write_text(f"{_TOOK_LONGER}9")
    {"pipe": os.mkfifo, "link": lambda log: log.symlink_to(other), "folder": Path.mkdir}[kind](log)
    outcome = work(lambda overrides: pytest.fail("it was done"), Job(0, ((),), log))
    assert outcome.cause == "trial" and outcome.error and outcome.error.startswith("its log cannot be written (")
    assert str(log) in outcome.error and other.read_text() == f"{_TOOK_LONGER}9"
    if kind != "link":
        assert lost_outcome(Job(0, ((),), log), "it is gone", 1.0).error == "it is gone"


@pytest.mark.parametrize(
    ("last", "error"),
    [
        (f"{_TOOK_LONGER}9", f"{_TOOK_LONGER}9"),
        ("at work", "it is gone"),
        (f"{_TOOK_LONGER}9\nat work", "it is gone"),
        ("x" * 1000 + _TOOK_LONGER, "it is gone"),
    ],
)
def test_of_a_log_the_end_is_read(tmp_path: Path, last: str, error: str) -> None:
    log = tmp_path / "trial.log"
    for before in (0, 1 << 40):  # a terabyte, which takes no place
        with log.open("wb") as file:
            file.truncate(before)
            file.seek(before)
            file.write(f"\n{last}\n".encode())
        assert lost_outcome(Job(0, ((),), log), "it is gone", 1.0).error == error
