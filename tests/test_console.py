"""Full disks, shut folders and readers that leave are told in one line, or in none."""

import errno
import subprocess
import sys
from pathlib import Path

import pytest

from slimexp.console import UNREAD, counted, disk_fault

pytestmark = pytest.mark.fast
ROOT = Path(__file__).parents[1]


def unread(code: str, *, stderr_too: bool = False) -> tuple[int, str]:
    """Exit status and stderr of a program whose reader has left before it prints."""
    lines = ["import sys", "from slimexp import console", "sys.stdin.read()", "with console.output():", f"    {code}"]
    stderr = subprocess.STDOUT if stderr_too else subprocess.PIPE
    process = subprocess.Popen(
        [sys.executable, "-c", "\n".join(lines)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr
    )
    assert process.stdin is not None and process.stdout is not None
    process.stdout.close()
    process.stdin.close()
    said = process.stderr.read().decode() if process.stderr else ""
    return process.wait(30), said


@pytest.mark.parametrize("code", ["print('a line')", "sys.stdout.write('half')", "print('x' * 100_000)"])
def test_a_reader_that_left_ends_the_program_in_silence(code: str) -> None:
    assert unread(code) == (UNREAD, "")
    assert unread(code, stderr_too=True)[0] == UNREAD


def test_any_other_broken_pipe_is_a_bug(tmp_path: Path) -> None:
    code = "import sys\nfrom slimexp import console\nwith console.output():\n    raise BrokenPipeError('of a worker')"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 1 and run.stderr.strip().endswith("BrokenPipeError: of a worker")


def test_lines_come_out_as_they_are_printed() -> None:
    code = "from slimexp import console\nwith console.output():\n    print('one')\n    import os; os._exit(3)"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (run.returncode, run.stdout) == (3, "one\n")


def test_a_loop_says_how_far_it_is(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(counted(range(40), "layer")) == list(range(40))
    assert capsys.readouterr().out.splitlines() == [f"  layer {done} of 40" for done in range(4, 41, 4)]
    assert list(counted("ab", "cut")) == ["a", "b"]
    assert capsys.readouterr().out == "  cut 1 of 2\n  cut 2 of 2\n"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert list(counted("ab", "cut")) == ["a", "b"]
    assert capsys.readouterr().out == "\r  cut 1 of 2\r  cut 2 of 2\n"
    assert list(counted([], "cut")) == []
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(errno.ENOSPC, "full"), "no space left in /runs: free some"),
        (OSError(errno.EDQUOT, "full", "/runs/a/b"), "no space left in /runs: free some"),
        (OSError(errno.ENOSPC, "full", "/tmp/x"), "no space left in /tmp/x: free some"),
        (OSError(errno.ENOSPC, "full", "/tmp/x", None, "/runs/a"), "no space left in /runs: free some"),
        (Exception("Error while serializing: No space left on device (os error 28)"), "no space left in /runs"),
        (PermissionError(errno.EACCES, "no", "/runs/a"), "cannot write to /runs/a (Permission denied): choose a"),
        (PermissionError(errno.EACCES, "no", "/"), "cannot write to / (Permission denied)"),
        (OSError(errno.EROFS, "no", "/runs"), "cannot write to /runs (Read-only file system)"),
        (FileExistsError(errno.EEXIST, "no", "/runs"), "cannot write to /runs (a file has that name)"),
        (PermissionError(errno.EACCES, "no", "/text.csv"), None),
        (FileNotFoundError(errno.ENOENT, "no", "/runs/a"), None),
        (PermissionError("no"), None),
        (ValueError("no"), None),
    ],
)
def test_what_the_disk_refuses(error: Exception, expected: str | None) -> None:
    said = disk_fault(error, "/runs", setting="runs=FOLDER")
    assert said is None if expected is None else said is not None and said.startswith(expected)
    assert said is None or said.endswith("by runs=FOLDER")
