"""The one C++ source of the kernels, compiled for this machine at first use and cached by torch."""

import functools
import shutil
import subprocess
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
    from torch.utils.cpp_extension import load

    try:
        load("slimexp_vnni", [str(SOURCE)], extra_cflags=list(_FLAGS), is_python_module=False, verbose=False)
    except (RuntimeError, OSError, subprocess.SubprocessError) as error:
        return f"it does not compile here: {str(error).strip().splitlines()[0]}"
    return None


def has_vnni() -> bool:
    """Whether the compiled kernel uses AVX512-VNNI; else its portable loops run."""
    return failure() is None and bool(torch.ops.slimexp.vnni())
