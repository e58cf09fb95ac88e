"""What a line of a record file must be: it may come from anybody, and all readers rely on what is checked here."""

import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from pathlib import PurePosixPath
from reprlib import Repr
from typing import Any, NoReturn

NAME = 1_000  # characters of a name, and of a key of the configuration
TEXT = 100_000  # characters of any other text
DEPTH = 40  # levels of the configuration
LARGEST = 1e100  # of a figure: its square, and its ratio to another, are finite
_LARGEST_SETTING = sys.float_info.max  # what a setting as a float can be
_SHORT = 10_000  # characters of a line whose texts need no look
_SEEDS = 2**63

_COUNTS, _AMOUNTS, _ERROR = "params_", ("_mb", "_ms", "_ratio"), "_stderr"  # of metrics that are never negative

_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")  # half of a pair, as JSON escapes it; most are whole pairs
_shown = Repr()
_shown.maxstring = _shown.maxother = _shown.maxlong = 60

Check = Callable[[str, Any], None]


def parse(line: str | bytes) -> dict[str, Any]:
    """A JSON object that holds no name twice, no NaN, and whole characters.

    Args:
        line: In UTF-8, which may begin with a byte order mark.

    Raises:
        ValueError: It is anything else.
    """
    text = line if isinstance(line, str) else line.decode("utf-8-sig")
    try:
        row = _DECODER.decode(text.strip())
    except json.JSONDecodeError as error:
        raise ValueError(f"no JSON ({error.msg})") from None
    except RecursionError:
        raise ValueError(f"nested deeper than {DEPTH} levels") from None
    if not isinstance(row, dict):
        raise ValueError(f"a record must be a JSON object, got {type(row).__name__}")
    if len(text) > _SHORT:
        _check_texts(row)
    if _SURROGATE.search(text):
        json.dumps(row, ensure_ascii=False).encode()  # UnicodeEncodeError is a ValueError
    return row


def check(row: Mapping[str, Any]) -> None:
    """Refuse fields whose values readers cannot use.

    Args:
        row: As ``parse`` gives it, with every field of a record.

    Raises:
        ValueError: A field is of the wrong type, too long, or outside its range; names it.
    """
    for name, checked in _FIELDS.items():
        checked(name, row[name])


def in_utc(time: str) -> str:
    """An ISO 8601 time in UTC, so that text sorts as time does.

    Raises:
        ValueError: It is no such time, or without a time zone.
    """
    try:
        moment = datetime.fromisoformat(time)
        if moment.tzinfo is None:
            raise ValueError
        return moment.astimezone(UTC).isoformat()
    except (TypeError, ValueError, OverflowError):
        _refuse("time", "be an ISO 8601 time with time zone", time)


def _refuse(name: str, rule: str, value: Any) -> NoReturn:
    raise ValueError(f"{name} must {rule}, got {_shown.repr(value)}")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in row if names.count(name) > 1)
        raise ValueError(f"it holds {_shown.repr(twice)} twice")
    return row


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"it holds {name}, and a record holds finite numbers only")


_DECODER = json.JSONDecoder(object_pairs_hook=_once, parse_constant=_no_number)


def _check_tree(name: str, items: Iterable[Any], left: int) -> None:
    """Depth, and size of numbers."""
    for item in items:
        kind = type(item)
        if kind is dict or kind is list:
            if not left:
                raise ValueError(f"{name} must be nested at most {DEPTH} levels deep")
            _check_tree(name, item.values() if kind is dict else item, left - 1)
        elif (kind is float or kind is int) and not -_LARGEST_SETTING <= item <= _LARGEST_SETTING:
            _refuse(f"numbers in {name}", "be finite", item)


def _check_texts(tree: Any) -> None:
    if isinstance(tree, str) and len(tree) > TEXT:
        raise ValueError(f"a text must have at most {TEXT} characters, got {len(tree)}")
    if isinstance(tree, dict) and (longest := max(map(len, tree), default=0)) > NAME:
        raise ValueError(f"a name must have at most {NAME} characters, got {longest}")
    if isinstance(tree, dict | list):
        for item in tree.values() if isinstance(tree, dict) else tree:
            _check_texts(item)


def _text(name: str, value: Any) -> None:
    if type(value) is not str or len(value) > TEXT:
        _refuse(name, f"be text of at most {TEXT} characters", value)


def _name(name: str, value: Any) -> None:
    if type(value) is not str or not 0 < len(value) <= NAME or not value.isprintable():
        _refuse(name, f"be 1 to {NAME} printable characters", value)


def _number(name: str, value: Any) -> None:
    if type(value) not in (int, float) or not -LARGEST <= value <= LARGEST:
        _refuse(name, f"be a number of at most {LARGEST:g}", value)


def _duration(name: str, value: Any) -> None:
    if type(value) not in (int, float) or not 0 <= value <= LARGEST:
        _refuse(name, f"be a number of seconds from 0 to {LARGEST:g}", value)


def _integer(name: str, value: Any) -> None:
    if type(value) is not int or not -_SEEDS <= value < _SEEDS:
        _refuse(name, "be a whole number of 64 bits", value)


def _flag(name: str, value: Any) -> None:
    if type(value) is not bool:
        _refuse(name, "be true or false", value)


def _direction(name: str, value: Any) -> None:
    if value not in ("min", "max"):
        _refuse(name, "be 'min' or 'max'", value)


def _time(name: str, value: Any) -> None:
    in_utc(value)


def _inner_path(name: str, value: Any) -> None:
    """Of a file in the runs folder."""
    _outer_path(name, value)
    if ".." in PurePosixPath(value).parts:
        _refuse(name, "be a path within the runs folder, without '..'", value)


def _outer_path(name: str, value: Any) -> None:
    """Relative to the runs folder; a model that was evaluated may lie outside, and is then never read or removed."""
    if type(value) is not str or len(value) > TEXT or not value.isprintable() or value.startswith("/"):
        _refuse(name, "be a relative path of printable characters", value)
    parts = PurePosixPath(value).parts
    if ".." in parts[parts.count("..") :]:
        _refuse(name, "be a relative path with '..' at its beginning only", value)


def _maybe(checked: Check) -> Check:
    return lambda name, value: None if value is None else checked(name, value)


def _all(checked: Check) -> Check:
    def each(name: str, value: Any) -> None:
        if type(value) is not list:
            _refuse(name, "be a list", value)
        for item in value:
            checked(f"an item of {name}", item)

    return each


def _table(checked: Check) -> Check:
    """An object of any printable names."""

    def each(name: str, value: Any) -> None:
        if type(value) is not dict:
            _refuse(name, "be an object", value)
        if "" in value or not "".join(value).isprintable():
            _refuse(f"names in {name}", "be printable characters", list(value))
        try:
            for key, item in value.items():
                checked(key, item)
        except ValueError as error:  # a name is put together for the one that needs it, of hundreds
            raise ValueError(f"{name}.{error}") from None

    return each


_numbers = _table(_number)


def _figures(name: str, value: Any) -> None:
    """Metrics, some of which are never below 0."""
    _numbers(name, value)
    if min(value.values(), default=0) < 0:
        for key, figure in value.items():
            if figure < 0 and (key.startswith(_COUNTS) or key.endswith(_AMOUNTS) or _ERROR in key):
                _refuse(f"{name}.{key}", "be >= 0", figure)


def _fact(name: str, value: Any) -> None:
    """A value, or a list of them."""
    for one in value if type(value) is list else [value]:
        if isinstance(one, list | dict):
            _refuse(name, "be a text or number, or a list of them", value)


def _node(name: str, value: Any) -> None:
    """A part of the configuration, or none."""
    if value is not None and type(value) is not dict:
        _refuse(name, "be an object", value)


def _object(need: Mapping[str, Check], may: Mapping[str, Check]) -> Check:
    """An object with the names of ``need``, and those of ``may`` where it has them; others hold bounded JSON."""
    checks = {**need, **may}

    def each(name: str, value: Any) -> None:
        if type(value) is not dict:
            _refuse(name, "be an object", value)
        if lacking := need.keys() - value.keys():
            _refuse(name, f"have '{min(lacking)}'", value)
        try:
            for key in checks.keys() & value.keys():
                checks[key](key, value[key])
        except ValueError as error:
            raise ValueError(f"{name}.{error}") from None
        _check_tree(name, value.values(), DEPTH)

    return each


_NODES = _maybe(_table(_node))
_CONFIG = _object(
    {},
    {"pipeline": _NODES, "measure": _NODES} | dict.fromkeys(("data", "model", "baseline", "trainer", "logger"), _node),
)
_known = _object(
    {},
    {"cpu": _text, "gpu": _all(_text)}
    | dict.fromkeys(("cores", "logical_cores", "threads"), _maybe(_integer))
    | {"memory_gb": _maybe(_number)},
)
_facts = _table(_fact)


def _hardware(name: str, value: Any) -> None:
    """What a program knows of, as it knows it, and any other facts."""
    _known(name, value)
    _facts(name, value)


_FIELDS: dict[str, Check] = {
    "time": _time,
    "name": _text,
    "stage": _name,
    "key": _name,
    "parent": _maybe(_name),
    "technique": _text,
    "seed": _integer,
    "overrides": _all(_text),
    "config": _CONFIG,
    "git": _maybe(_object({"commit": _text, "dirty": _flag}, {})),
    "versions": _table(_text),
    "hardware": _hardware,
    "kernel": _text,
    "headline": _name,
    "direction": _direction,
    "metrics": _figures,
    "directions": _table(_direction),
    "baseline": _figures,
    "baseline_key": _maybe(_name),
    "trivial": _number,
    "seconds": _table(_duration),
    "reused": _flag,
    "artifact": _outer_path,
    "curves": _maybe(_inner_path),
}
