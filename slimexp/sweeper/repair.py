"""Damaged journals of sweeps, repaired: each trial keeps its place, and what Optuna cannot replay is left out.

Trials have no names in a journal but their place among the lines that create them, so a line that is lost must not
shift those after it. The file as it was stays beside the repaired one.
"""

import itertools
import json
import os
import shutil
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from optuna.storages import JournalStorage
from optuna.storages.journal import BaseJournalBackend
from optuna.study import StudyDirection
from optuna.trial import TrialState

from slimexp.file import integrity
from slimexp.sweeper.operation import (
    CREATE_STUDY,
    CREATE_TRIAL,
    DELETE_STUDY,
    OF_STUDY,
    OF_TRIAL,
    PARAM,
    STATE,
    USER,
    Journal,
    Op,
)

DAMAGED = ".damaged"  # added to the name of the file that is kept
_COMPLETE = TrialState.COMPLETE.value
_STATES = {state.value for state in TrialState}
_ENDS = {state.value for state in TrialState if state.is_finished()}
_SLACK = 16  # creating lines that may be missing without a trace
_LISTED = 5  # damaged lines that a warning names
_MENDER = "mended"  # worker_id of lines that are put in


@dataclass(frozen=True, kw_only=True)
class Expected:
    """The study of a sweep, as the sweep expects it whatever the journal holds.

    Attributes:
        study: Name of the study, for where the line that created it is lost.
        described: User attribute of the study that describes the sweep.
        objectives: Metric -> direction, for where that is lost too.
        mark: User attribute of every trial that has ended; it holds the trial's ``metrics``.
    """

    study: str
    described: str
    objectives: Mapping[str, StudyDirection]
    mark: str


def is_in_order(lines: Sequence[tuple[int, Op]]) -> bool:
    """Whether the study or trial of every operation exists by then, and has not ended."""
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


def is_complete(lines: Sequence[tuple[int, Op]], sweep: Expected) -> bool:
    """Whether no line is missing that other lines imply."""
    return len(_complete([op for _, op in lines], sweep)) == len(lines)


def repair(path: Path, journal: Journal, sweep: Expected) -> None:
    """Write the file anew with what is whole, keep the damaged one, and print a warning."""
    whole = _replayable(_sorted(journal, sweep), journal)
    ops = _complete(whole, sweep)
    partial = path.with_name(f"{path.name}.partial")
    integrity.remove(partial)  # a pipe would be waited for, and a link written through
    with partial.open("x", encoding="utf-8") as file:
        file.writelines(json.dumps(op, separators=(",", ":")) + "\n" for op in ops)
    copy = _keep_copy(path)
    integrity.publish(partial, path)
    summary = _summary(journal.faults, sorted(_ended(whole) - _ended(ops)))
    print(f"warning: {path}: {summary}; the file as it was is {copy.name}", file=sys.stderr, flush=True)


def _sorted(journal: Journal, sweep: Expected) -> list[Op]:
    """Operations in the order of studies, then trial by trial: its creation, its parameters and attributes, its end."""
    studies = _studies(journal, sweep)
    of_studies = [op for _, op in journal.lines if op["op_code"] in OF_STUDY and _names(op, studies)]
    deleted = [op for op in of_studies if op["op_code"] == DELETE_STUDY]
    creating = _creating(journal, studies)
    of_trials: list[list[Op]] = [[] for _ in creating]
    for number, op in journal.lines:
        if op["op_code"] in OF_TRIAL and op["trial_id"] < len(of_trials):
            of_trials[op["trial_id"]].append(op)
        elif op["op_code"] in OF_TRIAL or (op["op_code"] in OF_STUDY and not _names(op, studies)):
            journal.faults.setdefault(number, "is about what is not there")
    trials = zip(creating, of_trials, strict=True)
    ordered = (op for begin, ops in trials for op in [begin, *sorted(ops, key=lambda op: op["op_code"] == STATE)])
    return [*studies, *(op for op in of_studies if op not in deleted), *ordered, *deleted]


def _studies(journal: Journal, sweep: Expected) -> list[Op]:
    """Operations that create the studies; where one is lost, it is taken to be the first."""
    creating = [op for _, op in journal.lines if op["op_code"] == CREATE_STUDY]
    about = {op["study_id"] for _, op in journal.lines if "study_id" in op}
    if not about - set(range(len(creating))) or len(creating) not in about:
        return creating
    name = sweep.study if all(op.get("study_name") != sweep.study for op in creating) else f"{sweep.study} (lost)"
    directions = [int(direction) for direction in sweep.objectives.values()]
    return [{"op_code": CREATE_STUDY, "worker_id": _MENDER, "study_name": name, "directions": directions}, *creating]


def _names(op: Op, studies: Sequence[Op]) -> bool:
    return bool(op["study_id"] < len(studies))


def _creating(journal: Journal, studies: Sequence[Op]) -> list[Op]:
    """Operations that create the trials, in their order; where such lines are lost, blank ones in their place."""
    creating = [op for _, op in journal.lines if op["op_code"] == CREATE_TRIAL and _names(op, studies)]
    about = Counter(op["trial_id"] for _, op in journal.lines if op["op_code"] in OF_TRIAL)
    most = len(creating) + journal.lost + _SLACK
    trials = max((trial for trial, ops in about.items() if trial < most and ops > 1), default=-1) + 1
    missing, created = max(0, trials - len(creating)), list[Op]()
    for _, op in journal.lines:
        if op["op_code"] == CREATE_TRIAL and _names(op, studies):
            created.append(op)
        while missing and op["op_code"] in OF_TRIAL and len(created) <= op["trial_id"]:
            created.append(_blank(created[-1]["study_id"] if created else 0))
            missing -= 1
    return created


def _blank(study: int) -> Op:
    """The creation of a trial whose own line is lost."""
    began = datetime.now(tz=UTC).isoformat(timespec="microseconds")
    return {"op_code": CREATE_TRIAL, "worker_id": _MENDER, "study_id": study, "datetime_start": began}


class _Memory(BaseJournalBackend):
    """A journal in memory; ``at`` is the index of the operation that was replayed last."""

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
    """Operations without those that Optuna cannot replay; a blank one in place of one that creates a trial."""
    numbers = {id(op): number for number, op in journal.lines}
    backend, unplayable = _Memory(), set[int]()
    storage = JournalStorage(backend)
    backend.ops = ops
    while True:
        try:
            storage.get_all_studies()
            return [op for index, op in enumerate(ops) if index not in unplayable]
        except Exception:  # a missing key, a type, a distribution that is none ...
            op = ops[backend.at]
            journal.faults.setdefault(numbers.get(id(op), 0), "is no operation of Optuna's")
            if op["op_code"] == CREATE_TRIAL:
                ops = [*ops[: backend.at], _blank(op["study_id"]), *ops[backend.at + 1 :]]
                return _replayable([op for index, op in enumerate(ops) if index not in unplayable], journal)
            unplayable.add(backend.at)


def _complete(ops: Sequence[Op], sweep: Expected) -> list[Op]:
    """Operations with one end for each trial, and without the end of a success whose lines are not all its own.

    No sampler is to learn from half of a trial. One whose outcome is whole gets its end from it when the sweep goes on.
    """
    params: dict[int, set[str]] = defaultdict(set)
    values: dict[int, list[Any]] = {}
    for op in ops:
        if op["op_code"] == PARAM:
            params[op["trial_id"]].add(str(op.get("param_name")))
        elif op["op_code"] == USER and isinstance(op.get("user_attr"), dict) and sweep.mark in op["user_attr"]:
            values[op["trial_id"]] = _values(op["user_attr"][sweep.mark], sweep.objectives)
    every, ended, complete = set().union(*params.values()), set[int](), list[Op]()
    for op in ops:
        if op["op_code"] == STATE:
            trial = op["trial_id"]
            whole = params[trial] == every and trial in values and op.get("values") == values[trial]
            if trial in ended or op.get("state") not in _STATES or (op["state"] == _COMPLETE and not whole):
                continue
            if op["state"] in _ENDS:
                ended.add(trial)
        complete.append(op)
    return complete


def _ended(ops: Iterable[Op]) -> set[int]:
    """Numbers of the trials that have an end."""
    return {op["trial_id"] for op in ops if op["op_code"] == STATE and op["state"] not in _STATES - _ENDS}


def _values(outcome: object, objectives: Iterable[str]) -> list[Any]:
    metrics = outcome.get("metrics") if isinstance(outcome, dict) else None
    return [metrics.get(name) for name in objectives] if isinstance(metrics, dict) else []


def _keep_copy(path: Path) -> Path:
    """Keep a file under another name too, which is free; returns that."""
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


def _summary(faults: Mapping[int, str], opened: Sequence[int]) -> str:
    """``line 3 is no JSON, line 7 is blank``; for a file whose lines are whole, the trials that are opened again."""
    named = [f"line {number} {fault}" if number else fault for number, fault in sorted(faults.items())]
    more = f" and {len(named) - _LISTED} more lines" if len(named) > _LISTED else ""
    summary = f"{', '.join(named[:_LISTED])}{more}"
    if not named and opened:
        more = f" and {len(opened) - _LISTED} more" if len(opened) > _LISTED else ""
        trials = f"trial{'s' if len(opened) > 1 else ''} {', '.join(map(str, opened[:_LISTED]))}{more}"
        summary = f"{trials} did not end as the other lines say, or one of these is missing"
    summary = summary or "lines are missing or out of order"
    return f"{summary}: what is whole in it counts, and trials of which a line is lost are done again"
