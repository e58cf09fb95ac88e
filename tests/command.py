"""Programs in processes of their own."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path


class Command:
    """A program in a process of its own: ``python -m`` of a module, or ``python`` with a file.

    Args:
        program: Name of a module, or path of a file.
        arguments: Of its command line.
        cwd: Folder that it runs in.
        env: Its whole environment.
        output: Stem of two files: what it writes to stdout and stderr.
    """

    def __init__(
        self, program: str | Path, arguments: Sequence[str], cwd: Path, env: dict[str, str], output: Path
    ) -> None:
        self._files = [Path(f"{output}.out"), Path(f"{output}.err")]
        named = [str(program)] if isinstance(program, Path) else ["-m", program]
        path = os.pathsep.join(entry for entry in sys.path if entry)
        with self._files[0].open("w") as out, self._files[1].open("w") as err:
            self._process = subprocess.Popen(
                [sys.executable, *named, *arguments],
                cwd=cwd,
                env={"PYTHONPATH": path, **env},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
            )

    @property
    def returncode(self) -> int | None:
        """Exit status, or minus the number of the signal that ended it; ``None`` while it runs."""
        return self._process.poll()

    def send_signal(self, number: int) -> None:
        self._process.send_signal(number)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def end(self, seconds: float = 600.0) -> tuple[int, str, str]:
        """Wait for its end; its status, and what it wrote to stdout and stderr."""
        status = self._process.wait(seconds)
        out, err = (file.read_text() for file in self._files)
        return status, out, err
