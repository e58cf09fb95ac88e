"""The transaction log of a W&B run, read back: what ``wandb sync`` would upload, whether it was made online or not.

W&B has no Python reader for it, but the format is plain: records of W&B's own protobuf messages in the framing of
LevelDB's log, every frame with a checksum.
"""

import json
import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from slimexp.file import regular

LONGEST = 1 << 26  # bytes of a record
DEPTH = 100  # levels of a configuration
BLOCK = 32768  # bytes; no frame goes over the end of one
HEADER = struct.Struct("<IHB")  # of a frame: checksum, length, kind
MAGIC = b":W&B"
_WHOLE, _LAST = 1, 4  # kinds of a frame that ends a record


@dataclass(frozen=True)
class Log:
    """The content of a run's transaction log.

    Attributes:
        folder: Folder of the run.
        id: Id of the run.
        group: Group of the run; empty for none.
        job_type: Job type of the run; empty for none.
        config: Configuration, without the keys that W&B adds.
        summary: Summary, without the keys that W&B adds.
        finished: Whether the run was finished: one that was killed, or whose log is cut or damaged, was not.
    """

    folder: Path
    id: str
    group: str
    job_type: str
    config: dict[str, Any]
    summary: dict[str, Any]
    finished: bool


def logs(folder: Path) -> list[Log]:
    """Logs of all runs below ``folder``, oldest first, without those that do not even name their run."""
    files = sorted(folder.rglob("wandb/*run-*/run-*.wandb"))
    return [log for file in files if (log := read(file)).id]


def read(path: Path) -> Log:
    """One log, up to where it is cut or damaged; an empty one of a path that is no file."""
    run: Any = None
    config: dict[str, Any] = {}
    summary: dict[str, Any] = {}
    finished = False
    for record in _sound(path):
        kind = record.WhichOneof("record_type")
        try:
            if kind == "run":
                run = record.run
                _change(config, run.config)
            elif kind == "config":
                _change(config, record.config)
            elif kind == "summary":
                _change(summary, record.summary)
        except (ValueError, RecursionError):  # no JSON
            finished = False
            break
        finished = finished or kind == "exit"
    return Log(
        folder=path.parent,
        id=run.run_id if run else "",
        group=run.run_group if run else "",
        job_type=run.job_type if run else "",
        config=_own(config),
        summary=_own(summary),
        finished=finished,
    )


def records(path: Path) -> Iterator[Any]:
    """W&B's ``Record`` messages of a log, up to the first that is not whole.

    Raises:
        OSError: ``path`` is no regular file, or cannot be read.
    """
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
    from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]

    with regular.opened(path) as stream:
        for content in _contents(stream):
            try:
                yield Record.FromString(content)
            except DecodeError:
                return


def _sound(path: Path) -> Iterator[Any]:
    try:
        yield from records(path)
    except OSError:
        return


def _contents(stream: BinaryIO) -> Iterator[bytes]:
    block, place, content = stream.read(BLOCK), 7, bytearray()  # after the file's own header
    if not block.startswith(MAGIC):
        return
    while block:
        while place + HEADER.size <= len(block):
            checksum, length, kind = HEADER.unpack_from(block, place)
            part = block[place + HEADER.size : place + HEADER.size + length]
            if len(part) < length or zlib.crc32(part, zlib.crc32(bytes([kind]))) != checksum:
                return
            place += HEADER.size + length
            content += part
            if len(content) > LONGEST:
                return
            if kind in (_WHOLE, _LAST):
                yield bytes(content)
                content.clear()
        block, place = stream.read(BLOCK), 0


def _change(tree: dict[str, Any], change: Any) -> None:
    """Apply the updates of a config or summary record to a tree."""
    for item in change.update:
        *path, last = _path(item)
        _below(tree, path)[last] = json.loads(item.value_json)
    for item in change.remove:
        *path, last = _path(item)
        _below(tree, path).pop(last, None)


def _path(item: Any) -> list[str]:
    if len(path := list(item.nested_key)) > DEPTH:
        raise ValueError(f"a configuration is nested at most {DEPTH} levels deep")
    return path or [item.key]


def _below(tree: dict[str, Any], path: Iterable[str]) -> dict[str, Any]:
    for key in path:
        if not isinstance(tree.get(key), dict):
            tree[key] = {}
        tree = tree[key]
    return tree


def _own(tree: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in tree.items() if not key.startswith("_")}
