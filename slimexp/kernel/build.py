"""The C++ source of the kernels, compiled for this machine at first use and cached."""

import functools
import hashlib
import os
import platform
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from slimexp.host.progress import working
from slimexp.kernel import store

SOURCE = Path(__file__).parent / "vnni.cpp"
_FLAGS = ("-std=c++20", "-O3", "-march=native", "-fopenmp", "-fno-math-errno", "-fno-trapping-math", "-fPIC")
_LONGEST_S = 300  # to compile, which takes ten
_LARGEST = 100_000_000  # bytes of a library, which has a hundredth of it
_LONGEST_MESSAGE = 300  # letters of a compiler's complaint


@functools.cache
def failure() -> str | None:
    """Why this machine has no compiled kernel; ``None`` once it is compiled and loaded."""
    try:
        _load()
    except subprocess.CalledProcessError as error:
        lines = [line for line in error.stderr.splitlines() if line.strip()] or [str(error)]
        why = f"it does not compile here: {next((line for line in lines if 'error' in line), lines[0])}"
    except (RuntimeError, OSError, ValueError) as error:
        why = _first_line(error)
    else:
        return None
    why = "".join(letter if letter.isprintable() else "?" for letter in why[:_LONGEST_MESSAGE])
    store.print_once(f"no compiled kernel, so layers run on those of torch: {why}")
    return why


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def machine() -> tuple[str, ...]:
    """What a compiled kernel and its speed depend on: home folders are shared between machines of unlike CPUs."""
    source = hashlib.sha256(SOURCE.read_bytes()).hexdigest()
    return platform.node(), platform.machine(), torch.backends.cpu.get_cpu_capability(), torch.__version__, source


def _load() -> None:
    """Load the kernel from a cache folder, else compile it and cache it.

    Raises:
        RuntimeError: There is no compiler or no cache folder, or the compiled library lacks the kernel.
        OSError: The library cannot be loaded.
        ValueError: Other users can write to the cache folder.
        subprocess.CalledProcessError: The compiler fails.
    """
    name = f"vnni-{hashlib.sha256(' '.join((*machine(), *_FLAGS)).encode()).hexdigest()[:16]}"
    damaged: list[Path] = []
    folders = (folder for folder in store.folders() if _own(folder))
    for cached in (path for folder in folders for path in sorted(folder.glob(f"{name}-*.so"))):
        try:
            if _digest(store.read(cached, most=_LARGEST, trusted=True)) != cached.stem.rpartition("-")[2]:
                raise ValueError("it is damaged")
            _register(cached)
            return
        except (OSError, ValueError, RuntimeError) as error:
            store.print_once(f"the compiled kernel {cached} is not used, and made anew: {_first_line(error)}")
            damaged.append(cached)
    compiler = shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        raise RuntimeError("no C++ compiler")
    with _aside() as aside:
        library = _compile(compiler, aside)
        _register(library)  # before it is cached: what a compiler calls a success need not be one
        for number, cached in enumerate(damaged):
            with suppress(OSError):
                os.rename(cached, aside / f"damaged{number}")
        # whole or not at all, and its digest is in its name
        os.replace(library, aside.parent / f"{name}-{_digest(library.read_bytes())}.so")


def _own(place: Path) -> bool:
    """Whether a folder exists and no other user can write to it."""
    try:
        store.check_own(place, place.stat())
    except (OSError, ValueError):
        return False
    return True


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _register(library: Path) -> None:
    if not hasattr(torch.ops.slimexp, "vnni"):  # another file with the same names would end the process
        torch.ops.load_library(str(library))
    if not hasattr(torch.ops.slimexp, "vnni"):
        raise RuntimeError(f"{library.name} is a library without the kernel")


@contextmanager
def _aside() -> Iterator[Path]:
    """A folder to compile in, inside the first cache folder that is writable.

    Raises:
        RuntimeError: No cache folder is; the message says why the first is not.
    """
    refused: list[str] = []
    for place in store.folders():
        try:
            place.mkdir(mode=0o700, parents=True, exist_ok=True)
            store.check_own(place, place.stat())
            temporary = tempfile.TemporaryDirectory(dir=place, ignore_cleanup_errors=True)
        except (OSError, ValueError) as error:
            refused.append(f"{error.strerror}: {place}" if isinstance(error, OSError) else str(error))
            continue
        with temporary as aside:
            yield Path(aside)
        return
    why = refused[0] if refused else "there is no home folder"
    raise RuntimeError(f"{why}; name a folder of your own by SLIMEXP_CACHE=FOLDER")


def _compile(compiler: str, aside: Path) -> Path:
    """Compile and link the library in the folder ``aside``.

    Raises:
        RuntimeError: The compiler takes too long, or writes no file.
        subprocess.CalledProcessError: The compiler fails.
    """
    home = Path(torch.__file__).parent
    compiled, linked = aside / "kernel.o", aside / "kernel.so"
    # Linked without OpenMP its calls find the library that torch has loaded: of two, both pools of threads spin.
    for command, output in (
        ([*_FLAGS, f"-I{home / 'include'}", "-c", str(SOURCE), "-o", str(compiled)], compiled),
        (["-shared", str(compiled), f"-L{home / 'lib'}", "-lc10", "-ltorch_cpu", "-o", str(linked)], linked),
    ):
        with working("compiling the kernel of packed weights"):
            _run([compiler, *command])
        if not output.is_file():
            raise RuntimeError(f"the compiler {compiler} leaves no {output.name}")
    linked.chmod(0o700)  # whatever the umask
    return linked


def _run(command: list[str]) -> None:
    """Run a compiler, which is the head of several processes, and end all of them with it."""
    silent = subprocess.DEVNULL
    with subprocess.Popen(
        command, stdin=silent, stdout=silent, stderr=subprocess.PIPE, start_new_session=True
    ) as process:
        try:
            _, stderr = process.communicate(timeout=_LONGEST_S)
        except BaseException as error:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            if isinstance(error, subprocess.TimeoutExpired):
                raise RuntimeError(f"the compiler {command[0]} takes more than {_LONGEST_S} s") from None
            raise
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command[0], stderr=stderr.decode(errors="replace"))


def has_vnni() -> bool:
    """Whether the compiled kernel uses AVX512-VNNI; else its portable loops run."""
    return failure() is None and bool(torch.ops.slimexp.vnni())
