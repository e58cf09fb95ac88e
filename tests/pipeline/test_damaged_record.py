"""Figures, curves, locks and records that are damaged or lost are written again, and no stage is trained for them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from slimexp.record import record

Make = Callable[..., Any]
Damage = Callable[[Path], None]
LAST = "prune"
OF_CONTENT = ["cut", "cut_at_the_end", "empty", "other", "flip", "longer"]
OF_KIND = ["folder", "pipe", "link_to_nothing"]


@pytest.mark.parametrize("name", ["measures.json", "curves.jsonl"])
@pytest.mark.parametrize("damage", [*OF_CONTENT, "huge", *OF_KIND], indirect=["damage"])
def test_figures_that_are_damaged_are_written_again(
    finished: Any, copy: Make, again: Make, fits: list[str], name: str, damage: Damage
) -> None:
    run = copy(finished[0])
    damage(run.stage() / name)
    (line,) = again(run)
    assert line.startswith(f"{LAST}: its {name} is damaged (") and line.endswith("again") and fits == []


def test_figures_that_are_others_are_taken_again(finished: Any, copy: Make, again: Make, fits: list[str]) -> None:
    run = copy(finished[0])
    file = run.stage("dense") / "measures.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"metrics": {"disk_mb": 1.0}}))
    assert len(again(run)) == 1 and fits == []


def test_curves_that_were_deleted_are_written_again(finished: Any, copy: Make, again: Make) -> None:
    run = copy(finished[0])
    (run.stage() / "curves.jsonl").unlink()
    assert again(run) == []


@pytest.mark.parametrize("damage", ["folder", "pipe", "link_to_nothing"], indirect=["damage"])
def test_a_lock_that_is_no_file_is_put_right(finished: Any, copy: Make, again: Make, damage: Damage) -> None:
    run = copy(finished[0])
    damage(run.stage() / "lock")
    (line,) = again(run)
    assert line.startswith(f"{LAST}: its lock is damaged (it is no file)") and (run.stage() / "lock").is_file()


def junk(path: Path) -> None:
    path.write_bytes(b"\x00\xff\n[]\n{}\n" + path.read_bytes()[:-200])


@pytest.mark.parametrize("damage", ["missing", "cut_at_the_end", junk], indirect=["damage"])
def test_records_that_were_lost_are_appended_again(
    finished: Any, copy: Make, fits: list[str], damage: Damage, recwarn: pytest.WarningsRecorder
) -> None:
    run = copy(finished[0])
    damage(run.runs / record.FILE)
    assert run.pipeline().run() == finished[1] and fits == []
    assert record.read(run.runs) == record.read(finished[0].runs)
    before = (run.runs / record.FILE).read_bytes()
    run.pipeline().run()
    assert (run.runs / record.FILE).read_bytes() == before


@pytest.mark.parametrize("damage", OF_KIND, indirect=["damage"])
def test_a_place_where_no_record_goes_is_refused_first(finished: Any, copy: Make, damage: Damage) -> None:
    run = copy(finished[0])
    damage(run.runs / record.FILE)
    with pytest.raises(ValueError, match=r"records\.jsonl must be a file, .* move what is there, or set runs=FOLDER"):
        run.pipeline()
