"""The journal file of a sweep, opened whatever became of it: what is whole in it counts, what is damaged is left out.

A journal is one operation of Optuna's per line. A full disk, a power cut or a copy that broke off leaves lines that are
cut, glued, doubled, out of order or no JSON at all. Trials have no names in it but their place among the lines that
create them, so a line that is lost must not shift those after it. The file as it was stays beside the mended one.
"""

import itertools
import json
import os
import re
import shutil
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from optuna.storages import JournalStorage
from optuna.storages.journal import BaseJournalBackend, JournalFileBackend, JournalFileOpenLock
from optuna.study import StudyDirection
from optuna.trial import TrialState

from slimexp import regular_file
from slimexp.integrity import is_other_kind

Op = dict[str, Any]

FILE = "journal.jsonl"
DAMAGED = ".damaged"  # added to the name of the file that is kept
LONGEST = 1 << 26  # bytes of a line
DIRECTIONS = {"min": StudyDirection.MINIMIZE, "max": StudyDirection.MAXIMIZE}
_CREATE_STUDY, _OF_SWEEP, _CREATE_TRIAL, _PARAM, _STATE, _USER = 0, 2, 4, 5, 6, 8  # Optuna's JournalOperation
_DELETE_STUDY, _DISCARD = 1, 10  # which no sweep writes
_OF_STUDY = {_DELETE_STUDY, _OF_SWEEP, 3}  # 3: attributes of Optuna's own
_OF_TRIAL = {_PARAM, _STATE, 7, _USER, 9}
_COMPLETE = TrialState.COMPLETE.value
_STATES = {state.value for state in TrialState}
_ENDS = {state.value for state in TrialState if state.is_finished()}
_BEGIN = re.compile(rb'\{\s*"op_code"')
_LEAST_BYTES = 100  # of a line that creates a trial
_SLACK = 16  # creating lines that may be missing without a trace
_NAMED = 5  # damaged lines that a warning names
_MENDER = "mended"  # worker_id of lines that are put in


class _Unlocked(JournalFileOpenLock):
    """For a journal that ``alone`` guards already: Optuna's own lock outlives a killed process by half a minute."""

    def __init__(self) -> None:
        pass

    def acquire(self) -> bool:
        return True

    def release(self) -> None:
        pass


@dataclass
class _Journal:
    """A journal as read.

    Attributes:
        lines: Number of the line -> whole operations in it, in their order.
        faults: What is wrong, by number of the line; 0 for the file.
        lost: Operations that the damaged lines may have held.
    """

    lines: list[tuple[int, Op]] = field(default_factory=list)
    faults: dict[int, str] = field(default_factory=dict)
    lost: int = 0


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What a sweep knows of its study without the journal.

    Attributes:
        study: Its name, where the line that created it is lost.
        described: User attribute of the study that says what it is a sweep of.
        objectives: Metric -> direction, where that is lost too.
        mark: User attribute of every trial that has ended, with its ``metrics``.
    """

    study: str
    described: str
    objectives: Mapping[str, StudyDirection]
    mark: str


def open_journal(path: Path, sweep: Expected) -> JournalStorage:
    """The journal at ``path``, mended first where it is damaged; the caller is the only process that writes it.

    Args:
        path: Of the file; a new one where there is none.
        sweep: Whose it is.

    Raises:
        ValueError: It is no file, or cannot be read.
    """
    if is_other_kind(path):
        what = "is a link" if path.is_symlink() else "is no file"
        raise ValueError(f"{path} {what}, and a sweep's journal must be one of its own: move it away, or give name=...")
    try:
        journal = _read(path) if path.exists() else _Journal()
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}): the sweep's trials are written there") from error
    sweep = replace(sweep, objectives=_objectives(journal.lines, sweep))
    if not journal.faults and _is_in_order(journal.lines) and _is_complete(journal.lines, sweep):
        try:
            return _opened(path)
        except OSError:
            raise
        except Exception as error:  # whatever a line that is JSON, and no operation, makes Optuna raise
            journal.faults[0] = f"Optuna cannot replay it ({type(error).__name__})"
    _mend(path, journal, sweep)
    return _opened(path)


def _opened(path: Path) -> JournalStorage:
    return JournalStorage(JournalFileBackend(str(path), lock_obj=_Unlocked()))


# --- reading ---------------------------------------------------------------------------------------------------------


def _read(path: Path) -> _Journal:
    journal, created = _Journal(), set[str]()
    with regular_file.opened(path) as file:
        size = os.fstat(file.fileno()).st_size
        is_ended = os.pread(file.fileno(), 1, max(0, size - 1)) == b"\n"
        for number, line in enumerate(regular_file.lines(file, LONGEST), 1):
            ops, fault = _operations(line, is_ended=is_ended or file.tell() < size)
            if fault:
                journal.faults[number] = fault
                journal.lost += max(1, (LONGEST if line is None else len(line)) // _LEAST_BYTES) if not ops else 1
            for op in ops:
                if op["op_code"] in (_CREATE_STUDY, _CREATE_TRIAL):
                    if (text := json.dumps(op)) in created:
                        journal.faults[number] = "is there twice"
                        continue
                    created.add(text)
                journal.lines.append((number, op))
    return journal


def _operations(line: bytes | None, *, is_ended: bool) -> tuple[list[Op], str | None]:
    """Whole operations of a line, and what is wrong with it."""
    if line is None:
        return [], f"has more than {LONGEST} bytes"
    whole = _json(line)
    if whole is not None and _is_operation(whole[0]):
        return [whole[0]], None if is_ended else "has no end"
    found = list(_glued(line))
    if found:
        return found, "is glued or cut"
    if whole is not None:
        return [], "is no operation"
    return [], "is cut off" if not is_ended else "is blank" if not line.strip() else "is no JSON"


def _json(text: bytes) -> tuple[Any] | None:
    """A value, in a tuple; ``None`` where it is none."""
    try:
        return (json.loads(text),)
    except (ValueError, RecursionError):
        return None


def _glued(line: bytes) -> Iterator[Op]:
    """Operations within a line: what is whole between two places where one begins."""
    decoder = json.JSONDecoder()
    begins = [found.start() for found in _BEGIN.finditer(line)]
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
    if code in _OF_TRIAL:
        return _is_count(op.get("trial_id"))
    if code == _CREATE_TRIAL or code in _OF_STUDY:
        return _is_count(op.get("study_id"))
    return code in (_CREATE_STUDY, _DISCARD)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _objectives(lines: Sequence[tuple[int, Op]], sweep: Expected) -> Mapping[str, StudyDirection]:
    """Those that the journal says it is of: a command with others is refused, and nothing is judged by it."""
    for _, op in reversed(lines):
        if op["op_code"] == _OF_SWEEP and isinstance(attributes := op.get("user_attr"), dict):
            described = attributes.get(sweep.described)
            known = described.get("objectives") if isinstance(described, dict) else None
            if known and isinstance(known, dict) and all(way in ("min", "max") for way in known.values()):
                return {name: DIRECTIONS[way] for name, way in known.items()}
    return sweep.objectives


# --- mending ---------------------------------------------------------------------------------------------------------


def _is_in_order(lines: Sequence[tuple[int, Op]]) -> bool:
    """Whether every operation finds what it is about, and comes before its end."""
    studies = trials = 0
    ended = set()
    for _, op in lines:
        code = op["op_code"]
        if code == _CREATE_STUDY:
            studies += 1
        elif code == _CREATE_TRIAL or code in _OF_STUDY:
            if op["study_id"] >= studies:
                return False
            trials += code == _CREATE_TRIAL
        elif code in _OF_TRIAL:
            if op["trial_id"] >= trials or op["trial_id"] in ended:
                return False
            if code == _STATE and op.get("state") in _ENDS:
                ended.add(op["trial_id"])
    return True


def _is_complete(lines: Sequence[tuple[int, Op]], sweep: Expected) -> bool:
    """Whether no line is missing without a trace."""
    return len(_complete([op for _, op in lines], sweep)) == len(lines)


def _mend(path: Path, journal: _Journal, sweep: Expected) -> None:
    """Write the file anew with what is whole, keep what it was, and say so."""
    ops = _complete(_replayable(_sorted(journal, sweep), journal), sweep)
    partial = path.with_name(f"{path.name}.partial")
    partial.unlink(missing_ok=True)  # a pipe would be waited for, and a link written through
    with partial.open("x", encoding="utf-8") as file:
        file.writelines(json.dumps(op, separators=(",", ":")) + "\n" for op in ops)
        file.flush()
        os.fsync(file.fileno())
    kept = _keep(path)
    os.replace(partial, path)
    print(f"warning: {path}: {_said(journal.faults)}; the file as it was is {kept.name}", file=sys.stderr, flush=True)


def _sorted(journal: _Journal, sweep: Expected) -> list[Op]:
    """Studies, then trial by trial what creates it, what is said of it, and its end."""
    studies = _studies(journal, sweep)
    of_studies = [op for _, op in journal.lines if op["op_code"] in _OF_STUDY and _names(op, studies)]
    deleted = [op for op in of_studies if op["op_code"] == _DELETE_STUDY]
    creating = _creating(journal, studies)
    said: list[list[Op]] = [[] for _ in creating]
    for number, op in journal.lines:
        if op["op_code"] in _OF_TRIAL and op["trial_id"] < len(said):
            said[op["trial_id"]].append(op)
        elif op["op_code"] in _OF_TRIAL or (op["op_code"] in _OF_STUDY and not _names(op, studies)):
            journal.faults.setdefault(number, "is about what is not there")
    trials = zip(creating, said, strict=True)
    ordered = (op for begin, ops in trials for op in [begin, *sorted(ops, key=lambda op: op["op_code"] == _STATE)])
    return [*studies, *(op for op in of_studies if op not in deleted), *ordered, *deleted]


def _studies(journal: _Journal, sweep: Expected) -> list[Op]:
    """What creates the studies; the first line is the one that is lost, where one is."""
    there = [op for _, op in journal.lines if op["op_code"] == _CREATE_STUDY]
    about = {op["study_id"] for _, op in journal.lines if "study_id" in op}
    if not about - set(range(len(there))) or len(there) not in about:
        return there
    name = sweep.study if all(op.get("study_name") != sweep.study for op in there) else f"{sweep.study} (lost)"
    ways = [int(way) for way in sweep.objectives.values()]
    return [{"op_code": _CREATE_STUDY, "worker_id": _MENDER, "study_name": name, "directions": ways}, *there]


def _names(op: Op, studies: Sequence[Op]) -> bool:
    return bool(op["study_id"] < len(studies))


def _creating(journal: _Journal, studies: Sequence[Op]) -> list[Op]:
    """What creates the trials, by their place; where such lines are lost, others in their place."""
    there = [op for _, op in journal.lines if op["op_code"] == _CREATE_TRIAL and _names(op, studies)]
    about = Counter(op["trial_id"] for _, op in journal.lines if op["op_code"] in _OF_TRIAL)
    most = len(there) + journal.lost + _SLACK
    wanted = max((trial for trial, ops in about.items() if trial < most and ops > 1), default=-1) + 1
    missing, created = max(0, wanted - len(there)), list[Op]()
    for _, op in journal.lines:
        if op["op_code"] == _CREATE_TRIAL and _names(op, studies):
            created.append(op)
        while missing and op["op_code"] in _OF_TRIAL and len(created) <= op["trial_id"]:
            created.append(_blank(created[-1]["study_id"] if created else 0))
            missing -= 1
    return created


def _blank(study: int) -> Op:
    """A trial of which nothing is known but that it was there."""
    began = datetime.now(tz=UTC).isoformat(timespec="microseconds")
    return {"op_code": _CREATE_TRIAL, "worker_id": _MENDER, "study_id": study, "datetime_start": began}


class _Memory(BaseJournalBackend):
    """Operations that are replayed; ``at`` is the last one that was."""

    def __init__(self) -> None:
        self.ops: list[Op] = []
        self.at = 0

    def read_logs(self, log_number_from: int) -> Iterator[Op]:
        for place in range(log_number_from, len(self.ops)):
            self.at = place
            yield self.ops[place]

    def append_logs(self, logs: list[Op]) -> None:
        raise AssertionError("nothing is written here")


def _replayable(ops: list[Op], journal: _Journal) -> list[Op]:
    """Without those that Optuna cannot replay; another in place of one that creates a trial."""
    numbers = {id(op): number for number, op in journal.lines}
    backend, wrong = _Memory(), set[int]()
    storage = JournalStorage(backend)
    backend.ops = ops
    while True:
        try:
            storage.get_all_studies()
            return [op for index, op in enumerate(ops) if index not in wrong]
        except Exception:  # a missing key, a type, a distribution that is none ...
            op = ops[backend.at]
            journal.faults.setdefault(numbers.get(id(op), 0), "is no operation of Optuna's")
            if op["op_code"] == _CREATE_TRIAL:
                ops = [*ops[: backend.at], _blank(op["study_id"]), *ops[backend.at + 1 :]]
                return _replayable([op for index, op in enumerate(ops) if index not in wrong], journal)
            wrong.add(backend.at)


def _complete(ops: Sequence[Op], sweep: Expected) -> list[Op]:
    """Each trial with one end, and without that of a success of which a line is lost or another trial's.

    No sampler is to learn from half of a trial. One whose outcome is whole gets its end anew from it.
    """
    params: dict[int, set[str]] = defaultdict(set)
    values: dict[int, list[Any]] = {}
    for op in ops:
        if op["op_code"] == _PARAM:
            params[op["trial_id"]].add(str(op.get("param_name")))
        elif op["op_code"] == _USER and isinstance(op.get("user_attr"), dict) and sweep.mark in op["user_attr"]:
            values[op["trial_id"]] = _values(op["user_attr"][sweep.mark], sweep.objectives)
    every, ended, kept = set().union(*params.values()), set[int](), list[Op]()
    for op in ops:
        if op["op_code"] == _STATE:
            trial = op["trial_id"]
            whole = params[trial] == every and trial in values and op.get("values") == values[trial]
            if trial in ended or op.get("state") not in _STATES or (op["state"] == _COMPLETE and not whole):
                continue
            if op["state"] in _ENDS:
                ended.add(trial)
        kept.append(op)
    return kept


def _values(outcome: object, objectives: Iterable[str]) -> list[Any]:
    metrics = outcome.get("metrics") if isinstance(outcome, dict) else None
    return [metrics.get(name) for name in objectives] if isinstance(metrics, dict) else []


def _keep(path: Path) -> Path:
    """Give a file another name too, which is not taken."""
    for number in itertools.count(1):
        name = path.with_name(f"{path.name}{DAMAGED}{'' if number == 1 else f'-{number}'}")
        try:
            os.link(path, name)
        except FileExistsError:
            continue
        except OSError:  # a filesystem without links
            if os.path.lexists(name):
                continue
            shutil.copyfile(path, name)
        return name
    raise AssertionError


def _said(faults: Mapping[int, str]) -> str:
    """``line 3 is no JSON, line 7 is blank``."""
    named = [f"line {number} {fault}" if number else fault for number, fault in sorted(faults.items())]
    more = f" and {len(named) - _NAMED} more lines" if len(named) > _NAMED else ""
    said = f"{', '.join(named[:_NAMED])}{more}" if named else "lines are missing or out of order"
    return f"{said}: what is whole in it counts, and trials of which a line is lost are done again"
