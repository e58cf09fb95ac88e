"""What a forked process does before it is a program, and then the program; see ``tests.command``."""

import os
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path


def become(
    program: str | Path, arguments: Sequence[str], cwd: str | Path, env: dict[str, str], files: Sequence[str]
) -> None:
    """Run a module, by its name, or a file, by its path, as ``__main__``, with its output to two files."""
    for number, file in enumerate(files, start=1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    sys.argv[1:] = arguments
    if isinstance(program, Path):
        sys.argv[0] = str(program)
        runpy.run_path(str(program), run_name="__main__")
    else:
        runpy.run_module(program, run_name="__main__", alter_sys=True)


if __name__ == "program":
    become(**globals()["given"])  # set by who runs this file
