"""The simulation of coverage knows the truth, and the pairs of a front are counted three ways."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.paired import METRIC, cases, coverage, fronts, main, pairs
from slimexp.data import rows
from slimexp.data.rows import Rows, Scores
from slimexp.record import record
from slimexp.record.record import Record


@pytest.mark.slow
@pytest.mark.parametrize("place", range(10))
def test_the_truth_of_a_case_is_what_many_draws_come_to(place: int) -> None:
    case = cases(200)[place]
    chances = np.random.default_rng(3).spawn(200)
    figures = np.array([[np.mean([one.figure for one in model]) for model in case.draw(chance)] for chance in chances])
    found = (1 - figures[:, 1]) / (1 - figures[:, 0]) - 1 if case.metric != METRIC else figures[:, 1] - figures[:, 0]
    assert found.mean() == pytest.approx(case.truth, abs=4 * found.std() / np.sqrt(len(found)) + 0.002)


def test_intervals_of_pairs_are_narrower_and_hold() -> None:
    found = coverage(cases(100)[0], 60)
    assert 0.85 < found.paired <= 1 and found.width < found.unpaired_width and found.unpaired >= found.paired


def test_a_front_is_told_apart_three_ways(
    tmp_path: Path, make_record: Callable[..., Record], capsys: pytest.CaptureFixture[str]
) -> None:
    chance = np.random.default_rng(0)
    lengths, hard = np.full(100, 50.0), chance.gamma(0.5, 0.04, 100)
    for place, (key, rate) in enumerate({"dense": 0.0, "near": 0.004, "far": 0.008}.items()):
        row = Rows(np.arange(100, dtype=np.uint64), (hard + rate) * lengths + chance.uniform(0, 0.1, 100), lengths)
        rows.write(tmp_path / f"scores/{key}.npz", Scores({"cer": row.figure}, {"cer": row}), {})
        metrics = {"cer": row.figure, "cer_stderr": 0.005, "disk_mb": 8.0 - place}
        one = make_record(key, stage=key, metrics=metrics, baseline={"cer": 0.02, "disk_mb": 8.0}, baseline_key="dense")
        one = replace(one, config={"pipeline": {key: {}}}, scores={"task": f"scores/{key}.npz"})
        record.append(tmp_path / record.FILE, one)
    *_, front, every = fronts(tmp_path)
    assert front.endswith("| 3 | 0 % | 0 % | 100 % |") and "| all |" in every
    assert main(["--runs", str(tmp_path), "--draws", "1", "--rows", "50"]) in (0, 1)
    assert "| paired |" in capsys.readouterr().out
    assert callable(pairs)
