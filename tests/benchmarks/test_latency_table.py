"""The benchmark of composed milliseconds: shapes are within the choices, and a large error is told by the status."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import latency_table
from slimexp.candidate.choice import FLOAT, Candidate, Choices, Place

pytestmark = pytest.mark.fast

WIDTHS = {"heads": [4, 2], "ffn": [8, 6, 4]}
CHOICES = Choices(
    stacks={"decoder": 6},
    removable=frozenset(Place("decoder", index) for index in range(1, 6)),
    widths=WIDTHS,
    combinations=[{"heads": heads, "ffn": ffn} for heads, ffn in itertools.product(*WIDTHS.values())],
    bits=[FLOAT, 8, 4],
    one_width=False,
    paired=False,
)


def test_random_shapes_are_within_the_choices() -> None:
    drawn = list(itertools.islice(latency_table.shapes(CHOICES, 0), 200))
    assert drawn[:9] == list(itertools.islice(latency_table.shapes(CHOICES, 0), 9))
    assert {len(shape.bits) for shape in drawn} == {3, 4, 5, 6}
    assert all(Place("decoder", 0) in shape.bits and shape.widths in CHOICES.combinations for shape in drawn)
    assert {bits for shape in drawn for bits in shape.bits.values()} == set(CHOICES.bits)


class Stopwatch:
    """40 ms outside the blocks, 10 ms for each; of what is asked for later, that much more by ``wrong``."""

    dense_ms = 100.0

    def __init__(self, wrong: float) -> None:
        self.wrong, self.asked = wrong, 0

    def milliseconds(self, candidates: list[Candidate], what: str) -> dict[str, float]:
        self.asked += 1
        factor = 1.0 if self.asked == 1 else 1 + self.wrong
        return {str(one): factor * (40 + 10 * len(one.bits)) for one in candidates}


@pytest.mark.parametrize(("wrong", "status"), [(0.0, 0), (0.25, 1)])
def test_a_large_median_error_fails(
    wrong: float, status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    work: Any = type("Work", (), {"choices": CHOICES, "stopwatch": Stopwatch(wrong)})()
    monkeypatch.setattr(latency_table, "prepared", lambda _: work)
    assert latency_table.main(["--runs", str(tmp_path), "--count", "4"]) == status
    content = json.loads((tmp_path / latency_table.FILE).read_text())
    assert content["median"] == pytest.approx(wrong / (1 + wrong), abs=1e-6) and len(content["shapes"]) == 4
    assert ("missed: a median error of 20.0%" in capsys.readouterr().out) == bool(status)
