"""What the benchmark of the teacher cache says of records and gradients."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from benchmarks.teacher_cache import Arm, faults, gradients, of_records, print_arms
from slimexp.loss.sample import Layout

Make = Callable[..., Any]
GOOD = {"distill_cache_bytes_per_label": 98.0, **{f"distill_cache_kl_error_t{t}": 0.002 for t in (1, 2, 4, 8)}}
ONE_PASS = [0.0, 1.0, 1.0, 1.0, 1.0, 1.0]


def arms(seconds: float = 50.0, found: list[float] = ONE_PASS, **metrics: float) -> dict[str, Arm]:
    cached = Arm(seconds, found, GOOD | metrics)
    return {"none": Arm(100.0, [], {}), "exact": cached, "compact": cached}


@pytest.mark.fast
def test_records_of_a_sweep(make_record: Make) -> None:
    rows = [make_record("d", parent=None, stage="dense", technique="dense")]
    rows += [
        make_record(f"a{hit}", metrics={"distill_cache_hit_ratio": hit}, baseline={"cer": 0.1}) for hit in (0.0, 1.0)
    ]
    made = of_records([row.to_json() for row in rows], 3.0)
    assert made.seconds == 3.0 and made.found == [0.0, 1.0]


@pytest.mark.fast
def test_what_is_not_as_it_should_be(capsys: pytest.CaptureFixture[str]) -> None:
    assert faults(arms(), quick=False) == []
    assert len(faults(arms(found=[0.0, 0.0, *ONE_PASS[2:]]), quick=True)) == 2
    assert faults(arms(distill_cache_bytes_per_label=101.0), quick=True) == [
        "compact takes more than 100 bytes a label"
    ]
    assert faults(arms(distill_cache_kl_error_t4=0.02), quick=False) == ["an estimate is off by more than 1%"]
    assert faults(arms(seconds=70.0), quick=True) == [] and len(faults(arms(seconds=70.0), quick=False)) == 2
    print_arms(arms())
    assert "| compact | 50 | 0.50 | 98 | 0% .. 100% | 0.20% |" in capsys.readouterr().out


def test_a_bias_shows_in_the_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.teacher_cache.DRAWS", 100)
    teacher, student = 3 * torch.randn(4, 200), torch.randn(4, 200)
    layout = Layout(200, head=4, samples=8, nodes=6, lowest=1.0, highest=8.0)
    deviation, noise = gradients(teacher, student, layout, 2.0)
    assert 0.5 < deviation < 1.5 and 0 < noise < 10
    from slimexp.loss.sample import Sample

    right = Sample.divergence
    monkeypatch.setattr(Sample, "divergence", lambda self, student, t: right(self, 1.3 * student, t))
    assert gradients(teacher, student, layout, 2.0)[0] > 1.5
