"""The import closure of code: the modules that it imports, those that they import, and so on.

Everything is read from source text and nothing is imported, so that it takes milliseconds. A digest of sources ignores
what changes no behaviour: comments, docstrings and formatting.
"""

import ast
import hashlib
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from slimexp.config.definition import source_path
from slimexp.host.garbage_collector import paused

Find = Callable[[str], Path | None]  # module -> its source file; ``None`` where there is no such module

_FILE_NAME = re.compile(r"[\w-]+(/[\w-]+)*\.\w+")
_DERIVED = {"ctx", "kind", "type_comment", "type_ignores"}  # fields of a syntax tree that follow from others


@dataclass(frozen=True)
class _Import:
    """One import statement.

    Attributes:
        module: The module behind ``from`` or ``import``; empty in ``from . import x``.
        names: The names behind ``from ... import``; none for ``import ...``.
        level: Number of dots before the module.
    """

    module: str
    names: tuple[str, ...]
    level: int


@dataclass(frozen=True)
class _Source:
    """What a source file contains.

    Attributes:
        digest: Digest of its syntax tree, without docstrings.
        imports: Its import statements, those within functions too.
        file_names: String constants that look like the name of a file.
    """

    digest: str
    imports: tuple[_Import, ...]
    file_names: tuple[str, ...]


def closure(
    targets: Iterable[str], *, packages: Collection[str], without: Collection[str] = (), find: Find = source_path
) -> dict[str, Path]:
    """Modules whose code can run when ``targets`` are used.

    Imports inside functions count, and so do the packages on the way to a module, whose ``__init__`` runs before it.
    What a module imports by a computed name is not seen: it has to be among the targets.

    Args:
        targets: Dotted names of modules, or of classes and functions in them (``slimexp.loss.kl.ForwardKl``).
        packages: Top-level packages whose modules are followed; all others are left out.
        without: Modules and packages that are left out, with what only they import.
        find: Returns the source file of a module.

    Returns:
        Source file of each module, sorted by the module's name.
    """
    sources: dict[str, Path] = {}
    waiting = [module for target in targets for module in _with_parents(target, packages, find)]
    while waiting:
        module = waiting.pop()
        path = find(module)
        if path is None or module in sources or _is_below(module, without):
            continue
        sources[module] = path
        waiting += _imported(module, path, packages, find)
    return dict(sorted(sources.items()))


def digest(modules: dict[str, Path]) -> str:
    """Digest of the code of modules and of the files beside them that they name, such as a kernel's C++ source.

    Args:
        modules: Source file of each module.

    Returns:
        SHA-256 in hexadecimal digits.
    """
    hasher = hashlib.sha256()
    for module, path in sorted(modules.items()):
        source = _read(path.read_bytes())
        hasher.update(f"{module} {source.digest}\n".encode())
        for name in source.file_names:
            if (beside := path.parent / name).is_file():
                hasher.update(f"{name} {hashlib.sha256(beside.read_bytes()).hexdigest()}\n".encode())
    return hasher.hexdigest()


def _is_below(module: str, parents: Collection[str]) -> bool:
    return any(f"{module}.".startswith(f"{parent}.") for parent in parents)


def _with_parents(target: str, packages: Collection[str], find: Find) -> list[str]:
    """The packages above ``target``, from the top, and the module that it is or is defined in."""
    if target.partition(".")[0] not in packages:
        return []
    parts = target.split(".")
    names = [".".join(parts[:length]) for length in range(1, len(parts) + 1)]
    return [name for name in names if find(name) is not None]


def _imported(module: str, path: Path, packages: Collection[str], find: Find) -> Iterator[str]:
    """Modules that a module imports, with the packages above them."""
    for statement in _read(path.read_bytes()).imports:
        base = statement.module
        if statement.level:
            parents = module.split(".")
            up = statement.level - (path.name == "__init__.py")
            base = ".".join([*parents[: len(parents) - up], *filter(None, [base])])
        if base.partition(".")[0] not in packages:
            continue
        yield from _with_parents(base, packages, find)
        if (source := find(base)) is not None and source.name == "__init__.py":
            yield from (f"{base}.{name}" for name in statement.names)  # ``find`` passes over what is no submodule


@cache
def _read(text: bytes) -> _Source:
    """Parse a source; the cache is by its text, for a file can change while a process lives."""
    words: list[str] = []
    imports: list[_Import] = []
    file_names: set[str] = set()
    with paused():  # beside torch, a pass over a syntax tree's many nodes takes longer than the parsing
        _flatten(ast.parse(text), words, imports, file_names)
    hasher = hashlib.sha256("\n".join(words).encode("utf-8", "surrogatepass"))
    return _Source(hasher.hexdigest(), tuple(imports), tuple(sorted(file_names)))


def _flatten(node: ast.AST, words: list[str], imports: list[_Import], file_names: set[str]) -> None:
    """Append a syntax tree as words, and collect what it imports and the names of files in it.

    ``ast.dump`` names empty fields too, of which later versions of Python have more: the same source would have
    another digest there.
    """
    kind = node.__class__
    if kind is ast.Name:  # every third node
        words.append(f"${node.id}")  # type: ignore[attr-defined]
        return
    words.append(kind.__name__)
    if kind is ast.Constant:
        value = node.value  # type: ignore[attr-defined]
        words.append(repr(value))
        if value.__class__ is str and "." in value and _FILE_NAME.fullmatch(value):
            file_names.add(value)
        return
    if kind is ast.Import:
        imports += [_Import(alias.name, (), 0) for alias in node.names]  # type: ignore[attr-defined]
    elif kind is ast.ImportFrom:
        names = tuple(alias.name for alias in node.names)  # type: ignore[attr-defined]
        imports.append(_Import(node.module or "", names, node.level))  # type: ignore[attr-defined]
    for field in node._fields:
        value = getattr(node, field, None)
        if field in _DERIVED or value is None or value == []:
            continue
        words.append(field)
        if value.__class__ is list:
            for item in value:
                if item.__class__ is ast.Expr and item.value.__class__ is ast.Constant:
                    continue  # a docstring: a constant by itself does nothing
                if isinstance(item, ast.AST):
                    _flatten(item, words, imports, file_names)
                else:
                    words.append(repr(item))
            words.append("]")
        elif isinstance(value, ast.AST):
            _flatten(value, words, imports, file_names)
        else:
            words.append(repr(value))
    words.append(")")
