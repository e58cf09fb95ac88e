"""Lines of C are dropped, those of Python are not, in their order; with and without something that redirects."""

import contextlib
import io
import subprocess
import sys

import pytest

from slimexp.host.compiled_output import unprinted

PROGRAM = """
import ctypes
from slimexp.host.compiled_output import unprinted
from slimexp.host.progress import reporter, working

libc = ctypes.CDLL(None)
print("before")
libc.puts(b"C before")
with working("a phase"):
    with unprinted():
        libc.puts(b"C within")
        print("within")
        reporter._print("progress")
        try:
            with unprinted():
                libc.puts(b"C deeper")
                raise ValueError
        except ValueError:
            pass
        libc.puts(b"C within again")
    reporter._print("progress after")
libc.puts(b"C after")
print("after")
"""


@pytest.mark.fast
def test_lines_of_c_are_dropped_and_those_of_python_are_not() -> None:
    ran = subprocess.run([sys.executable, "-u", "-c", PROGRAM], capture_output=True, text=True, check=True)
    lines = ran.stdout.splitlines()
    assert [line for line in lines if not line.startswith("C")] == [
        "before", "within", "  progress", "  progress after", "after",
    ]  # fmt: skip
    assert [line for line in lines if line.startswith("C")] == ["C before", "C after"]
    assert ran.stderr == ""


@pytest.mark.fast
def test_what_is_redirected_stays_so() -> None:
    with contextlib.redirect_stdout(io.StringIO()) as text, unprinted():
        print("kept")
    assert text.getvalue() == "kept\n"
