"""The Optuna study of a sweep: a new one, or that of the same sweep, to go on with."""

import json
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import optuna
from optuna.samplers import BaseSampler
from optuna.study import Study, StudyDirection

from slimexp.sweeper.changes import changes
from slimexp.sweeper.repair import Expected
from slimexp.sweeper.storage import lock_in_database, open_storage, study_name
from slimexp.sweeper.trial_result import OUTCOME

_SWEEP = "sweep"  # user attribute of the study


def open_study(
    folder: Path,
    *,
    storage: str | None,
    lock: ExitStack,
    sampler: BaseSampler,
    objectives: Mapping[str, StudyDirection],
    description: Mapping[str, Any],
) -> Study:
    """The study of a sweep, with no trial in it or with those of earlier commands.

    Args:
        folder: Where the sweep keeps its journal.
        storage: URL of a database; ``None`` for the journal file.
        lock: The controller's lock, to which that of a database is added.
        sampler: Proposes the trials.
        objectives: Metric -> direction.
        description: What the sweep is of, for comparison with a stored one: values of its keys, objectives, content.

    Raises:
        ValueError: The folder holds another sweep, or another process is at work on it.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    expected = Expected(study=str(folder), described=_SWEEP, objectives=objectives, mark=OUTCOME)
    opened = open_storage(storage, folder, expected)
    name = study_name(opened, folder, journal=storage is None)
    lock_in_database(lock, storage, name)
    directions = list(objectives.values())
    if name in optuna.get_all_study_names(opened):  # looked up first: create_study prints a line when it is there
        study = optuna.load_study(study_name=name, storage=opened, sampler=sampler)
    else:
        study = optuna.create_study(
            study_name=name, storage=opened, sampler=sampler, directions=directions, load_if_exists=True
        )
    stored = study.user_attrs.get(_SWEEP)
    if not isinstance(stored, Mapping):
        if study.get_trials(deepcopy=False):
            print(f"warning: what {folder} is a sweep of is lost: it is taken to be this one", file=sys.stderr)
        study.set_user_attr(_SWEEP, dict(description))
    elif changed := changes(stored, json.loads(json.dumps(description))):
        raise ValueError(
            f"{folder} holds another sweep ({changed}): repeat its command to go on with it, or give name=... "
            "for a new one"
        )
    if study.directions != directions:
        raise ValueError(f"the journal in {folder} is of other objectives: give name=... for a new sweep")
    return study
