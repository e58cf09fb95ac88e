"""How sure the front of a sweep is, by the records of its trials."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState

from slimexp.data import rows
from slimexp.data.rows import Rows, Scores
from slimexp.record import record
from slimexp.record.record import Record
from slimexp.sweeper.doubt import ByRecords, Doubt, is_open, sure
from slimexp.sweeper.promotion import Promotion
from slimexp.sweeper.sweep import Sweep

OBJECTIVES = {"cer": "min", "disk_mb": "min"}


def graded(rate: float, chance: int, noise: float) -> Rows:
    hard = np.random.default_rng(0).gamma(0.5, 0.04, 100)
    tops = (hard + rate) * 50 + np.random.default_rng(chance).uniform(0, noise, 100)
    return Rows(np.arange(100, dtype=np.uint64), tops, np.full(100, 50.0))


@pytest.mark.fast
def test_trials_are_told_apart_by_the_rows_of_their_records(tmp_path: Path, make_record: Callable[..., Record]) -> None:
    """Of two that are dominated, the one is so on every drawing of rows, and the other on some."""
    models = {"best": graded(0.0, 1, 1.0), "open": graded(0.0004, 2, 1.0), "beaten": graded(0.01, 3, 1.0)}
    trials = []
    for number, (key, row) in enumerate(models.items()):
        rows.write(tmp_path / f"scores/{key}.npz", Scores({"cer": row.figure}, {"cer": row}), {})
        metrics = {"cer": row.figure, "cer_stderr": 0.005, "disk_mb": 4.0 + number}
        one = make_record(key, stage=key, metrics=metrics, baseline={}, scores={"task": f"scores/{key}.npz"})
        record.append(tmp_path / record.FILE, replace(one, config={"pipeline": {key: {}}}))
        trials.append(trial(number, [row.figure, 4.0 + number]))
    found = ByRecords(tmp_path, OBJECTIVES)(trials, trials[:1])  # type: ignore[arg-type]
    assert found.probabilities[0] == 0 and is_open(found.probabilities[1]) and found.probabilities[2] == 1
    assert [one.number for one in found.may_belong] == [1]
    assert ByRecords(tmp_path, OBJECTIVES)([trial(0, [0.5, 1.0])], []) == Doubt()  # type: ignore[arg-type]
    assert ByRecords(tmp_path / "none", OBJECTIVES)(trials, trials[:1]) == sure(trials, trials[:1])  # type: ignore[arg-type]


def trial(number: int, values: list[float]) -> FrozenTrial:
    made = optuna.trial.create_trial(state=TrialState.COMPLETE, values=values)
    made.number = number
    return made


@pytest.mark.fast
def test_room_that_a_front_leaves_is_for_what_may_belong_to_it() -> None:
    assert Promotion(4).chosen([1, 2], [8, 9, 10]) == [1, 2, 8, 9]
    assert Promotion(2).chosen([1, 2, 3], [8]) == [1, 3]


def test_what_may_belong_to_a_front_is_promoted(make: Callable[..., Sweep], ran: Callable[[], list[str]]) -> None:
    sweep = make("x=2,3", "y=1", promotion=Promotion(2, ("z=full",)), judge=lambda trials, front: Doubt({}, trials[1:]))
    assert [one.params["x"] for one in sweep.run()] == ["2"]
    assert sorted(ran()[2:]) == ["y=1 x=2 z=full", "y=1 x=3 z=full"]
