"""The journal file of a sweep, opened whatever became of it: what is whole in it counts, what is damaged is left out.

A journal is one operation of Optuna's per line. A full disk, a power cut or a copy that broke off leaves lines that are
cut, glued, doubled, out of order or no JSON at all. Trials have no names in it but their place among the lines that
create them, so a line that is lost must not shift those after it. The file as it was stays beside the mended one.
"""

import itertools
import json
import os
import shutil
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from optuna.storages import JournalStorage
from optuna.storages.journal import BaseJournalBackend, JournalFileBackend, JournalFileOpenLock
from optuna.study import StudyDirection
from optuna.trial import TrialState

from slimexp.file import integrity
from slimexp.sweeper.operation import (
    CREATE_STUDY,
    CREATE_TRIAL,
    DELETE_STUDY,
    OF_STUDY,
    OF_SWEEP,
    OF_TRIAL,
    PARAM,
    STATE,
    USER,
    Journal,
    Op,
    read,
)

FILE = "journal.jsonl"
DAMAGED = ".damaged"  # added to the name of the file that is kept
DIRECTIONS = {"min": StudyDirection.MINIMIZE, "max": StudyDirection.MAXIMIZE}
_COMPLETE = TrialState.COMPLETE.value
_STATES = {state.value for state in TrialState}
_ENDS = {state.value for state in TrialState if state.is_finished()}
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
    if integrity.is_other_kind(path):
        what = "is a link" if path.is_symlink() else "is no file"
        raise ValueError(f"{path} {what}, and a sweep's journal must be one of its own: move it away, or give name=...")
    try:
        journal = read(path) if path.exists() else Journal()
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


def _objectives(lines: Sequence[tuple[int, Op]], sweep: Expected) -> Mapping[str, StudyDirection]:
    """Those that the journal says it is of: a command with others is refused, and nothing is judged by it."""
    for _, op in reversed(lines):
        if op["op_code"] == OF_SWEEP and isinstance(attributes := op.get("user_attr"), dict):
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
        if code == CREATE_STUDY:
            studies += 1
        elif code == CREATE_TRIAL or code in OF_STUDY:
            if op["study_id"] >= studies:
                return False
            trials += code == CREATE_TRIAL
        elif code in OF_TRIAL:
            if op["trial_id"] >= trials or op["trial_id"] in ended:
                return False
            if code == STATE and op.get("state") in _ENDS:
                ended.add(op["trial_id"])
    return True


def _is_complete(lines: Sequence[tuple[int, Op]], sweep: Expected) -> bool:
    """Whether no line is missing without a trace."""
    return len(_complete([op for _, op in lines], sweep)) == len(lines)


def _mend(path: Path, journal: Journal, sweep: Expected) -> None:
    """Write the file anew with what is whole, keep what it was, and say so."""
    there = _replayable(_sorted(journal, sweep), journal)
    ops = _complete(there, sweep)
    partial = path.with_name(f"{path.name}.partial")
    integrity.remove(partial)  # a pipe would be waited for, and a link written through
    with partial.open("x", encoding="utf-8") as file:
        file.writelines(json.dumps(op, separators=(",", ":")) + "\n" for op in ops)
    kept = _keep(path)
    integrity.publish(partial, path)
    said = _said(journal.faults, sorted(_ended(there) - _ended(ops)))
    print(f"warning: {path}: {said}; the file as it was is {kept.name}", file=sys.stderr, flush=True)


def _sorted(journal: Journal, sweep: Expected) -> list[Op]:
    """Studies, then trial by trial what creates it, what is said of it, and its end."""
    studies = _studies(journal, sweep)
    of_studies = [op for _, op in journal.lines if op["op_code"] in OF_STUDY and _names(op, studies)]
    deleted = [op for op in of_studies if op["op_code"] == DELETE_STUDY]
    creating = _creating(journal, studies)
    said: list[list[Op]] = [[] for _ in creating]
    for number, op in journal.lines:
        if op["op_code"] in OF_TRIAL and op["trial_id"] < len(said):
            said[op["trial_id"]].append(op)
        elif op["op_code"] in OF_TRIAL or (op["op_code"] in OF_STUDY and not _names(op, studies)):
            journal.faults.setdefault(number, "is about what is not there")
    trials = zip(creating, said, strict=True)
    ordered = (op for begin, ops in trials for op in [begin, *sorted(ops, key=lambda op: op["op_code"] == STATE)])
    return [*studies, *(op for op in of_studies if op not in deleted), *ordered, *deleted]


def _studies(journal: Journal, sweep: Expected) -> list[Op]:
    """What creates the studies; the first line is the one that is lost, where one is."""
    there = [op for _, op in journal.lines if op["op_code"] == CREATE_STUDY]
    about = {op["study_id"] for _, op in journal.lines if "study_id" in op}
    if not about - set(range(len(there))) or len(there) not in about:
        return there
    name = sweep.study if all(op.get("study_name") != sweep.study for op in there) else f"{sweep.study} (lost)"
    ways = [int(way) for way in sweep.objectives.values()]
    return [{"op_code": CREATE_STUDY, "worker_id": _MENDER, "study_name": name, "directions": ways}, *there]


def _names(op: Op, studies: Sequence[Op]) -> bool:
    return bool(op["study_id"] < len(studies))


def _creating(journal: Journal, studies: Sequence[Op]) -> list[Op]:
    """What creates the trials, by their place; where such lines are lost, others in their place."""
    there = [op for _, op in journal.lines if op["op_code"] == CREATE_TRIAL and _names(op, studies)]
    about = Counter(op["trial_id"] for _, op in journal.lines if op["op_code"] in OF_TRIAL)
    most = len(there) + journal.lost + _SLACK
    wanted = max((trial for trial, ops in about.items() if trial < most and ops > 1), default=-1) + 1
    missing, created = max(0, wanted - len(there)), list[Op]()
    for _, op in journal.lines:
        if op["op_code"] == CREATE_TRIAL and _names(op, studies):
            created.append(op)
        while missing and op["op_code"] in OF_TRIAL and len(created) <= op["trial_id"]:
            created.append(_blank(created[-1]["study_id"] if created else 0))
            missing -= 1
    return created


def _blank(study: int) -> Op:
    """A trial of which nothing is known but that it was there."""
    began = datetime.now(tz=UTC).isoformat(timespec="microseconds")
    return {"op_code": CREATE_TRIAL, "worker_id": _MENDER, "study_id": study, "datetime_start": began}


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


def _replayable(ops: list[Op], journal: Journal) -> list[Op]:
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
            if op["op_code"] == CREATE_TRIAL:
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
        if op["op_code"] == PARAM:
            params[op["trial_id"]].add(str(op.get("param_name")))
        elif op["op_code"] == USER and isinstance(op.get("user_attr"), dict) and sweep.mark in op["user_attr"]:
            values[op["trial_id"]] = _values(op["user_attr"][sweep.mark], sweep.objectives)
    every, ended, kept = set().union(*params.values()), set[int](), list[Op]()
    for op in ops:
        if op["op_code"] == STATE:
            trial = op["trial_id"]
            whole = params[trial] == every and trial in values and op.get("values") == values[trial]
            if trial in ended or op.get("state") not in _STATES or (op["state"] == _COMPLETE and not whole):
                continue
            if op["state"] in _ENDS:
                ended.add(trial)
        kept.append(op)
    return kept


def _ended(ops: Iterable[Op]) -> set[int]:
    """Trials that have an end."""
    return {op["trial_id"] for op in ops if op["op_code"] == STATE and op["state"] not in _STATES - _ENDS}


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


def _said(faults: Mapping[int, str], opened: Sequence[int]) -> str:
    """``line 3 is no JSON, line 7 is blank``; of a file whose lines are whole, the trials that are opened again."""
    named = [f"line {number} {fault}" if number else fault for number, fault in sorted(faults.items())]
    more = f" and {len(named) - _NAMED} more lines" if len(named) > _NAMED else ""
    said = f"{', '.join(named[:_NAMED])}{more}"
    if not named and opened:
        more = f" and {len(opened) - _NAMED} more" if len(opened) > _NAMED else ""
        trials = f"trial{'s' if len(opened) > 1 else ''} {', '.join(map(str, opened[:_NAMED]))}{more}"
        said = f"{trials} did not end as the other lines say, or one of these is missing"
    said = said or "lines are missing or out of order"
    return f"{said}: what is whole in it counts, and trials of which a line is lost are done again"
