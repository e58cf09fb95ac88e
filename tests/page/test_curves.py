"""Thinned curves: means of neighbours, gaps where a value was not finite, a size that does not grow with the sweep."""

import json
import os
from pathlib import Path

import pytest

from slimexp.page import curves as module
from slimexp.page.curves import NAMES, NUMBERS, ROWS, curves, thinned

pytestmark = pytest.mark.fast


def test_a_short_curve_stays_as_it_is() -> None:
    rows = [{"step": 9, "loss": 0.123456789}, {"step": 19, "loss": None, "late": 2.0}]
    assert thinned(rows, 16) == [{"step": 9, "loss": 0.1235}, {"step": 19, "loss": None, "late": 2.0}]


def test_neighbours_become_their_mean_and_one_that_is_not_finite_is_not_hidden_by_the_others() -> None:
    rows = [{"step": step, "loss": value} for step, value in enumerate([1.0, 3.0, 5.0, None, 7.0])]
    assert thinned(rows, 3) == [{"step": 1, "loss": 2.0}, {"step": 3, "loss": None}, {"step": 4, "loss": 7.0}]


def test_a_term_logged_now_and_then_is_the_mean_of_what_was_logged() -> None:
    rows = [{"step": 0, "loss": 1.0}, {"step": 1, "loss": 1.0, "rare": 4.0}, {"step": 2, "loss": 1.0}]
    assert thinned(rows, 2) == [{"step": 1, "loss": 1.0, "rare": 4.0}, {"step": 2, "loss": 1.0}]


def test_lines_that_are_no_rows_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "curves.jsonl"
    path.write_text('{"step": 0, "loss": NaN, "note": "x", "on": true}\n[1]\n{"loss": 1}\n\n{"step": 1, "lo')
    assert curves({"k": path, "missing": tmp_path / "none", "folder": tmp_path}) == {
        "k": {"step": [0], "terms": {"loss": [None]}, "each": 1}
    }


def test_many_long_curves_share_what_a_page_may_hold(tmp_path: Path) -> None:
    path = tmp_path / "curves.jsonl"
    path.write_text("".join(json.dumps({"step": step, "loss": 0.5, "ce": 0.5}) + "\n" for step in range(300)))
    (alone,) = curves({"k": path}).values()
    assert ROWS[1] // 2 < len(alone["step"]) <= ROWS[1]
    many = curves({str(index): path for index in range(120)})
    assert sum(3 * len(one["step"]) for one in many.values()) <= NUMBERS
    assert many["0"]["step"][-1] == 299 and many["0"]["each"] * len(many["0"]["step"]) >= 300


def test_a_file_that_grew_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "curves.jsonl"
    path.write_text('{"step": 0, "loss": 1}\n')
    assert curves({"k": path})["k"]["step"] == [0]
    path.write_text('{"step": 0, "loss": 1}\n{"step": 1, "loss": 1}\n')
    assert curves({"k": path})["k"]["step"] == [0, 1]


@pytest.mark.parametrize(
    "line",
    [
        '{"step": 1' + "0" * 400 + ', "loss": 1}',
        '{"step": 1' + "0" * 5_000 + ', "loss": 1}',
        '{"step": true, "loss": 1}',
        '{"step": 1.5, "loss": 1}',
        '{"step": 1, "loss": ' + "[" * 100_000,
        '{"step": 1, "' + "x" * 10_000 + '": 1}',
        "\x00\x1b\u2028",
    ],
)
def test_a_damaged_row_hides_no_other(tmp_path: Path, line: str) -> None:
    path = tmp_path / "curves.jsonl"
    path.write_text(f'{{"step": 0, "loss": 0.5}}\n{line}\n{{"step": 2, "loss": 1e308}}\n', encoding="utf-8")
    found = curves({"k": path})["k"]
    assert set(found["terms"]) == {"loss"} and found["step"][0] == 0 and found["step"][-1] == 2
    assert found["terms"]["loss"][0] == 0.5 and found["terms"]["loss"][-1] is None


def test_terms_are_bounded(tmp_path: Path) -> None:
    path = tmp_path / "curves.jsonl"
    rows = [{"step": step, **{f"{step}-{term}": 1 for term in range(300)}} for step in range(3)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert 0 < len(curves({"k": path})["k"]["terms"]) <= NAMES


def test_what_is_no_file_or_too_large_is_no_curve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "large").write_text('{"step": 0, "loss": 1}\n')
    monkeypatch.setattr(module, "LONGEST", 10)
    paths = {name: tmp_path / name for name in ("pipe", "large", "\0")}
    assert curves({**paths, "device": Path("/dev/zero")}) == {}
