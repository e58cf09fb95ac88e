"""Full disks, shut folders and readers that leave are told in one line, or in none."""

import errno
import importlib
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from slimexp.host.console import UNREAD, disk_fault, interruptible, phase, printable

pytestmark = pytest.mark.fast
ROOT = Path(__file__).parents[2]


def unread(code: str, *, stderr_too: bool = False) -> tuple[int, str]:
    """Exit status and stderr of a program whose reader has left before it prints."""
    lines = [
        "import sys",
        "from slimexp.host import console",
        "sys.stdin.read()",
        "with console.output():",
        f"    {code}",
    ]
    stderr = subprocess.STDOUT if stderr_too else subprocess.PIPE
    process = subprocess.Popen(
        [sys.executable, "-c", "\n".join(lines)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr
    )
    assert process.stdin is not None and process.stdout is not None
    process.stdout.close()
    process.stdin.close()
    message = process.stderr.read().decode() if process.stderr else ""
    return process.wait(30), message


@pytest.mark.parametrize("code", ["print('a line')", "sys.stdout.write('half')", "print('x' * 100_000)"])
def test_a_reader_that_left_ends_the_program_in_silence(code: str) -> None:
    assert unread(code) == (UNREAD, "")
    assert unread(code, stderr_too=True)[0] == UNREAD


@pytest.mark.parametrize(
    ("text", "most", "shown"),
    [
        ("a" * 1001, None, "a" * 1001), ("a" * 1000, 1000, "a" * 1000), ("a" * 1001, 1000, "a" * 1000 + "…"),
        ("a\x1b\n", None, "a\\x1b\\n"), ("\x1bb", 1, "\\x1b…"),
    ],
)  # fmt: skip
def test_a_text_is_one_line_and_cut_where_that_is_asked(text: str, most: int | None, shown: str) -> None:
    assert printable(text, most) == shown


def test_any_other_broken_pipe_is_a_bug(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom slimexp.host import console\nwith console.output():\n    raise BrokenPipeError('of a worker')"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 1 and run.stderr.strip().endswith("BrokenPipeError: of a worker")


def test_lines_come_out_as_they_are_printed() -> None:
    code = "from slimexp.host import console\nwith console.output():\n    print('one')\n    import os; os._exit(3)"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (run.returncode, run.stdout) == (3, "one\n")


def test_a_crash_of_a_library_says_where_python_was() -> None:
    body = "def runs_the_engine():\n    import os, signal; os.kill(os.getpid(), signal.SIGFPE)\n"
    code = f"from slimexp.host import console\n{body}with console.output():\n    runs_the_engine()"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == -signal.SIGFPE
    assert "Floating point exception" in run.stderr and "runs_the_engine" in run.stderr


def test_a_phase_is_one_line_that_no_terminal_obeys(capsys: pytest.CaptureFixture[str]) -> None:
    phase("loading a\nb")
    assert capsys.readouterr().out == "  loading a\\nb\n"


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
        (OSError(errno.ENAMETOOLONG, "no", "/runs/" + "x" * 300), "cannot write to /runs/xxx"),
        (OSError(errno.ELOOP, "no", "/runs/a"), "cannot write to /runs/a (Too many levels of symbolic links)"),
        (OSError(errno.EFBIG, "no"), "a file in /runs would be larger than allowed: raise ulimit -f"),
        (Exception("I/O error: File too large (os error 27)"), "a file in /runs would be larger than allowed"),
        (OSError(errno.EIO, "no", "/text.csv"), "the disk under /text.csv fails (Input/output error)"),
        (OSError(errno.EIO, "no"), "the disk under /runs fails (Input/output error)"),
        (OSError(errno.ESTALE, "no"), "the disk under /runs fails (Stale file handle)"),
        (RuntimeError("[enforce fail at inline_container.cc:603] . unexpected pos 1"), "a file could not be written"),
        (RuntimeError("PytorchStreamWriter failed writing file data/3: file write failed"), "a file could not be"),
        (RuntimeError("write: No space left on device"), "no space left in /runs"),
        (
            OSError("Caught OSError in DataLoader worker process 0.\nOSError: [Errno 122] Disk"),
            "no space left in /runs",
        ),
        (PermissionError(errno.EACCES, "no", "/text.csv"), None),
        (OSError(errno.ENOENT, "No space left on device"), None),
        (TimeoutError(errno.ETIMEDOUT, "no"), None),
        (FileNotFoundError(errno.ENOENT, "no", "/runs/a"), None),
        (PermissionError("no"), None),
        (ValueError("no"), None),
    ],
)
def test_what_the_disk_refuses(error: Exception, expected: str | None) -> None:
    message = disk_fault(error, "/runs", setting="runs=FOLDER")
    assert message is None if expected is None else message is not None and message.startswith(expected)
    assert message is None or (message.endswith("by runs=FOLDER") and len(message) < 400)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(errno.EMFILE, "no", "/a"), "too many open files: raise the limit (ulimit -n) or use fewer workers"),
        (OSError(errno.ENFILE, "no"), "too many open files in system: raise the limit"),
        (RuntimeError("unable to open file: Too many open files"), "too many open files: raise the limit"),
        (MemoryError(), "no memory left (MemoryError): free some, lower trainer.rows_at_once"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "no memory left ([Errno 12] Cannot allocate memory): free"),
        (Exception("mmap: Cannot allocate memory (os error 12)"), "no memory left (mmap: Cannot allocate memory"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), "no memory left ([enforce fail]"),
        (RuntimeError("CUDA out of memory. " + "Tried " * 200), "no memory left (CUDA out of memory. Tried"),
    ],
)
def test_what_the_machine_lacks(error: Exception, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("slimexp.host.console._phases", [])
    message = disk_fault(error, "/runs", setting="runs=FOLDER")
    assert message is not None and message.startswith(expected) and len(message) < 400


def test_a_file_that_cannot_be_mapped_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """No smaller batch would help: what it takes is said beside what there is."""
    monkeypatch.setattr("slimexp.host.memory.available", lambda: 17 * 10**9)
    why = "unable to mmap 137953388752 bytes from file </m/model.safetensors>: Cannot allocate memory (12)"
    message = disk_fault(RuntimeError(why), "/runs", setting="runs=FOLDER")
    assert message is not None and message.startswith(
        "/m/model.safetensors is one file of 138 GB, which is mapped as a whole, and 17 GB of memory are available: "
    )
    assert "rows_at_once" not in message and "max_shard_size" in message


def test_the_phase_that_ran_out_of_memory_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("slimexp.host.console._phases", [])
    phase("measuring task")
    message = disk_fault(RuntimeError("std::bad_alloc"), "/runs", setting="runs=FOLDER")
    assert message is not None and message.startswith("no memory left while measuring task (std::bad_alloc): free some")


def test_a_file_that_grows_beyond_the_limit_is_told(tmp_path: Path) -> None:
    code = (
        "import resource, sys; from slimexp.host import console\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try:\n    open(sys.argv[1], 'wb', 0).write(b'x' * 1000) and open(sys.argv[1], 'ab', 0).write(b'x')\n"
        "except OSError as error:\n    print(console.disk_fault(error, '/runs', setting='X'))"
    )
    run = subprocess.run([sys.executable, "-c", code, str(tmp_path / "f")], cwd=ROOT, capture_output=True, text=True)
    assert run.stdout.startswith("a file in /runs would be larger than allowed") and not run.stderr


STOPS = {
    "interrupt": ("raise KeyboardInterrupt", 130, "interrupted: kept"),
    "Ctrl-C": ("os.kill(os.getpid(), signal.SIGINT)", 130, "interrupted: kept"),
    "SIGTERM": ("os.kill(os.getpid(), signal.SIGTERM)", 143, "terminated: kept"),
    "both": (
        "try: os.kill(os.getpid(), signal.SIGTERM)\n"
        "    finally:\n"
        "        for number in (signal.SIGTERM, signal.SIGINT) * 3: os.kill(os.getpid(), number)",
        143,
        "terminated: kept",
    ),
    "an error after it": (
        "try: os.kill(os.getpid(), signal.SIGTERM)\n    finally: raise RuntimeError('a worker is killed')",
        143,
        "terminated: kept",
    ),
    "later": (
        "console._AGAIN_S = 0\n"
        "    try: os.kill(os.getpid(), signal.SIGINT)\n"
        "    finally: os.kill(os.getpid(), signal.SIGTERM); print('not reached')",
        143,
        "",
    ),
    "at the very end": ("atexit.register(os.kill, os.getpid(), signal.SIGINT)\n    raise KeyboardInterrupt", 130, None),
    "ignored": ("os.kill(os.getpid(), signal.SIGTERM)", 0, ""),
    "of another": ("os.kill(os.getpid(), signal.SIGTERM)", 7, ""),
    "in a child": (
        "if not (child := os.fork()): time.sleep(60)\n"
        "    time.sleep(0.1); os.kill(child, signal.SIGTERM)\n"
        "    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) + 20)",
        20 - signal.SIGTERM,
        "",
    ),
    "in a thread": (
        "with concurrent.futures.ThreadPoolExecutor() as pool: pool.submit(inner).result()\n"
        "    os.kill(os.getpid(), signal.SIGTERM)",
        143,
        "terminated: kept",
    ),
    "nested": ("with console.interruptible('inner'): os.kill(os.getpid(), signal.SIGTERM)", 143, "terminated: inner"),
}  # fmt: skip


@pytest.mark.parametrize("case", STOPS)
def test_a_signal_ends_a_program_by_one_line(case: str) -> None:
    code, status, expected = STOPS[case]
    before = {"ignored": "signal.SIG_IGN", "of another": "lambda number, frame: os._exit(7)"}.get(
        case, "signal.SIG_DFL"
    )
    program = (
        "import atexit, concurrent.futures, os, signal, sys, time; from slimexp.host import console\n"
        f"signal.signal(signal.SIGTERM, {before})\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "def inner():\n    with console.interruptible('inner'): pass\n"
        f"with console.output(), console.interruptible('kept'):\n    {code}\n"
    )
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert run.returncode == status, run.stderr
    if expected is not None:
        assert (run.stdout, run.stderr) == ("", f"{expected}\n" if expected else "")
    else:
        assert "Traceback" not in run.stderr


def test_handlers_are_put_back() -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with interruptible():
        assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) != before
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


@pytest.mark.parametrize("empty", ["", " "])
@pytest.mark.parametrize(
    ("command", "before"),
    [
        ("clean", ["--unfinished", "--dominated", "--yes"]), ("report", []), ("select", []),
        ("report", ["runs", "--out"]), ("report", ["runs", "--reference"]),
    ],
)  # fmt: skip
def test_an_empty_path_is_not_the_folder_that_the_program_runs_in(
    command: str,
    before: list[str],
    empty: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="2"):
        importlib.import_module(f"slimexp.{command}").main([*before, empty])
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: argument ") and f"must be a path, got {empty!r}: write . for this folder" in line
