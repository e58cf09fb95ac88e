"""Runs side by side end with the program that started them."""

import signal
import subprocess
import sys
from pathlib import Path

import psutil

PROGRAM = """
import time
from benchmarks import workers

if __name__ == "__main__":
    with workers.processes(1) as pool:
        print(pool.submit(time.sleep, 0.01).result(), flush=True)
        pool.submit(time.sleep, 600).result()
"""


def test_a_program_that_is_terminated_leaves_none_behind(tmp_path: Path) -> None:
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    program = subprocess.Popen([sys.executable, str(path)], stdout=subprocess.PIPE, text=True)
    assert program.stdout is not None and program.stdout.readline() == "None\n"  # a worker is there
    children = psutil.Process(program.pid).children(recursive=True)
    assert children
    program.send_signal(signal.SIGTERM)
    program.communicate(timeout=30)
    _, outliving = psutil.wait_procs(children, timeout=30)
    assert not outliving
