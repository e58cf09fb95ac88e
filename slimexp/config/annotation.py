"""Checks values of a config against annotations that are given as text: plain types, containers of them, and null."""

import ast
from collections.abc import Sequence
from functools import cache
from typing import Any

from omegaconf import DictConfig, ListConfig
from omegaconf.errors import OmegaConfBaseException

_PLAIN: dict[str, tuple[type, ...]] = {"int": (int,), "float": (float, int), "bool": (bool,), "str": (str,)}
_SEQUENCES = {"Sequence", "Iterable", "Collection", "list", "List", "tuple", "Tuple"}
_MAPPINGS = {"Mapping", "dict", "Dict"}
_ANYTHING = {"Any", "object"}
_NO_SCALAR = {"Tensor"}  # fits no word and no number of a config
_BESIDE_NUMBERS = {"Schedule"}  # where a number may stand in its place, another word is none of it
_LARGEST = 2**63 - 1  # of whole numbers that libraries take


def fits(annotation: str | None, value: Any, *, strict: bool) -> bool:
    """Whether ``value`` has the type that ``annotation`` says, as far as its text shows; nothing is imported.

    A number that is ``out_of_range`` fits: it is reported by itself.

    Args:
        annotation: Text of the annotation in the source.
        value: Value of a config.
        strict: Whether ``null`` fits no class that does not say so; others' annotations often leave ``None`` out.
    """
    parsed = _parsed(annotation) if annotation else None
    return parsed is None or bool(out_of_range(value)) or _accepts(parsed, value, strict)


def is_of_type(word: str, value: object) -> bool:
    """Whether ``value`` is an ``int``, ``float``, ``bool`` or ``str``, as ``word`` says; a bool is no number."""
    return isinstance(value, _PLAIN.get(word, ())) and (word == "bool" or not isinstance(value, bool))


def out_of_range(value: Any) -> str:
    """Why a number is of no use to anyone; empty if it is none, or fine."""
    if isinstance(value, float) and not abs(value) < float("inf"):
        return "must be a finite number"
    if isinstance(value, int) and abs(value) > _LARGEST:
        return "must be below 2^63"
    return ""


@cache
def _parsed(annotation: str) -> ast.expr | None:
    try:
        return ast.parse(annotation, mode="eval").body
    except SyntaxError:
        return None


def _accepts(kind: ast.expr, value: Any, strict: bool) -> bool:
    if isinstance(value, DictConfig) and "_target_" in value:
        return not _is_scalar(kind)  # it is built before it is given
    if isinstance(kind, ast.BinOp):
        sides = [side for side in (kind.left, kind.right) if _word(side) not in _BESIDE_NUMBERS]
        return any(_accepts(side, value, strict) for side in sides)
    if isinstance(kind, ast.Constant):
        inner = _parsed(kind.value) if isinstance(kind.value, str) else None
        return value is None if kind.value is None else inner is None or _accepts(inner, value, strict)
    if isinstance(kind, ast.Subscript):
        return _accepts_parametrised(_word(kind.value), _arguments(kind), value, strict)
    return _accepts_parametrised(_word(kind), [], value, strict)


def _accepts_parametrised(word: str, inner: Sequence[ast.expr], value: Any, strict: bool) -> bool:
    if word in _ANYTHING:
        return True
    if word == "Optional":
        return value is None or any(_accepts(kind, value, strict) for kind in inner)
    if word == "Union":
        return any(_accepts(kind, value, strict) for kind in inner)
    if word == "Literal":
        return value in [kind.value for kind in inner if isinstance(kind, ast.Constant)]
    if word in _PLAIN:
        return is_of_type(word, value)
    if word in _SEQUENCES:
        return isinstance(value, ListConfig) and _all_accepted(_per_item(word, inner, len(value)), value, strict)
    if word in _MAPPINGS:
        values: list[ast.expr] = list(inner[1:]) * len(value) if isinstance(value, DictConfig) else []
        return isinstance(value, DictConfig) and _all_accepted(values, value, strict)
    if word in _NO_SCALAR:
        return isinstance(value, DictConfig | ListConfig)
    return value is not None or not strict


def _per_item(word: str, inner: Sequence[ast.expr], count: int) -> Sequence[ast.expr] | None:
    """Annotation of each of ``count`` items; empty where they have none, ``None`` where the count is wrong."""
    if word.lower() == "tuple" and not (len(inner) == 2 and _is_ellipsis(inner[1])):
        return inner if len(inner) in (0, count) else None
    return list(inner[:1]) * count


def _all_accepted(kinds: Sequence[ast.expr] | None, values: DictConfig | ListConfig, strict: bool) -> bool:
    if kinds is None:
        return False
    keys: Sequence[Any] = list(values) if isinstance(values, DictConfig) else range(len(values))
    return all(_accepts_item(kind, values, key, strict) for kind, key in zip(kinds, keys, strict=False))


def _accepts_item(kind: ast.expr, values: DictConfig | ListConfig, key: Any, strict: bool) -> bool:
    try:
        value = values[key]
        return bool(out_of_range(value)) or _accepts(kind, value, strict)
    except OmegaConfBaseException:
        return True  # reported by itself


def _is_scalar(kind: ast.expr) -> bool:
    """Whether only a plain word, number or switch fits."""
    if isinstance(kind, ast.BinOp):
        return _is_scalar(kind.left) and _is_scalar(kind.right)
    return (isinstance(kind, ast.Constant) and kind.value is None) or _word(kind) in _PLAIN


def _arguments(kind: ast.Subscript) -> list[ast.expr]:
    return list(kind.slice.elts) if isinstance(kind.slice, ast.Tuple) else [kind.slice]


def _is_ellipsis(kind: ast.expr) -> bool:
    return isinstance(kind, ast.Constant) and kind.value is Ellipsis


def _word(kind: ast.expr) -> str:
    """Last word of a dotted name."""
    if isinstance(kind, ast.Attribute):
        return kind.attr
    return kind.id if isinstance(kind, ast.Name) else ""
