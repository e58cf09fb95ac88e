"""The one C++ source of the kernels, compiled for this machine at first use and kept beside torch's extensions."""

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
# Calls of OpenMP resolve to the library that torch has loaded: linked to another, two pools of threads would spin.
_FLAGS = ("-O3", "-march=native", "-fopenmp", "-fno-math-errno", "-fno-trapping-math")


@functools.cache
def failure() -> str | None:
    """Why there is no compiled kernel on this machine; ``None`` once it is compiled and loaded."""
    if shutil.which("ninja") is None:
        return "no ninja to compile it with"
    if shutil.which("c++") is None and shutil.which("g++") is None:
        return "no C++ compiler"
    try:
        _load()
    except (RuntimeError, OSError, subprocess.SubprocessError) as error:
        return f"it does not compile here: {str(error).strip().splitlines()[0]}"
    return None


def machine() -> tuple[str, ...]:
    """What a compiled kernel and its speed hold for: homes are shared between machines of unlike CPUs."""
    source = hashlib.sha256(SOURCE.read_bytes()).hexdigest()
    return platform.node(), platform.machine(), torch.backends.cpu.get_cpu_capability(), torch.__version__, source


def _load() -> None:
    from torch.utils.cpp_extension import get_default_build_root, load

    key = hashlib.sha256(" ".join((*machine(), *_FLAGS)).encode()).hexdigest()[:16]
    kept = Path(get_default_build_root()) / f"slimexp-{key}.so"
    if kept.exists():
        torch.ops.load_library(kept)
        return
    # aside and then renamed: torch locks a folder of its own by a file, which a killed process would leave for ever
    with tempfile.TemporaryDirectory() as folder:
        built = load(
            "slimexp_vnni", [str(SOURCE)], extra_cflags=list(_FLAGS), build_directory=folder, is_python_module=False
        )
        kept.parent.mkdir(parents=True, exist_ok=True)
        beside = kept.with_suffix(f".{os.getpid()}")
        shutil.copyfile(built, beside)
        os.replace(beside, kept)


def has_vnni() -> bool:
    """Whether the compiled kernel uses AVX512-VNNI; else its portable loops run."""
    return failure() is None and bool(torch.ops.slimexp.vnni())
