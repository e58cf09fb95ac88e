"""Signatures of ``_target_``s, read from source text: checking a config takes milliseconds, importing torch seconds."""

import ast
import re
from dataclasses import dataclass, replace

from slimexp.config.definition import Node, bases, decorators, dotted_name, find, inside

_NOT_REQUIRED = re.compile(r"(?:typing\.)?NotRequired\[(.+)\]", re.DOTALL)  # of a TypedDict: a key that may be absent
_PLAIN_DECORATORS = {"final", "runtime_checkable", "total_ordering"}  # leave the constructor alone


@dataclass(frozen=True)
class Parameter:
    """One parameter that can be given by name (or, through ``_args_``, by position).

    Attributes:
        name: Its name.
        annotation: Text of its annotation.
        required: Whether it has no default.
        positional: Whether it can be given by position.
        foreign: Whether a constructor passes it on to its base's, whose annotation may leave ``None`` out.
    """

    name: str
    annotation: str | None
    required: bool
    positional: bool
    foreign: bool = False


@dataclass(frozen=True)
class Signature:
    """Arguments that a target can be called with.

    Attributes:
        parameters: Name -> parameter, in order, without ``self``.
        open: Whether further names may be accepted (``**kwargs``, or no source to read).
    """

    parameters: dict[str, Parameter]
    open: bool = False


def signature(target: str) -> Signature:
    """Signature of the class, function or method called ``target``.

    Raises:
        TargetNotFound: There is no such object; the message names the nearest one.
    """
    definition = find(target)
    if definition.node is None:
        return Signature({}, open=True)
    if isinstance(definition.node, ast.ClassDef):
        return _constructor(definition.module, definition.node)
    bound = definition.owner is not None and "staticmethod" not in decorators(definition.node)
    return _of_function(definition.module, definition.node, skip=int(bound))


def _constructor(module: str, node: ast.ClassDef) -> Signature:
    """Constructor of a class: its own, that of its dataclass fields, or the first one inherited."""
    functions = {item.name: item for item in node.body if isinstance(item, ast.FunctionDef)}
    inherited = [
        _constructor(base.module, base.node) if isinstance(base.node, ast.ClassDef) else Signature({}, open=True)
        for base in bases(module, node)
    ]
    for name in ("__init__", "__new__"):
        if name in functions:
            own = _of_function(module, functions[name], skip=1)
            return _with_base(own, functions[name], inherited[0]) if own.open and inherited else own
    if "dataclass" in decorators(node):
        fields = {name: item for base in reversed(inherited) for name, item in base.parameters.items()}
        return Signature(fields | _fields(node), open=any(base.open for base in inherited))
    if decorators(node) - _PLAIN_DECORATORS:  # may write a constructor
        return Signature({}, open=True)
    return next((base for base in inherited if base.parameters or base.open), Signature({}))


def _with_base(own: Signature, function: ast.FunctionDef, base: Signature) -> Signature:
    """A constructor's signature, with its base's for the ``**options`` that ``super().__init__(**options)`` gets."""
    assert function.args.kwarg is not None
    for call in (item for item in ast.walk(function) if isinstance(item, ast.Call)):
        passed = {keyword.arg: keyword.value for keyword in call.keywords}
        rest = passed.pop(None, None)
        if ast.unparse(call.func) == "super().__init__" and dotted_name(rest or call) == function.args.kwarg.arg:
            others = {name: replace(item, foreign=True) for name, item in base.parameters.items() if name not in passed}
            return Signature(others | own.parameters, open=base.open)
    return own


def _fields(node: ast.ClassDef) -> dict[str, Parameter]:
    """Constructor parameters that a dataclass body declares."""
    fields = {}
    for item in node.body:
        if not isinstance(item, ast.AnnAssign) or not isinstance(item.target, ast.Name):
            continue
        annotation = ast.unparse(item.annotation)
        optional = _NOT_REQUIRED.fullmatch(annotation)
        annotation = optional[1] if optional else annotation
        options = {}
        if isinstance(item.value, ast.Call) and dotted_name(item.value.func) in ("field", "dataclasses.field"):
            options = {keyword.arg: ast.unparse(keyword.value) for keyword in item.value.keywords}
        if "ClassVar" in annotation or "KW_ONLY" in annotation or options.get("init") == "False":
            continue
        default = bool({"default", "default_factory"} & set(options)) if options else item.value is not None
        default |= optional is not None
        fields[item.target.id] = Parameter(item.target.id, annotation, required=not default, positional=True)
    return fields


def _of_function(module: str, node: Node, *, skip: int) -> Signature:
    assert not isinstance(node, ast.ClassDef)
    arguments = node.args
    ordered = [*arguments.posonlyargs, *arguments.args]
    defaults: list[ast.expr | None] = [None] * (len(ordered) - len(arguments.defaults)) + arguments.defaults
    rows = [(item, default, True) for item, default in zip(ordered, defaults, strict=True)][skip:]
    rows += [(item, default, False) for item, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)]
    parameters = {}
    for item, default, positional in rows:
        annotation = ast.unparse(item.annotation) if item.annotation else None
        parameters[item.arg] = Parameter(item.arg, annotation, required=default is None, positional=positional)
    unpacked = _unpacked(module, arguments.kwarg)
    return Signature(parameters | (unpacked or {}), open=arguments.kwarg is not None and unpacked is None)


def _unpacked(module: str, kwarg: ast.arg | None) -> dict[str, Parameter] | None:
    """Parameters that ``**kwarg: Unpack[SomeTypedDict]`` stands for (PEP 692)."""
    annotation = kwarg.annotation if kwarg else None
    if not isinstance(annotation, ast.Subscript) or (dotted_name(annotation) or "").rpartition(".")[2] != "Unpack":
        return None
    definition = inside(module, tuple((dotted_name(annotation.slice) or "?").split(".")))
    return _fields(definition.node) if isinstance(definition.node, ast.ClassDef) else None
