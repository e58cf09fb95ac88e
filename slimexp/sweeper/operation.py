"""Optuna's operations as a journal holds them, one per line: those that are whole, and the faults of other lines."""

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from slimexp.file import regular

Op = dict[str, Any]

LONGEST = 1 << 26  # bytes of a line
CREATE_STUDY, OF_SWEEP, CREATE_TRIAL, PARAM, STATE, USER = 0, 2, 4, 5, 6, 8  # values of Optuna's JournalOperation
DELETE_STUDY, DISCARD = 1, 10  # which no sweep writes
OF_STUDY = {DELETE_STUDY, OF_SWEEP, 3}  # 3: attributes of Optuna's own
OF_TRIAL = {PARAM, STATE, 7, USER, 9}
_BEGIN = re.compile(rb'\{\s*"op_code"')
_LEAST_BYTES = 100  # of a line that creates a trial


@dataclass
class Journal:
    """A journal as read.

    Attributes:
        lines: Whole operations with the number of their line, in their order.
        faults: Number of a line -> what is wrong with it; 0 for the file.
        lost: Largest number of operations that damaged lines may have held.
    """

    lines: list[tuple[int, Op]] = field(default_factory=list)
    faults: dict[int, str] = field(default_factory=dict)
    lost: int = 0


def read(path: Path) -> Journal:
    """Whole operations of the file at ``path``, and the faults of its other lines.

    Raises:
        OSError: It cannot be opened, or is no regular file.
    """
    journal, created = Journal(), set[str]()
    with regular.opened(path) as file:
        size = os.fstat(file.fileno()).st_size
        is_ended = os.pread(file.fileno(), 1, max(0, size - 1)) == b"\n"
        for number, line in enumerate(regular.lines(file, LONGEST), 1):
            ops, fault = _operations(line, is_ended=is_ended or file.tell() < size)
            if fault:
                journal.faults[number] = fault
                journal.lost += max(1, (LONGEST if line is None else len(line)) // _LEAST_BYTES) if not ops else 1
            for op in ops:
                if op["op_code"] in (CREATE_STUDY, CREATE_TRIAL):
                    if (text := json.dumps(op)) in created:
                        journal.faults[number] = "is there twice"
                        continue
                    created.add(text)
                journal.lines.append((number, op))
    return journal


def _operations(line: bytes | None, *, is_ended: bool) -> tuple[list[Op], str | None]:
    """Whole operations of a line, and its fault; ``None`` where it has none."""
    if line is None:
        return [], f"has more than {LONGEST} bytes"
    whole = _json(line)
    if whole is not None and _is_operation(whole[0]):
        return [whole[0]], None if is_ended else "has no end"
    operations = list(_glued(line))
    if operations:
        return operations, "is glued or cut"
    if whole is not None:
        return [], "is no operation"
    return [], "is cut off" if not is_ended else "is blank" if not line.strip() else "is no JSON"


def _json(text: bytes) -> tuple[Any] | None:
    """The JSON value of a text, in a tuple, as it may be null; ``None`` where the text is no JSON."""
    try:
        return (json.loads(text),)
    except (ValueError, RecursionError):
        return None


def _glued(line: bytes) -> Iterator[Op]:
    """Whole operations within a line, each from a place where one begins to the next such place."""
    decoder = json.JSONDecoder()
    begins = [match.start() for match in _BEGIN.finditer(line)]
    for begin, end in zip(begins, [*begins[1:], len(line)], strict=False):
        if end - begin < _LEAST_BYTES // 2:
            continue
        try:
            text = line[begin:end].decode("latin-1")
            op, length = decoder.raw_decode(text)
        except (ValueError, RecursionError):
            continue
        if _is_operation(op) and text[:length].isascii():  # as Optuna writes it
            yield op


def _is_operation(op: object) -> bool:
    if not isinstance(op, dict) or not isinstance(op.get("worker_id"), str) or not _is_count(op.get("op_code")):
        return False
    code = op["op_code"]
    if code in OF_TRIAL:
        return _is_count(op.get("trial_id")) and (code != STATE or _is_count(op.get("state")))
    if code == CREATE_TRIAL or code in OF_STUDY:
        return _is_count(op.get("study_id"))
    return code in (CREATE_STUDY, DISCARD)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
