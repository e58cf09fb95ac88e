"""Types and ranges of the fields of a record. A line may come from anywhere, and all readers rely on these checks."""

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
LARGEST = 1e100  # largest metric: its square, and its ratio to another, are finite
# of a figure less that of the dense model on the same questions; the ends of its 95 % interval are _low and _high more
DIFFERENCE = "_difference"
# the same of a distilled student less its arms: trained without its teacher, and not trained (``pipeline.arms``)
NO_TEACHER, NO_TRAINING = "no_teacher", "no_training"
MINUS_ARM = {arm: f"_minus_{arm}" for arm in (NO_TEACHER, NO_TRAINING)}
PAIRED = (DIFFERENCE, *MINUS_ARM.values())  # ends of names of all paired differences
STDERR = "_stderr"  # in names of standard errors, as lm-evaluation-harness has it
_LARGEST_SETTING = sys.float_info.max  # largest number of a configuration, which must be a float
_SHORT = 10_000  # characters of a line that is too short to hold a text that is too long
_SEEDS = 2**63

# in names of metrics that are never negative
_COUNTS, _AMOUNTS = "params_", ("_mb", "_ms", "_ratio")

_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")  # half of a pair, as JSON escapes it; most are whole pairs
_repr = Repr()
_repr.maxstring = _repr.maxother = _repr.maxlong = 60

Check = Callable[[str, Any], None]


def parse(line: str | bytes) -> dict[str, Any]:
    """The JSON object in a line, which holds no name twice, no NaN, and no half of a surrogate pair.

    Args:
        line: Text, or its bytes in UTF-8, which may begin with a byte order mark.

    Raises:
        ValueError: The line is no such object.
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
    """Check the values of all fields of a record.

    Args:
        row: The object of a line, see ``parse``, with every field of a record.

    Raises:
        ValueError: A field has the wrong type, is too long, or outside its range; the message names it.
    """
    for name, check_field in _FIELDS.items():
        check_field(name, row[name])
    if "scores" in row:  # older versions wrote none
        _inner_paths("scores", row["scores"])


def in_utc(time: str) -> str:
    """An ISO 8601 time converted to UTC, so that times sort as text.

    Raises:
        ValueError: The text is no such time, or has no time zone.
    """
    try:
        moment = datetime.fromisoformat(time)
        if moment.tzinfo is None:
            raise ValueError
        return moment.astimezone(UTC).isoformat()
    except (TypeError, ValueError, OverflowError):
        _refuse("time", "be an ISO 8601 time with time zone", time)


def _refuse(name: str, rule: str, value: Any) -> NoReturn:
    raise ValueError(f"{name} must {rule}, got {_repr.repr(value)}")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in row if names.count(name) > 1)
        raise ValueError(f"it holds {_repr.repr(twice)} twice")
    return row


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"it holds {name}, and a record holds finite numbers only")


_DECODER = json.JSONDecoder(object_pairs_hook=_once, parse_constant=_no_number)


def _check_tree(name: str, items: Iterable[Any], left: int) -> None:
    """Check depth and numbers of any JSON.

    Args:
        name: Name of the field, for the message.
        items: What it holds.
        left: Levels of nesting that are allowed below.
    """
    for item in items:
        kind = type(item)
        if kind is dict or kind is list:
            if not left:
                raise ValueError(f"{name} must be nested at most {DEPTH} levels deep")
            _check_tree(name, item.values() if kind is dict else item, left - 1)
        elif (kind is float or kind is int) and not -_LARGEST_SETTING <= item <= _LARGEST_SETTING:
            _refuse(f"numbers in {name}", "be finite", item)


def _check_texts(tree: Any) -> None:
    """Check the lengths of all texts and names in a JSON value."""
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
    """Path of a file in the runs folder."""
    _outer_path(name, value)
    if ".." in PurePosixPath(value).parts:
        _refuse(name, "be a path within the runs folder, without '..'", value)


def _outer_path(name: str, value: Any) -> None:
    """Path relative to the runs folder, which may lead out of it to a model that was evaluated and is never removed."""
    if type(value) is not str or len(value) > TEXT or not value.isprintable() or value.startswith("/"):
        _refuse(name, "be a relative path of printable characters", value)
    parts = PurePosixPath(value).parts
    if ".." in parts[parts.count("..") :]:
        _refuse(name, "be a relative path with '..' at its beginning only", value)


def _optional(check_value: Check) -> Check:
    return lambda name, value: None if value is None else check_value(name, value)


def _list_of(check_item: Check) -> Check:
    def each(name: str, value: Any) -> None:
        if type(value) is not list:
            _refuse(name, "be a list", value)
        for item in value:
            check_item(f"an item of {name}", item)

    return each


def _mapping_of(check_value: Check) -> Check:
    """Check of an object with any printable names, whose values all pass ``check_value``."""

    def each(name: str, value: Any) -> None:
        if type(value) is not dict:
            _refuse(name, "be an object", value)
        if "" in value or not "".join(value).isprintable():
            _refuse(f"names in {name}", "be printable characters", list(value))
        try:
            for key, item in value.items():
                check_value(key, item)
        except ValueError as error:  # the full name is built here alone, for the one value of hundreds that needs it
            raise ValueError(f"{name}.{error}") from None

    return each


_numbers = _mapping_of(_number)
_inner_paths = _mapping_of(_inner_path)


def _figures(name: str, value: Any) -> None:
    """Check metrics, of which counts, amounts and errors are never negative."""
    _numbers(name, value)
    if min(value.values(), default=0) < 0:
        for key, figure in value.items():
            if figure < 0 and (key.startswith(_COUNTS) or key.endswith(_AMOUNTS) or STDERR in key):
                _refuse(f"{name}.{key}", "be >= 0", figure)


def _fact(name: str, value: Any) -> None:
    """Check a single value, or a list of single values."""
    for item in value if type(value) is list else [value]:
        if isinstance(item, list | dict):
            _refuse(name, "be a text or number, or a list of them", value)


def _node(name: str, value: Any) -> None:
    """Check a node of the configuration, which may be absent."""
    if value is not None and type(value) is not dict:
        _refuse(name, "be an object", value)


def _object(required: Mapping[str, Check], optional: Mapping[str, Check]) -> Check:
    """Check of an object with all ``required`` names, perhaps the ``optional`` ones, and any others of bounded JSON."""
    checks = {**required, **optional}

    def each(name: str, value: Any) -> None:
        if type(value) is not dict:
            _refuse(name, "be an object", value)
        if missing := required.keys() - value.keys():
            _refuse(name, f"have '{min(missing)}'", value)
        try:
            for key in checks.keys() & value.keys():
                checks[key](key, value[key])
        except ValueError as error:
            raise ValueError(f"{name}.{error}") from None
        _check_tree(name, value.values(), DEPTH)

    return each


_NODES = _optional(_mapping_of(_node))
_CONFIG = _object(
    {},
    {"pipeline": _NODES, "measure": _NODES} | dict.fromkeys(("data", "model", "baseline", "trainer", "logger"), _node),
)
_hardware_fields = _object(
    {},
    {"cpu": _text, "gpu": _list_of(_text)}
    | dict.fromkeys(("cores", "logical_cores", "threads"), _optional(_integer))
    | {"memory_gb": _optional(_number)},
)
_other_facts = _mapping_of(_fact)


def _hardware(name: str, value: Any) -> None:
    """Check the hardware: the fields that ``record.environment`` writes, and any other facts."""
    _hardware_fields(name, value)
    _other_facts(name, value)


_FIELDS: dict[str, Check] = {
    "time": _time,
    "name": _text,
    "stage": _name,
    "key": _name,
    "parent": _optional(_name),
    "technique": _text,
    "seed": _integer,
    "overrides": _list_of(_text),
    "config": _CONFIG,
    "git": _optional(_object({"commit": _text, "dirty": _flag}, {})),
    "versions": _mapping_of(_text),
    "hardware": _hardware,
    "kernel": _text,
    "headline": _name,
    "direction": _direction,
    "metrics": _figures,
    "directions": _mapping_of(_direction),
    "baseline": _figures,
    "baseline_key": _optional(_name),
    "trivial": _number,
    "seconds": _mapping_of(_duration),
    "reused": _flag,
    "artifact": _outer_path,
    "curves": _optional(_inner_path),
}
