"""The journal file of a sweep, opened whatever became of it: what is whole in it counts, what is damaged is left out.

A journal is one operation of Optuna's per line. A full disk, a power cut or a copy that broke off leaves lines that are
cut, glued, doubled, out of order or no JSON at all; such a file is repaired before it is opened.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.study import StudyDirection

from slimexp.file import integrity
from slimexp.sweeper.operation import OF_SWEEP, Journal, Op, read
from slimexp.sweeper.repair import Expected, is_complete, is_in_order, repair

FILE = "journal.jsonl"
DIRECTIONS = {"min": StudyDirection.MINIMIZE, "max": StudyDirection.MAXIMIZE}


class _Unlocked(JournalFileOpenLock):
    """For a journal that ``alone`` guards already: Optuna's own lock outlives a killed process by half a minute."""

    def __init__(self) -> None:
        pass

    def acquire(self) -> bool:
        return True

    def release(self) -> None:
        pass


def open_journal(path: Path, sweep: Expected) -> JournalStorage:
    """The journal at ``path``, repaired first where it is damaged; the caller is the only process that writes it.

    Args:
        path: The file; a new one where there is none.
        sweep: The sweep that it should be of.

    Raises:
        ValueError: It is no file, or cannot be read.
    """
    if integrity.is_other_kind(path):
        kind = "is a link" if path.is_symlink() else "is no file"
        raise ValueError(f"{path} {kind}, and a sweep's journal must be one of its own: move it away, or give name=...")
    try:
        journal = read(path) if path.exists() else Journal()
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}): the sweep's trials are written there") from error
    sweep = replace(sweep, objectives=_objectives(journal.lines, sweep))
    if not journal.faults and is_in_order(journal.lines) and is_complete(journal.lines, sweep):
        try:
            return _opened(path)
        except OSError:
            raise
        except Exception as error:  # whatever a line that is JSON, and no operation, makes Optuna raise
            journal.faults[0] = f"Optuna cannot replay it ({type(error).__name__})"
    repair(path, journal, sweep)
    return _opened(path)


def _opened(path: Path) -> JournalStorage:
    return JournalStorage(JournalFileBackend(str(path), lock_obj=_Unlocked()))


def _objectives(lines: Sequence[tuple[int, Op]], sweep: Expected) -> Mapping[str, StudyDirection]:
    """Objectives that the journal itself names; where it names none, those of the sweep.

    A command with other objectives is refused afterwards, and its own must not decide what is repaired.
    """
    for _, op in reversed(lines):
        if op["op_code"] == OF_SWEEP and isinstance(attributes := op.get("user_attr"), dict):
            described = attributes.get(sweep.described)
            stored = described.get("objectives") if isinstance(described, dict) else None
            if (
                stored
                and isinstance(stored, dict)
                and all(direction in ("min", "max") for direction in stored.values())
            ):
                return {name: DIRECTIONS[direction] for name, direction in stored.items()}
    return sweep.objectives
