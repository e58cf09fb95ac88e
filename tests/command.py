"""Programs in processes of their own that start without the seconds that importing the libraries takes."""

import multiprocessing
import os
import runpy
from collections.abc import Sequence
from pathlib import Path

PROGRAM = Path(__file__).with_name("program.py")
PRELOADED = ["torch", "pytorch_lightning", "transformers.modeling_utils", "accelerate", "optuna", "datasets"]


class Command:
    """A program in a process of its own, forked from one that has imported other packages' modules and none of slimexp.

    It is ``python -m`` of a module, or ``python`` with a file, but for the seconds that these imports take.

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
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        self._files = [f"{output}.out", f"{output}.err"]
        given = {"program": program, "arguments": arguments, "cwd": cwd, "env": env, "files": self._files}
        self._process = context.Process(target=runpy.run_path, args=(str(PROGRAM), {"given": given}, PROGRAM.stem))
        self._process.start()

    @property
    def returncode(self) -> int | None:
        """Exit status, or minus the number of the signal that ended it; ``None`` while it runs."""
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    def kill(self) -> None:
        self._process.kill()
        self._process.join()

    def end(self, seconds: float = 600.0) -> tuple[int, str, str]:
        """Wait for its end; its status, and what it wrote to stdout and stderr."""
        self._process.join(seconds)
        assert self.returncode is not None, f"still at work: {self._said()}"
        return self.returncode, *self._said()

    def _said(self) -> tuple[str, str]:
        out, err = (Path(file).read_text() if Path(file).exists() else "" for file in self._files)
        return out, err
