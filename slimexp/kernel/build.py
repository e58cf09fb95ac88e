"""The one C++ source of the kernels, compiled for this machine at first use and kept."""

import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch

SOURCE = Path(__file__).parent / "vnni.cpp"
_FLAGS = ("-std=c++20", "-O3", "-march=native", "-fopenmp", "-fno-math-errno", "-fno-trapping-math", "-fPIC")


@functools.cache
def failure() -> str | None:
    """Why there is no compiled kernel on this machine; ``None`` once it is compiled and loaded."""
    try:
        torch.ops.load_library(_library())
    except subprocess.CalledProcessError as error:
        lines = error.stderr.strip().splitlines() or [str(error)]
        return f"it does not compile here: {next((line for line in lines if 'error' in line), lines[0])}"
    except (RuntimeError, OSError) as error:
        return str(error).strip().splitlines()[0]
    return None


def machine() -> tuple[str, ...]:
    """What a compiled kernel and its speed hold for: homes are shared between machines of unlike CPUs."""
    source = hashlib.sha256(SOURCE.read_bytes()).hexdigest()
    return platform.node(), platform.machine(), torch.backends.cpu.get_cpu_capability(), torch.__version__, source


def folder() -> Path:
    """Where compiled kernels and results of races are kept: ``$SLIMEXP_CACHE``, else the user's cache folder."""
    return Path(own) / "kernel" if (own := os.environ.get("SLIMEXP_CACHE")) else _users_folder()


def _users_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "slimexp" / "kernel"


def _library() -> Path:
    """One that is kept, wherever; else compiled now, for which ``_compile`` says what can go wrong."""
    name = f"vnni-{hashlib.sha256(' '.join((*machine(), *_FLAGS)).encode()).hexdigest()[:16]}.so"
    for place in (folder(), _users_folder()):
        if (place / name).exists():
            return place / name
    _compile(folder() / name)
    return folder() / name


def _compile(to: Path) -> None:
    """Aside and then renamed: other processes see a whole library or none.

    Raises:
        RuntimeError: There is no compiler.
        subprocess.CalledProcessError: It fails.
    """
    compiler = shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        raise RuntimeError("no C++ compiler")
    to.parent.mkdir(parents=True, exist_ok=True)
    home = Path(torch.__file__).parent
    with tempfile.TemporaryDirectory(dir=to.parent) as aside:
        compiled, linked = str(Path(aside) / "kernel.o"), str(Path(aside) / "kernel.so")
        # Linked without OpenMP its calls find the library that torch has loaded: of two, both pools of threads spin.
        for command in (
            [compiler, *_FLAGS, f"-I{home / 'include'}", "-c", str(SOURCE), "-o", compiled],
            [compiler, "-shared", compiled, f"-L{home / 'lib'}", "-lc10", "-ltorch_cpu", "-o", linked],
        ):
            subprocess.run(command, check=True, capture_output=True, text=True)
        os.replace(linked, to)


def has_vnni() -> bool:
    """Whether the compiled kernel uses AVX512-VNNI; else its portable loops run."""
    return failure() is None and bool(torch.ops.slimexp.vnni())
