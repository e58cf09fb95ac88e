"""JSON files that another program or person may have written: read within bounds, and a fault is one line."""

import json
import math
import stat
from pathlib import Path
from typing import Any

from slimexp.file import regular
from slimexp.file.integrity import LARGEST, Damaged

MB = 2**20
OWN_MB = LARGEST // MB  # size of a file that slimexp wrote


def read_object(
    path: Path, *, most_mb: int = 64, strict: bool = False, way_out: str | None = "get the file anew"
) -> dict[str, Any]:
    """The JSON object in a file.

    Args:
        path: The file; links are followed.
        most_mb: Largest size, in MB of 2^20 bytes; a larger file is not read.
        strict: Whether numbers must be finite and names unique, as in every file that slimexp writes.
        way_out: What to do about a damaged file; ``None`` where the caller says it, who gets the reason alone.

    Raises:
        Damaged: It is missing, no regular file (a pipe would be waited for without end), too large, no UTF-8, no
            JSON, nested too deeply, or no object.
    """
    try:
        require_file(path, most_mb=most_mb)
        content = json.loads(regular.content(path, most_mb * MB).decode(), **(_STRICT if strict else {}))
        if not isinstance(content, dict):
            raise ValueError(f"it holds a {type(content).__name__}, not an object")
    except (OSError, ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else one_line(error)
        if way_out is None:
            raise Damaged(f"{path.name} is no JSON object: {reason}") from error
        raise Damaged(f"'{path}' is damaged ({reason}): {way_out}") from error
    return content


def require_file(path: Path, *, most_mb: int | None = None) -> None:
    """Refuse what cannot be read to its end: a folder, a pipe, a device, a link to nothing, a file that is too large.

    Raises:
        ValueError: It is one of these.
        OSError: Nothing is there, or it cannot be examined.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("it is no regular file")
    if most_mb is not None and status.st_size > most_mb * MB:
        raise ValueError(f"it must have at most {most_mb} MB, got {status.st_size / MB:.0f}")


def one_line(error: BaseException, most: int = 300) -> str:
    """The message of an error in one line of at most ``most`` characters; its class where it has no message."""
    message = " ".join(str(error).split()) or type(error).__name__
    return message if len(message) <= most else f"{message[:most]} ..."


def _finite(digits: str) -> float:
    if not math.isfinite(number := float(digits)):
        raise ValueError(f"{digits} is no finite number")
    return number


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} is given twice")
    return content


_STRICT: dict[str, Any] = {"parse_float": _finite, "parse_constant": _finite, "object_pairs_hook": _unique}
