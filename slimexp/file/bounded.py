"""JSON files that somebody else may have written: read within bounds, and whatever is wrong with one is one line."""

import json
import math
import stat
from pathlib import Path
from typing import Any

MB = 2**20


def read_object(path: Path, *, most_mb: int = 64, strict: bool = False, way_out: str = "get the file anew") -> Any:
    """The JSON object in a file.

    Args:
        path: Where it should be.
        most_mb: Largest size, in MB of 2^20 bytes; a larger file is not read.
        strict: Whether numbers must be finite and names given once, as in every file that slimexp writes.
        way_out: What to do about a file that is damaged.

    Raises:
        ValueError: It is missing, no regular file (a pipe would be waited for without end), too large, no UTF-8, no
            JSON, nested too deeply, or no object.
    """
    try:
        require_file(path, most_mb=most_mb)
        with path.open("rb") as file:
            text = file.read(most_mb * MB + 1).decode()
        content = json.loads(text, **_STRICT) if strict else json.loads(text)
    except RecursionError as error:
        raise ValueError(f"'{path}' is damaged (it is nested too deeply): {way_out}") from error
    except (OSError, ValueError) as error:
        raise ValueError(f"'{path}' is damaged ({one_line(error)}): {way_out}") from error
    if not isinstance(content, dict):
        raise ValueError(f"'{path}' is damaged (it holds a {type(content).__name__}, not an object): {way_out}")
    return content


def require_file(path: Path, *, most_mb: int | None = None) -> None:
    """Refuse what cannot be read to its end: a folder, a pipe, a device, a link to nothing, a file that is too large.

    Raises:
        ValueError: It is one of these.
        OSError: Nothing can be told of it.
    """
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise ValueError("it is no regular file")
    if most_mb is not None and found.st_size > most_mb * MB:
        raise ValueError(f"it must have at most {most_mb} MB, got {found.st_size / MB:.0f}")


def one_line(error: BaseException, most: int = 300) -> str:
    """What an error of another library says, in one line."""
    said = " ".join(str(error).split()) or type(error).__name__
    return said if len(said) <= most else f"{said[:most]} ..."


def _finite(digits: str) -> float:
    if not math.isfinite(number := float(digits)):
        raise ValueError(f"{digits} is no finite number")
    return number


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} is given twice")
    return content


_STRICT: dict[str, Any] = {"parse_float": _finite, "parse_constant": _finite, "object_pairs_hook": _once}
