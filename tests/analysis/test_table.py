"""A section as a table: marks with their meanings, and files that spreadsheets and programs read."""

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from slimexp.analysis.section import Section, sections
from slimexp.analysis.table import table, write_csv, write_json

pytestmark = pytest.mark.fast

Make = Callable[..., Any]


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


def test_language_models_have_perplexity_and_its_ratio_in_place_of_what_is_kept(
    make_point: Make, make_section: Make, likelihoods: Make
) -> None:
    rows = {
        "dense": {**likelihoods(10.0), "perplexity_ratio": 1.0},
        "best": {**likelihoods(12.0), "perplexity_ratio": 1.2},
    }
    points = [make_point(label, [{**figures, "disk_mb": 4.0}]) for label, figures in rows.items()]
    language = {"headline": "perplexity", "y": "perplexity", "quality": "perplexity_ratio", "trivial": None}
    shown = table(make_section(points, [0, 1], [None, None], **language))
    _, head, _, best, *_ = shown.splitlines()
    assert head.split()[:5] == ["model", "seeds", "perplexity", "x", "dense"] and "bits_per_byte" in head
    assert best.split()[:7] == ["*", "best", "1", "12", "±", "0.12", "1.2"]
    assert "perplexity is per token" in shown and "no model" not in shown and "kept" not in shown
    mixed = {"headline": "bits_per_byte", "y": "bits_per_byte", "quality": "bits_per_byte_ratio", "trivial": None}
    assert "split text into different tokens" in table(make_section(points, [0, 1], [None, None], **mixed))


def test_an_untrained_dense_model_has_no_column_of_what_is_kept(usual: Section) -> None:
    shown = table(replace(usual, untrained=True))
    assert (
        "kept" not in shown.splitlines()[1] and "dense is untrained: in cer" in shown and "(0.02 beside 0.08)" in shown
    )
    assert "no model (best trivial guess)" in shown


def test_differences_from_dense_have_a_column(make: Make) -> None:
    ends = ("_low", "", "_high")
    rows = {"same": (-0.001, 0.001, 0.003), "worse": (0.004, 0.006, 0.008)}
    records = [
        make(
            "prune",
            {"cer": 0.015 + found[1], "disk_mb": 4.0}
            | {f"cer_difference{e}": v for e, v in zip(ends, found, strict=True)},
            {"prune": {"x": name}},
        )
        for name, found in rows.items()
    ]
    (section,) = sections(records)
    text = table(section)
    assert "minus dense" in text.splitlines()[1] and "= where that holds 0: not separable from dense" in text
    assert "+0.001 [-0.001, +0.003]=" in text and "+0.006 [+0.004, +0.008] " in text


def test_how_differences_are_judged_is_said_of_several_points(usual: Section, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a sentence; a point alone beside the dense model has no other to differ from."""
    bases = {"rows": 2, "unpaired": 1}
    monkeypatch.setattr(type(usual.comparisons), "bases", lambda _, metric: bases if metric == "cer" else {})
    notes = [line for line in table(usual).splitlines() if "points differ" in line]
    assert notes == [
        "whether two points differ in cer is judged from their scores on the same test rows, drawn again many times, "
        "and from the spread over seeds (2 of the points); each from its own error alone, although models err together "
        "on the same test rows (1 of the points)"
    ]
    assert "points differ" not in table(replace(usual, points=usual.points[:2], front=[1], probabilities=[None] * 2))
