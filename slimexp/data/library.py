"""Text that comes with every Python: the standard library's own docstrings, manual pages and source.

The split of a text is that of its top-level module, by a hash of the module's name: the same on every machine and
Python, whatever the order of files. Installed packages may add training text, but no copies of held-out text (vendored
modules, back-ports).
"""

import ast
import hashlib
import itertools
import multiprocessing
import os
import sys
import sysconfig
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Literal, get_args

from slimexp.data import prose
from slimexp.data.base import HELD_OUT, Split, rank
from slimexp.data.passage import cut
from slimexp.host.garbage_collector import paused

Packages = Literal["none", "installed"]
Assign = Callable[[str], Split | None]

TEST_SHARE, VALIDATION_SHARE = 0.10, 0.08  # shares of the modules that can be held out
MANUAL = "pydoc_data"  # the language reference that help() shows
SKIPPED = {"test", "tests", "idle_test", "encodings", "__pycache__", "site-packages", "dist-packages"}

# Some supported Python or some distribution lacks these: held out, they would move the test set.
_LACKING = (
    "aifc asynchat asyncore cgi cgitb chunk crypt curses dbm distutils ensurepip idlelib imghdr imp lib2to3 mailcap "
    "msilib nntplib pipes pydoc_data smtpd sndhdr sqlite3 sunau telnetlib tkinter turtle turtledemo uu venv xdrlib"
)
TRAIN_ONLY = frozenset(_LACKING.split())

_PRIVATE = {
    "_collections_abc": "collections",
    "_py_abc": "abc",
    "_strptime": "datetime",
    "_threading_local": "threading",
}

LARGEST_FILE = 1_000_000  # bytes; larger ones are generated tables
BLOCK_LINES, BLOCK_CHARACTERS = 5, 120  # so many equal non-blank lines in a row are a copy, no coincidence
WORKERS = 16  # processes at most


@dataclass(frozen=True, slots=True)
class Text:
    """A text and the top-level module it comes from."""

    module: str
    text: str


@dataclass(frozen=True, slots=True)
class File:
    """A source file and the top-level module it belongs to."""

    module: str
    path: Path


_State = tuple[File, int, int]  # with its size in bytes and time of change in nanoseconds


def check(packages: str) -> None:
    """Refuse any other value than those of ``Packages``.

    Raises:
        ValueError: Names the values.
    """
    if packages not in get_args(Packages):
        raise ValueError(f"packages must be one of {', '.join(get_args(Packages))}, got {packages!r}")


def split_of(module: str, *, split_seed: int) -> Split:
    """Split of a public top-level module of the standard library, by a hash of its name."""
    if module in TRAIN_ONLY:
        return "train"
    share = rank(module, split_seed=split_seed)
    if share < TEST_SHARE:
        return "test"
    return "validation" if share < TEST_SHARE + VALIDATION_SHARE else "train"


def public(module: str) -> str:
    """The module that users import: ``decimal`` for ``_pydecimal``, ``datetime`` for ``_strptime``."""
    return _PRIVATE.get(module) or (module.removeprefix("_py") if module.startswith("_py") else module.lstrip("_"))


def library_root() -> Path:
    """Folder of the source of the standard library."""
    return Path(sysconfig.get_paths()["stdlib"])


def package_roots() -> list[Path]:
    """Folders of the installed packages."""
    return sorted({Path(entry) for entry in sys.path if Path(entry).name in ("site-packages", "dist-packages")})


def library_files() -> list[File]:
    """Source files of the standard library with their public module, in the order of their names.

    Raises:
        ValueError: This Python comes without them.
    """
    root = library_root()
    files = [file for file in _python_files(root) if file.module in sys.stdlib_module_names]
    if not files:
        raise ValueError(f"no source of the standard library at {root}: use a Python that has it, or data=hub or files")
    return [File(public(file.module), file.path) for file in files]


def package_files() -> list[File]:
    """Source files of all installed packages but this one, in the order of their names."""
    return [file for root in package_roots() for file in _python_files(root) if file.module != "slimexp"]


def sentences(*, packages: Packages, assign: Assign) -> dict[Split, list[Text]]:
    """Sentences of docstrings and manual pages, each once, in three splits.

    Args:
        packages: ``"installed"`` adds the docstrings of installed packages to the training split.
        assign: Public module name -> its split, or ``None`` to leave it out; see ``split_of``.
    """
    return _harvest(None, packages=packages, assign=assign)


def passages(*, size: int, packages: Packages, assign: Assign) -> dict[Split, list[Text]]:
    """Source cut at line boundaries into passages of at most ``size`` characters, each once, in three splits.

    Args:
        size: Most characters of a passage.
        packages: ``"installed"`` adds the source of installed packages to the training split.
        assign: Public module name -> its split, or ``None`` to leave it out; see ``split_of``.
    """
    return _harvest(size, packages=packages, assign=assign)


def _harvest(size: int | None, *, packages: Packages, assign: Assign) -> dict[Split, list[Text]]:
    """Passages of at most ``size`` characters, or sentences if it is ``None``."""
    library = tuple((_state(file), assign(file.module)) for file in library_files())
    more = tuple(_state(file) for file in package_files()) if packages == "installed" else ()
    return {split: list(texts) for split, texts in _harvested(size, library, more).items()}


@lru_cache(maxsize=4)
@paused()  # beside torch, passes over the nodes of syntax trees take longer than all the rest
def _harvested(
    size: int | None, library: tuple[tuple[_State, Split | None], ...], more: tuple[_State, ...]
) -> dict[Split, list[Text]]:
    """The text of three splits, computed once per process until files change, for it takes seconds.

    Args:
        size: Largest number of characters of a passage; ``None`` for sentences.
        library: Files of the standard library, each with its split.
        more: Files of installed packages.
    """
    extract: Callable[..., list[str]] = _sentences if size is None else partial(_passages, size=size)
    files: dict[Split | None, list[File]] = {"train": [], "validation": [], "test": [], None: []}
    for (file, *_), split in library:
        files[split].append(file)
    held_out = frozenset(block for split in HELD_OUT for file in files[split] for block in blocks(read(file.path)))
    for_training = partial(extract, held_out=held_out)
    train = _extract(for_training, files["train"])
    if more:
        vendored = partial(for_training, vendored=True)
        train = itertools.chain(train, _extract_parallel(vendored, [file for file, *_ in more]))
    # Of equal texts the first stays, so held-out splits come before training.
    whole = partial(extract, held_out=frozenset())
    texts: dict[Split, Iterator[Text]] = {split: _extract(whole, files[split]) for split in HELD_OUT}
    return _distinct({**texts, "train": train})


def _state(file: File) -> _State:
    """The file with size and time, which change with its content."""
    try:
        status = file.path.stat()
    except OSError:  # a dangling link, which ``read`` treats as empty
        return file, 0, 0
    return file, status.st_size, status.st_mtime_ns


def _distinct(texts: Mapping[Split, Iterable[Text]]) -> dict[Split, list[Text]]:
    """Every text once, in the first split that has it."""
    earlier: set[str] = set()
    distinct: dict[Split, list[Text]] = {}
    for split, rows in texts.items():
        distinct[split] = []
        for row in rows:
            key = prose.normalised(row.text)
            if key not in earlier:
                earlier.add(key)
                distinct[split].append(row)
    return distinct


def _extract(extract: Callable[[Path], list[str]], files: Iterable[File]) -> Iterator[Text]:
    """The texts of the files, each with its module."""
    for file in files:
        yield from (Text(file.module, text) for text in extract(file.path))


def _extract_parallel(extract: Callable[[Path], list[str]], files: list[File]) -> Iterator[Text]:
    """As ``_extract``, by several processes."""
    workers = min(WORKERS, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    method = "fork" if "fork" in multiprocessing.get_all_start_methods() else None  # needs no importable __main__
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context(method)) as pool:
        paths = [file.path for file in files]
        for file, texts in zip(files, pool.map(extract, paths, chunksize=100), strict=True):
            yield from (Text(file.module, text) for text in texts)


def _sentences(path: Path, *, held_out: frozenset[int], vendored: bool = False) -> list[str]:
    """Sentences of a file; none of a vendored one that shares blocks with ``held_out``."""
    source = read(path)
    if vendored and not held_out.isdisjoint(blocks(source)):
        return []
    pages = manual_pages(source) if path.parent.name == MANUAL else prose.docstrings(source)
    return [sentence for page in pages for sentence in prose.sentences(page)]


def _passages(path: Path, *, size: int, held_out: frozenset[int], vendored: bool = False) -> list[str]:
    """Passages of a file that share no block with ``held_out``; none of a vendored file that shares any."""
    source = read(path)
    if path.parent.name == MANUAL or (vendored and not held_out.isdisjoint(blocks(source))):
        return []
    return [passage for passage in cut(source, size) if held_out.isdisjoint(blocks(passage))]


def blocks(source: str) -> Iterator[int]:
    """Hashes of every run of ``BLOCK_LINES`` non-blank lines without indentation, which a copied file shares."""
    lines = [line for line in map(str.strip, source.splitlines()) if line]
    for start in range(len(lines) - BLOCK_LINES + 1):
        block = "\n".join(lines[start : start + BLOCK_LINES])
        if len(block) >= BLOCK_CHARACTERS:
            yield int.from_bytes(hashlib.blake2b(block.encode(), digest_size=8).digest(), "big")


def manual_pages(source: str) -> list[str]:
    """Pages of the language reference: the values of the one dictionary literal in ``pydoc_data.topics``."""
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.Dict):
            return list(ast.literal_eval(node.value).values())
    return []


def read(path: Path) -> str:
    """Text of a source file; empty where it is unreadable, no UTF-8, or too large to be written by hand."""
    try:
        if path.stat().st_size > LARGEST_FILE:
            return ""
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""


def _python_files(root: Path) -> list[File]:
    """Source files below ``root``, each with its top-level module, in the order of their names."""
    paths = []
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if name not in SKIPPED]
        paths += [Path(folder, name) for name in names if name.endswith(".py")]
    relative = sorted((path.relative_to(root).as_posix(), path) for path in paths)
    return [File(name.split("/")[0].removesuffix(".py"), path) for name, path in relative]
