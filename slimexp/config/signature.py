"""Signatures of ``_target_``s, read from source text: a config is checked in milliseconds, not after importing torch.

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
_PLAIN_DECORATORS = {"final", "runtime_checkable", "total_ordering"}  # leave the constructor alone

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


class TargetNotFound(LookupError):
    """No such module or object."""


class PackageNotFound(TargetNotFound):
    """The top-level package is not installed; ``args[1]`` is its name."""


@dataclass(frozen=True)
class Parameter:
    """One parameter that can be given by name (or, through ``_args_``, by position)."""

    name: str
    annotation: str | None
    required: bool
    positional: bool


@dataclass(frozen=True)
class Signature:
    """What a target can be called with.

    Attributes:
        parameters: By name, in order, without ``self``.
        open: Whether further names may be accepted (``**kwargs``, or no source to read).
    """

    parameters: dict[str, Parameter]
    open: bool = False


@dataclass(frozen=True)
class _Module:
    name: str
    path: Path
    names: dict[str, Definition | str | None]  # a definition, the dotted name it stands for, or something else
    stars: tuple[str, ...]


@dataclass(frozen=True)
class _Found:
    module: str
    node: Definition | None  # None: it is there, but has no source to read
    owner: ast.ClassDef | None = None


def signature(target: str) -> Signature:
    """Signature of the class, function or method called ``target``.

    Raises:
        TargetNotFound: There is no such object; the message names the nearest one.
    """
    found = _find(target)
    if found.node is None:
        return Signature({}, open=True)
    if isinstance(found.node, ast.ClassDef):
        return _constructor(found.module, found.node)
    bound = found.owner is not None and "staticmethod" not in _decorators(found.node)
    return _of_function(found.module, found.node, skip=int(bound))


def lineage(target: str) -> Iterator[str]:
    """Full name of the class ``target``, then of its bases as far as their source can be read."""
    queue = [_find(target)]
    for found in queue:
        if isinstance(found.node, ast.ClassDef):
            yield f"{found.module}.{found.node.name}"
            queue.extend(_bases(found.module, found.node))


def home(target: str) -> tuple[str, bool] | None:
    """Full name of what ``target`` names, where it is written, and whether it is a class; ``None`` without source.

    Raises:
        TargetNotFound: There is no such object.
    """
    found = _find(target)
    if found.node is None or found.owner is not None:
        return None
    return f"{found.module}.{found.node.name}", isinstance(found.node, ast.ClassDef)


def _find(target: str) -> _Found:
    """Follow a dotted name, through re-exports, to a definition."""
    parts = target.split(".")
    if not all(part.isidentifier() for part in parts) or len(parts) < 2:
        raise TargetNotFound(f"'{target}' is not a dotted name such as 'package.module.Class'")
    if (present := renamed.class_path(target)) != target:
        raise TargetNotFound(f"'{target}' is called '{present}' now")
    if _spec(parts[0]) is None:
        raise PackageNotFound(f"package '{parts[0]}' is not installed", parts[0])
    return _locate(target, (), frozenset())


def _locate(dotted: str, rest: tuple[str, ...], seen: frozenset[tuple[str, str]]) -> _Found:
    """Split ``dotted`` into the longest module and what is looked up in it, followed by ``rest``."""
    parts = dotted.split(".")
    for length in range(len(parts), 0, -1):
        name = ".".join(parts[:length])
        if source_path(name) is not None:
            return _inside(name, (*parts[length:], *rest), seen)
    return _Found(dotted, None)


def _inside(module_name: str, names: tuple[str, ...], seen: frozenset[tuple[str, str]] = frozenset()) -> _Found:
    """Look ``names`` up in a module; ``seen`` ends circular re-exports."""
    if not names or (module_name, names[0]) in seen:
        return _Found(module_name, None)
    module = _module(module_name)
    first, rest = names[0], names[1:]
    seen |= {(module_name, first)}
    if first not in module.names:
        return _through_star(module, names, seen)
    binding = module.names[first]
    if isinstance(binding, str):
        return _locate(binding, rest, seen)
    return _method(module_name, binding, rest) if rest else _Found(module_name, binding)


def _through_star(module: _Module, names: tuple[str, ...], seen: frozenset[tuple[str, str]]) -> _Found:
    for star in module.stars:
        path = source_path(star)
        text = path.read_text(encoding="utf-8", errors="replace") if path else ""
        if names[0] in text or "import *" in text:  # parsing is what costs
            with suppress(TargetNotFound):
                return _inside(star, names, seen)
    if "__getattr__" in module.names:
        return _Found(module.name, None)
    inner = [path.stem for path in module.path.parent.iterdir()] if module.path.name == "__init__.py" else []
    close = get_close_matches(names[0], [name for name in (*module.names, *inner) if not name.startswith("_")], n=1)
    hint = f"; did you mean '{module.name}.{close[0]}'?" if close else ""
    raise TargetNotFound(f"'{module.name}' has no '{names[0]}'{hint}")


def _method(module: str, node: Definition | None, rest: tuple[str, ...]) -> _Found:
    if not isinstance(node, ast.ClassDef) or len(rest) > 1:
        return _Found(module, None)
    for statement in node.body:
        if isinstance(statement, ast.FunctionDef) and statement.name == rest[0]:
            return _Found(module, statement, owner=node)
    return _Found(module, None)  # inherited, perhaps: nothing is known, so nothing is refused


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
    names: dict[str, Definition | str | None] = {}
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


def _bindings(statement: ast.stmt, module: str, *, is_package: bool) -> Iterator[tuple[str, Definition | str | None]]:
    """Names that a statement binds, with what they stand for."""
    if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        if "overload" not in _decorators(statement):
            yield statement.name, statement
    elif isinstance(statement, ast.ImportFrom):
        parents = module.split(".")
        up = statement.level - is_package
        anchor = parents[: len(parents) - up] if statement.level else []
        source = ".".join([*anchor, *filter(None, [statement.module])])
        there = _spec(source.split(".")[0]) is not None  # else another branch of a ``try`` has the name
        for alias in statement.names:
            name, value = (alias.asname or alias.name, f"{source}.{alias.name}")
            yield ("*", source) if alias.name == "*" else (name, value if there else None)
    elif isinstance(statement, ast.Import):
        for alias in statement.names:
            yield (alias.asname, alias.name) if alias.asname else (alias.name.split(".")[0],) * 2
    elif isinstance(statement, (ast.Assign, ast.AnnAssign)):
        dotted = _dotted(statement.value) if isinstance(statement.value, (ast.Name, ast.Attribute)) else None
        for target in statement.targets if isinstance(statement, ast.Assign) else [statement.target]:
            if isinstance(target, ast.Name):
                yield target.id, f"{module}.{dotted}" if dotted else None


def _bases(module: str, node: ast.ClassDef) -> list[_Found]:
    found = []
    for base in node.bases:
        dotted = _dotted(base) or "?"
        if dotted.rpartition(".")[2] in _PLAIN_BASES:
            continue
        try:
            found.append(_inside(module, tuple(dotted.split("."))))
        except TargetNotFound:
            found.append(_Found(module, None))
    return found


def _constructor(module: str, node: ast.ClassDef) -> Signature:
    """Constructor of a class: its own, that of its dataclass fields, or the first one inherited."""
    functions = {item.name: item for item in node.body if isinstance(item, ast.FunctionDef)}
    for name in ("__init__", "__new__"):
        if name in functions:
            return _of_function(module, functions[name], skip=1)
    inherited = [
        _constructor(found.module, found.node) if isinstance(found.node, ast.ClassDef) else Signature({}, open=True)
        for found in _bases(module, node)
    ]
    if "dataclass" in _decorators(node):
        fields = {name: item for base in reversed(inherited) for name, item in base.parameters.items()}
        return Signature(fields | _fields(node), open=any(base.open for base in inherited))
    if _decorators(node) - _PLAIN_DECORATORS:  # may write a constructor
        return Signature({}, open=True)
    return next((base for base in inherited if base.parameters or base.open), Signature({}))


def _fields(node: ast.ClassDef) -> dict[str, Parameter]:
    """Constructor parameters that a dataclass body declares."""
    fields = {}
    for item in node.body:
        if not isinstance(item, ast.AnnAssign) or not isinstance(item.target, ast.Name):
            continue
        annotation = ast.unparse(item.annotation)
        options = {}
        if isinstance(item.value, ast.Call) and _dotted(item.value.func) in ("field", "dataclasses.field"):
            options = {keyword.arg: ast.unparse(keyword.value) for keyword in item.value.keywords}
        if "ClassVar" in annotation or "KW_ONLY" in annotation or options.get("init") == "False":
            continue
        default = bool({"default", "default_factory"} & set(options)) if options else item.value is not None
        fields[item.target.id] = Parameter(item.target.id, annotation, required=not default, positional=True)
    return fields


def _of_function(module: str, node: Definition, *, skip: int) -> Signature:
    assert not isinstance(node, ast.ClassDef)
    given = node.args
    ordered = [*given.posonlyargs, *given.args]
    defaults: list[ast.expr | None] = [None] * (len(ordered) - len(given.defaults)) + given.defaults
    rows = [(item, default, True) for item, default in zip(ordered, defaults, strict=True)][skip:]
    rows += [(item, default, False) for item, default in zip(given.kwonlyargs, given.kw_defaults, strict=True)]
    parameters = {}
    for item, default, positional in rows:
        annotation = ast.unparse(item.annotation) if item.annotation else None
        parameters[item.arg] = Parameter(item.arg, annotation, required=default is None, positional=positional)
    unpacked = _unpacked(module, given.kwarg)
    return Signature(parameters | (unpacked or {}), open=given.kwarg is not None and unpacked is None)


def _unpacked(module: str, kwarg: ast.arg | None) -> dict[str, Parameter] | None:
    """Parameters that ``**kwarg: Unpack[SomeTypedDict]`` stands for (PEP 692)."""
    annotation = kwarg.annotation if kwarg else None
    if not isinstance(annotation, ast.Subscript) or (_dotted(annotation) or "").rpartition(".")[2] != "Unpack":
        return None
    found = _inside(module, tuple((_dotted(annotation.slice) or "?").split(".")))
    return _fields(found.node) if isinstance(found.node, ast.ClassDef) else None


def _decorators(node: Definition) -> set[str]:
    """Last words of a definition's decorators."""
    calls = (item.func if isinstance(item, ast.Call) else item for item in node.decorator_list)
    return {(_dotted(item) or "").rpartition(".")[2] for item in calls}


def _dotted(expression: ast.expr) -> str | None:
    """``a.b.C`` of an expression, without subscripts; ``None`` for anything else."""
    if isinstance(expression, ast.Subscript):
        return _dotted(expression.value)
    if isinstance(expression, ast.Attribute):
        prefix = _dotted(expression.value)
        return f"{prefix}.{expression.attr}" if prefix else None
    return expression.id if isinstance(expression, ast.Name) else None
