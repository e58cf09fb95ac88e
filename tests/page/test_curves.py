"""Thinned curves: means of neighbours, gaps where a value was not finite, a size that does not grow with the sweep."""

import json
from pathlib import Path

import pytest

from slimexp.page.curves import NUMBERS, ROWS, curves, thinned

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
