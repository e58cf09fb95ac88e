"""A section as a table: marks with their meanings, and files that spreadsheets and programs read."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest

from slimexp.analysis.section import Section
from slimexp.analysis.table import table, write_csv, write_json

pytestmark = pytest.mark.fast


def test_marks_stand_before_points_and_are_explained(usual: Section) -> None:
    title, head, *lines = table(usual).splitlines()
    assert title == "spelling: cer" and head.split()[:3] == ["model", "seeds", "cer"]
    assert [line.split()[0] for line in lines[:4]] == ["*?", "*", "?", "!"]
    assert "! slower than dense" in lines and any(line.startswith("? not separable") for line in lines)
    assert not any(line.startswith(("z ", "~ ", "☆ ")) for line in lines)


def test_without_probabilities_there_is_no_column_of_them(usual: Section) -> None:
    assert "dominated" in table(usual).splitlines()[1]
    assert "dominated" not in table(replace(usual, probabilities=[None] * 4)).splitlines()[1]


def test_a_front_of_three_has_its_volume_unless_that_is_infinite(usual: Section) -> None:
    three = replace(usual, z="latency_ratio", z_direction="min", corner=[16.0, 0.08, 1.0], volume=0.25)
    assert "hypervolume of the three: 0.250, in units of the worst that counts (disk_mb 16" in table(three)
    assert "hypervolume" not in table(replace(three, volume=None))


def test_files_hold_a_row_for_each_point(usual: Section, tmp_path: Path) -> None:
    section = replace(usual, hypervolume_history=[0.1, 0.2, 0.3])
    write_csv([section, section], tmp_path / "report.csv")
    write_json([section], tmp_path / "report.json")
    rows = list(csv.DictReader((tmp_path / "report.csv").open()))
    assert [row["label"] for row in rows] == ["dense", "best", "near", "slow"] * 2
    assert [row["hypervolume_after"] for row in rows[:4]] == ["", "0.1", "0.2", "0.3"]
    assert (rows[0]["latency_ratio"], rows[1]["latency_ratio"]) == ("1.0", "")
    assert float(rows[3]["cer_error"]) == pytest.approx(0.001)
    (row,) = json.loads((tmp_path / "report.json").read_text())
    assert row["finished"] == [1, 2, 3] and row["points"][3]["figures"]["latency_ratio"]["mean"] == 1.5
