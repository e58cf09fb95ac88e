"""Programs that tests fork from a process with the libraries are those that a shell would start."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Start = Callable[..., Any]

SHOW = """
import os, sys, threading, time
from pathlib import Path
print([name for name in sys.modules if name.partition(".")[0] == "slimexp"], "torch" in sys.modules)
print(__name__, sys.argv[1:], os.getcwd(), os.environ.get("GIVEN"), threading.active_count())
print("wrong", file=sys.stderr)
Path("there").touch()
time.sleep(60 if sys.argv[1:] == ["wait"] else 0)
sys.exit(3)
"""


def test_it_has_the_libraries_and_nothing_of_slimexp(start: Start, tmp_path: Path) -> None:
    file = tmp_path / "show.py"
    file.write_text(SHOW)
    status, out, err = start(file, "a", "b=1", cwd=tmp_path, env={**os.environ, "GIVEN": "x"}).end()
    assert (status, err) == (3, "wrong\n")
    assert out.splitlines() == ["[] True", f"__main__ ['a', 'b=1'] {tmp_path} x 1"]


def test_a_signal_ends_it(start: Start, tmp_path: Path) -> None:
    file = tmp_path / "show.py"
    file.write_text(SHOW)
    for number, status in ((signal.SIGTERM, -signal.SIGTERM), (signal.SIGINT, 1)):  # as Python ends by each
        process = start(file, "wait", cwd=tmp_path)
        while not (tmp_path / "there").exists():
            time.sleep(0.01)
        process.send_signal(number)
        assert process.end()[0] == status
        (tmp_path / "there").unlink()


def test_a_module_is_itself(start: Start) -> None:
    status, out, err = start("slimexp.train", "--help").end()
    assert status == 0 and err == "" and out.startswith("python -m slimexp.train [+exp")
