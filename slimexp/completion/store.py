"""What a teacher has written, on the disk: written once, and whole at every moment."""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from slimexp.file import integrity, regular
from slimexp.file.integrity import Damaged
from slimexp.host.console import printable
from slimexp.record import lock

LARGEST = 2**34  # bytes: some ten million texts


@dataclass(frozen=True, slots=True)
class Text:
    """A text that a teacher wrote.

    Attributes:
        row: Training row of the corpus that it was written for.
        epoch: Epoch of the corpus' noise in which that row was read.
        source: What the teacher read: the source, or the prompt.
        text: What it wrote.
        finished: Whether it came to its end, and was not cut off.
    """

    row: int
    epoch: int
    source: str
    text: str
    finished: bool


def write(path: Path, make: Callable[[], Sequence[Text]]) -> None:
    """Have texts written to a file, unless they are there; a damaged file is set aside, which a line says.

    Of several processes one writes, while the others wait; what a kill left half-written is never read.

    Args:
        path: The file: a line of JSON with its digest, and one for each text.
        make: Has the texts written.
    """
    if _is_whole(path):
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with lock.held(path.with_suffix(".lock"), f"  another process has {path.name} written"):
        if _is_whole(path):  # another process was faster
            return
        rows = [json.dumps(asdict(text), separators=(",", ":")).encode() + b"\n" for text in make()]
        head = json.dumps({"texts": len(rows), "sha256": _digest(rows)}).encode()
        with integrity.aside(path) as partial, partial.open("xb") as file:
            file.writelines([head + b"\n", *rows])


def read(path: Path) -> list[Text]:
    """The texts in a file.

    Raises:
        Damaged: It is not what was written.
    """
    try:
        with regular.opened(path) as stream:
            head, *rows = stream.readlines(LARGEST)
        if json.loads(head)["sha256"] != _digest(rows):
            raise Damaged("it has other content than was written")
        return [Text(**json.loads(row)) for row in rows]
    except (ValueError, TypeError, KeyError) as error:
        raise Damaged(f"{path.name}: {error}") from error


def _is_whole(path: Path) -> bool:
    if not os.path.lexists(path):
        return False
    try:
        read(path)
    except (OSError, Damaged) as error:
        aside = integrity.set_aside(path)
        print(f"  {printable(error)}: set aside as {aside}, written again", flush=True)
        return False
    return True


def _digest(rows: Sequence[bytes]) -> str:
    hasher = hashlib.sha256()
    for row in rows:
        hasher.update(row)
    return hasher.hexdigest()
