"""Definitions behind dotted names, read from source text, so that no module is imported to know what is in it.

Only the top-level package is looked up (``importlib.util.find_spec`` imports nothing for a name without
dots); files below it are parsed, and re-exports are followed to where the object is written.
"""

import ast
import importlib.util
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from importlib.machinery import ModuleSpec
from pathlib import Path

from slimexp.config import renamed

_PLAIN_BASES = {"object", "ABC", "Generic", "Protocol"}  # bring no constructor of their own

Node = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


class TargetNotFound(LookupError):
    """No such module or object."""


class PackageNotFound(TargetNotFound):
    """The top-level package is not installed; ``args[1]`` is its name."""


@dataclass(frozen=True)
class _Module:
    """Names that a module binds.

    Attributes:
        name: Its dotted name.
        path: Its source file.
        names: Name -> a definition, the dotted name it stands for, or ``None`` for anything else.
        stars: Modules of its ``from MODULE import *``.
    """

    name: str
    path: Path
    names: dict[str, Node | str | None]
    stars: tuple[str, ...]


@dataclass(frozen=True)
class Definition:
    """The place where an object is written.

    Attributes:
        module: Dotted name of the module that holds it.
        node: Its source; ``None`` for what exists and has no source to read.
        owner: The class that a method belongs to; ``None`` for what stands at the level of the module.
    """

    module: str
    node: Node | None
    owner: ast.ClassDef | None = None


def find(target: str) -> Definition:
    """Follow a dotted name, through re-exports, to a definition.

    Raises:
        TargetNotFound: There is no such object; the message names the nearest one.
    """
    parts = target.split(".")
    if not all(part.isidentifier() for part in parts) or len(parts) < 2:
        raise TargetNotFound(f"'{target}' is not a dotted name such as 'package.module.Class'")
    if (present := renamed.class_path(target)) != target:
        raise TargetNotFound(f"'{target}' is called '{present}' now")
    if _spec(parts[0]) is None:
        raise PackageNotFound(f"package '{parts[0]}' is not installed", parts[0])
    return _locate(target, (), frozenset())


def _locate(dotted: str, rest: tuple[str, ...], seen: frozenset[tuple[str, str]]) -> Definition:
    """Split ``dotted`` into the longest module and what is looked up in it, followed by ``rest``."""
    parts = dotted.split(".")
    for length in range(len(parts), 0, -1):
        name = ".".join(parts[:length])
        if source_path(name) is not None:
            return inside(name, (*parts[length:], *rest), seen)
    return Definition(dotted, None)


def inside(module_name: str, names: tuple[str, ...], seen: frozenset[tuple[str, str]] = frozenset()) -> Definition:
    """Look ``names`` up in a module; ``seen`` ends circular re-exports."""
    if not names or (module_name, names[0]) in seen:
        return Definition(module_name, None)
    module = _module(module_name)
    first, rest = names[0], names[1:]
    seen |= {(module_name, first)}
    if first not in module.names:
        return _through_star(module, names, seen)
    binding = module.names[first]
    if isinstance(binding, str):
        return _locate(binding, rest, seen)
    return _method(module_name, binding, rest) if rest else Definition(module_name, binding)


def _through_star(module: _Module, names: tuple[str, ...], seen: frozenset[tuple[str, str]]) -> Definition:
    for star in module.stars:
        path = source_path(star)
        text = path.read_text(encoding="utf-8", errors="replace") if path else ""
        if names[0] in text or "import *" in text:  # parsing is what costs
            with suppress(TargetNotFound):
                return inside(star, names, seen)
    if "__getattr__" in module.names:
        return Definition(module.name, None)
    inner = [path.stem for path in module.path.parent.iterdir()] if module.path.name == "__init__.py" else []
    close = get_close_matches(names[0], [name for name in (*module.names, *inner) if not name.startswith("_")], n=1)
    hint = f"; did you mean '{module.name}.{close[0]}'?" if close else ""
    raise TargetNotFound(f"'{module.name}' has no '{names[0]}'{hint}")


def _method(module: str, node: Node | None, rest: tuple[str, ...]) -> Definition:
    if not isinstance(node, ast.ClassDef) or len(rest) > 1:
        return Definition(module, None)
    for statement in node.body:
        if isinstance(statement, ast.FunctionDef) and statement.name == rest[0]:
            return Definition(module, statement, owner=node)
    return Definition(module, None)  # inherited, perhaps: nothing is known, so nothing is refused


@cache
def _spec(top: str) -> ModuleSpec | None:
    try:
        return importlib.util.find_spec(top)
    except ValueError:  # a module made by hand, which has no spec
        return None


@cache
def source_path(module: str) -> Path | None:
    """Source file of a module, found without importing anything."""
    top, *below = module.split(".")
    spec = _spec(top)
    if spec is None:
        return None
    if not below:
        return Path(spec.origin) if spec.origin and spec.origin.endswith(".py") else None
    for folder in spec.submodule_search_locations or ():
        stem = Path(folder, *below)
        for path in (stem / "__init__.py", stem.with_name(stem.name + ".py")):
            if path.is_file():
                return path
    return None


@cache
def _module(name: str) -> _Module:
    path = source_path(name)
    assert path is not None
    names: dict[str, Node | str | None] = {}
    stars: list[str] = []
    for statement in _statements(ast.parse(path.read_bytes()).body):
        for bound, value in _bindings(statement, name, is_package=path.name == "__init__.py"):
            if bound == "*":
                stars.append(str(value))
            elif value is not None or bound not in names:
                names[bound] = value
    return _Module(name, path, names, tuple(stars))


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements of a module that bind names, including those under ``if`` and ``try``."""
    for statement in body:
        if isinstance(statement, (ast.If, ast.Try, ast.With)):
            handlers = getattr(statement, "handlers", [])
            blocks = [getattr(statement, "orelse", []), *(handler.body for handler in handlers), statement.body]
            for block in blocks:
                yield from _statements(block)
        else:
            yield statement


def _bindings(statement: ast.stmt, module: str, *, is_package: bool) -> Iterator[tuple[str, Node | str | None]]:
    """Names that a statement binds, with what they stand for."""
    if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        if "overload" not in decorators(statement):
            yield statement.name, statement
    elif isinstance(statement, ast.ImportFrom):
        parents = module.split(".")
        up = statement.level - is_package
        anchor = parents[: len(parents) - up] if statement.level else []
        source = ".".join([*anchor, *filter(None, [statement.module])])
        is_installed = _spec(source.split(".")[0]) is not None  # else another branch of a ``try`` has the name
        for alias in statement.names:
            name, value = (alias.asname or alias.name, f"{source}.{alias.name}")
            yield ("*", source) if alias.name == "*" else (name, value if is_installed else None)
    elif isinstance(statement, ast.Import):
        for alias in statement.names:
            yield (alias.asname, alias.name) if alias.asname else (alias.name.split(".")[0],) * 2
    elif isinstance(statement, (ast.Assign, ast.AnnAssign)):
        dotted = dotted_name(statement.value) if isinstance(statement.value, (ast.Name, ast.Attribute)) else None
        for target in statement.targets if isinstance(statement, ast.Assign) else [statement.target]:
            if isinstance(target, ast.Name):
                yield target.id, f"{module}.{dotted}" if dotted else None


def lineage(target: str) -> Iterator[str]:
    """Full name of the class ``target``, then of its bases as far as their source can be read."""
    queue = [find(target)]
    for definition in queue:
        if isinstance(definition.node, ast.ClassDef):
            yield f"{definition.module}.{definition.node.name}"
            queue.extend(bases(definition.module, definition.node))


def home(target: str) -> tuple[str, bool] | None:
    """Full name of what ``target`` names, where it is written, and whether it is a class; ``None`` without source.

    Raises:
        TargetNotFound: There is no such object.
    """
    definition = find(target)
    if definition.node is None or definition.owner is not None:
        return None
    return f"{definition.module}.{definition.node.name}", isinstance(definition.node, ast.ClassDef)


def bases(module: str, node: ast.ClassDef) -> list[Definition]:
    """Bases of a class in ``module`` that may bring a constructor, in order."""
    definitions = []
    for base in node.bases:
        dotted = dotted_name(base) or "?"
        if dotted.rpartition(".")[2] in _PLAIN_BASES:
            continue
        try:
            definitions.append(inside(module, tuple(dotted.split("."))))
        except TargetNotFound:
            definitions.append(Definition(module, None))
    return definitions


def decorators(node: Node) -> set[str]:
    """Last words of a definition's decorators."""
    calls = (item.func if isinstance(item, ast.Call) else item for item in node.decorator_list)
    return {(dotted_name(item) or "").rpartition(".")[2] for item in calls}


def dotted_name(expression: ast.expr) -> str | None:
    """``a.b.C`` of an expression, without subscripts; ``None`` for anything else."""
    if isinstance(expression, ast.Subscript):
        return dotted_name(expression.value)
    if isinstance(expression, ast.Attribute):
        prefix = dotted_name(expression.value)
        return f"{prefix}.{expression.attr}" if prefix else None
    return expression.id if isinstance(expression, ast.Name) else None
