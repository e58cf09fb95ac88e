"""Binds the keys of a config to the signatures of the constructors it names; imports nothing and builds nothing."""

import re
import shlex
from collections.abc import Iterator, Sequence
from contextlib import suppress
from difflib import get_close_matches
from functools import cache
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

from omegaconf import DictConfig, ListConfig, OmegaConf, ValueNode
from omegaconf.errors import OmegaConfBaseException

from slimexp.config import annotation, renamed, secret
from slimexp.config.definition import PackageNotFound, TargetNotFound, lineage
from slimexp.config.signature import Parameter, Signature, signature

_RESERVED = {"_target_", "_partial_", "_convert_", "_recursive_", "_args_"}  # Hydra's own keys
_AUTOMATIC = {"lr", "num_warmup_steps"}  # arguments of other libraries that a technique chooses where they are auto
_PLAIN = {"int", "float", "bool", "str", "Sequence", "list", "tuple"}

Container = DictConfig | ListConfig
_WORDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "text",
    "None": "null",
    "Sequence[int]": "a list of whole numbers",
    "Sequence[float]": "a list of numbers",
    "Sequence[str]": "a list of words",
    "Mapping[str, Sequence[int]]": "a list of whole numbers by name",
    "Mapping[str, int | None]": "whole numbers (or null) by name",
}  # annotation -> what it means on a command line
_SEQUENCES = {"Sequence[int]", "Sequence[float]", "Sequence[str]"}
_EXAMPLES = {
    "int": "<whole number>",  # which ones a component takes is not in its annotation
    "float": "<number>",
    "bool": "true",
    "str": "<text>",
    "Sequence[int]": "[1,2]",
    "Mapping[str, Sequence[int]]": "{<name>:[1,2]}",
}


def items(node: Container, path: str = "") -> Iterator[tuple[str, Container, str | int]]:
    """(dotted path, container, key) of all that is below ``node``, with nothing resolved."""
    if node._is_none() or node._is_missing() or node._is_interpolation():
        return
    keys: Sequence[str | int] = [str(key) for key in node] if isinstance(node, DictConfig) else range(len(node))
    for key in keys:
        below = _join(path, key)
        yield below, node, key
        child = _child(node, key)
        if isinstance(child, (DictConfig, ListConfig)):
            yield from items(child, below)


def nameless(node: Container, path: str = "") -> Iterator[str]:
    """One line for each key below ``node`` that is no text, as YAML's ``{1: 32}`` has; ``items`` walks none of them."""
    if node._is_none() or node._is_missing() or node._is_interpolation():
        return
    keys: Sequence[object] = list(node) if isinstance(node, DictConfig) else range(len(node))
    for key in keys:
        if not isinstance(key, str) and (isinstance(node, DictConfig) or not isinstance(key, int)):
            yield f"{path or 'the config'} must have words for names, got {key!r}"
        elif isinstance(child := _child(node, key), (DictConfig, ListConfig)):
            yield from nameless(child, _join(path, key))


def faults(path: str, parent: Container, key: str | int, registry: Path | None = None) -> Iterator[str]:
    """Faults of one item, one line each.

    Args:
        path: Dotted path of the item.
        parent: The container that holds it.
        key: Its key or index in ``parent``.
        registry: Folder with a folder of options per group, by which a word is recognised as an option.
    """
    if OmegaConf.is_missing(parent, key):
        yield f"{path} has no value: add {path}=<{_kind(parent, key)}> to the command line"
        return
    try:
        value = parent[key]  # type: ignore[index]
    except OmegaConfBaseException as error:
        yield f"{path}: {unresolved(error)}"
        return
    elsewhere = re.fullmatch(r"\$\{[\w.\[\]]+\}", str(_child(parent, key)._value()))  # type: ignore[attr-defined]
    if not elsewhere and (why := annotation.out_of_range(value) or _unfit_seed(key, value)):
        yield f"{path} {why}, got {secret.written(parent)[key]}"
    if isinstance(value, DictConfig) and "_target_" in value and not OmegaConf.is_interpolation(parent, key):
        yield from _call_faults(path, value, registry)


def unresolved(error: OmegaConfBaseException) -> str:
    """Why a value could not be read, in a line."""
    absent = re.search(r"Environment variable '(.+)' not found", str(error))
    return f"environment variable {absent[1]} is not set" if absent else str(error).splitlines()[0]


def _unfit_seed(key: str | int, value: object) -> str:
    """Every library takes seeds of this range, and some take no others."""
    names = str(key) == "seed" or str(key).endswith("_seed")
    return "must be in 0..2^32-1" if names and isinstance(value, int) and not 0 <= value < 2**32 else ""


def unknown(key: str, path: str, valid: Sequence[str], of: str = "", also: Sequence[str] = ()) -> str:
    """One line about a key that nothing reads; ``also`` are further candidates for the nearest right word."""
    if not path and key in renamed.ROOT:
        return f"'{key}' is called '{renamed.ROOT[key]}' now"
    if (present := renamed.GROUPS.get(key)) in (*valid, *also):
        return f"'{_join(path, key)}' is called '{_join(path, str(present))}' now"
    close = [word for word in get_close_matches(key, [*valid, *also], n=1) if word != key]
    hint = f" did you mean '{_join(path, close[0])}'?" if close else ""
    if path and "[" not in path and not close:  # such as the start of a schedule in whose place another was chosen
        hint = f" ~{_join(path, key)} leaves it out;"
    return f"unknown key '{_join(path, key)}'{f' of {of}' if of else ''};{hint} valid: {', '.join(valid) or 'none'}"


def _call_faults(path: str, node: DictConfig, registry: Path | None) -> Iterator[str]:
    if OmegaConf.is_missing(node, "_target_"):
        return  # reported by itself
    target = str(node["_target_"])
    try:
        expected = signature(target)
    except PackageNotFound as error:
        yield f"{path}._target_: {error.args[0]}: {_how_to_install(error.args[1])}"
        return
    except TargetNotFound as error:
        yield f"{path}._target_: {error}"
        return
    parameters = _left(expected, node)
    keys = [str(key) for key in node if key not in _RESERVED]
    if not expected.open:
        yield from (unknown(key, path, list(parameters), of=target) for key in keys if key not in parameters)
    is_own = target.startswith("slimexp.")
    for name in keys:
        if name in parameters and not _fits(
            node, name, parameters[name], strict=is_own and not parameters[name].foreign
        ):
            value = secret.written(node)[name]
            shown = "null" if value is None else repr(value)
            example = None if registry is None else _shipped(target, name, parameters[name], registry)
            kinds = str(parameters[name].annotation)
            yield _other_type(f"{path}.{name}", None if is_own else target, kinds, shown, example)
        elif registry is not None and name in parameters and is_own and not parameters[name].foreign:
            yield from _word_faults(f"{path}.{name}", node, parameters[name], registry)
    if not node.get("_partial_", False):
        absent = [name for name, item in parameters.items() if item.required and name not in keys]
        yield from (f"{path} lacks '{name}', which {target} requires{_none(path, parameters[name])}" for name in absent)


def _none(path: str, parameter: Parameter) -> str:
    """The way to give nothing for a parameter, where it takes that."""
    return f": {path}.{parameter.name}=null is none" if "None" in (parameter.annotation or "") else ""


def _other_type(path: str, target: str | None, annotation: str, shown: str, example: str | None) -> str:
    """One line on a value of another type; ``target`` is named where its documentation is elsewhere.

    Args:
        path: Dotted path of the value.
        target: Class that takes it; ``None`` for one of slimexp.
        annotation: What it takes.
        shown: The value, without secrets.
        example: A value that it takes; ``None`` where none is known.
    """
    if target is not None:
        return f"{path} of {target} must be {annotation}, got {shown}"
    kinds = re.split(r" \| (?![^\[]*\])", annotation)
    example = example or next((_EXAMPLES[kind] for kind in kinds if kind in _EXAMPLES), "<value>")
    word = shlex.quote(f"{path}={example}") if example.startswith("{") else f"{path}={example}"
    if _SEQUENCES & set(kinds) and (plain := re.fullmatch(r"'?([\w.:/-]+)'?", shown)):  # one item, given as such
        word = shlex.quote(f"{path}=[{plain[1]}]")
    return f"{path} must be {' or '.join(_WORDS.get(kind, kind) for kind in kinds)}, got {shown}: set {word}"


@cache
def _shipped(target: str, name: str, parameter: Parameter, registry: Path) -> str | None:
    """What ``registry`` gives a parameter of ``target``, or of others in its group: a value that is in range."""
    nodes = {path: OmegaConf.load(path) for path in sorted(registry.glob("*/*.yaml"))}
    own = [path for path, node in nodes.items() if isinstance(node, DictConfig) and node.get("_target_") == target]
    beside = [path for path in nodes if own and path.parent == own[0].parent]
    for node in (nodes[path] for path in (*own, *beside)):
        value = node._get_node(name) if isinstance(node, DictConfig) else None
        if isinstance(value, ValueNode) and not (value._is_none() or value._is_missing() or value._is_interpolation()):
            shown = value._value()
            if annotation.fits(parameter.annotation, shown, strict=True):
                return str(shown).lower() if isinstance(shown, bool) else str(shown)
    return None


def _left(expected: Signature, node: DictConfig) -> dict[str, Parameter]:
    """Parameters not taken by ``_args_``."""
    positional = [name for name, item in expected.parameters.items() if item.positional]
    taken = positional[: len(node.get("_args_") or ())]
    return {name: item for name, item in expected.parameters.items() if name not in taken}


def _fits(node: DictConfig, key: str, parameter: Parameter, *, strict: bool) -> bool:
    """Whether a value has its parameter's type."""
    if OmegaConf.is_missing(node, key):
        return True
    try:
        awaits = node.get("_partial_", False) and key in _AUTOMATIC
        return (awaits and node[key] == "auto") or annotation.fits(parameter.annotation, node[key], strict=strict)
    except OmegaConfBaseException:
        return True  # reported by itself


def _word_faults(path: str, node: DictConfig, parameter: Parameter, registry: Path) -> Iterator[str]:
    """One line on a word, a number or bare settings where a component belongs, with the way to choose one."""
    text = parameter.annotation or ""
    kinds = {kind.partition("[")[0] for kind in text.split(" | ")} - {"None"}
    value = node._get_node(parameter.name)
    if kinds & _PLAIN or value is None or value._is_none() or value._is_interpolation():
        return
    if not isinstance(value, ValueNode) and not (isinstance(value, DictConfig) and "_target_" not in value):
        return
    names = (parameter.name, parameter.name.rpartition("_")[2], *(kind.lower() for kind in kinds))
    named = (group for group in names if (registry / group).is_dir())
    if group := next(named, "") or next((group for kind in sorted(kinds) for group in _groups_of(kind, registry)), ""):
        sign = "+" if "None" in text else ""  # what may be absent is, until it is added
        choice = f"{sign}{group}@{path}"
        line = not_a_component(path, secret.written(node)[parameter.name], choice, registry / group)
        yield f"{line}; {path}=null is none" if sign and isinstance(value, DictConfig) else line


def not_a_component(path: str, value: object, choice: str, folder: Path) -> str:
    """One line on a value where a component belongs, with the way to choose one.

    Args:
        path: Dotted path of the value.
        value: The value, without secrets.
        choice: Key of the override that chooses a component there.
        folder: Folder of the options.
    """
    options = sorted(option.stem for option in folder.glob("*.yaml"))
    option = value if value in options else "<option>"
    shown = "null" if value is None else repr(value)
    return f"{path} must be a component, got {shown}: write {choice}={option}; options: {', '.join(options)}"


@cache
def _groups_of(kind: str, registry: Path) -> tuple[str, ...]:
    """Groups whose options are all of a class called ``kind``."""
    return tuple(
        folder.name
        for folder in sorted(registry.iterdir())
        if kind in {name.rpartition(".")[2] for name in shared_bases(folder)}
    )


@cache
def shared_bases(folder: Path) -> frozenset[str]:
    """Classes that all options of a group derive from."""
    nodes = [DictConfig(OmegaConf.load(path)) for path in folder.glob("*.yaml")]
    bases = []
    for node in nodes:
        if "_target_" in node:
            with suppress(TargetNotFound):  # a function, or of a package that is not installed
                bases.append(frozenset(lineage(str(node["_target_"]))))
    return frozenset.intersection(*bases) if bases else frozenset()


def _kind(parent: Container, key: str | int) -> str:
    """Annotation of the parameter that ``key`` stands for, for a hint."""
    with suppress(KeyError, TargetNotFound, OmegaConfBaseException):
        if isinstance(parent, DictConfig):
            return signature(parent["_target_"]).parameters[str(key)].annotation or "value"
    return "value"


def _child(node: Container, key: str | int) -> object:
    return node._get_node(key)  # type: ignore[arg-type]


def _join(path: str, key: str | int) -> str:
    if isinstance(key, int):
        return f"{path}[{key}]"
    return f"{path}.{key}" if path else key


def _how_to_install(package: str) -> str:
    """The command that installs a package, by the extra of slimexp that brings it if there is one."""
    try:
        requirements = requires("slimexp") or []
    except PackageNotFoundError:
        requirements = []
    for line in requirements:
        extra = re.search(r"extra == ['\"]([\w-]+)", line)
        if extra and re.split(r"[^\w.-]", line)[0].replace("-", "_").lower() == package.lower():
            return f"install it with pip install 'slimexp[{extra[1]}]'"
    return f"install it with pip install {package.replace('_', '-')}"
