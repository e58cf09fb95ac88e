"""The search on the page: what is read of its file, what became of each candidate, one message where it is damaged."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from slimexp import report
from slimexp.analysis.section import load
from slimexp.page.content import content
from slimexp.page.html import render
from slimexp.page.search import faults, files, read
from slimexp.record import record
from slimexp.record.record import append
from slimexp.record.record import read as records_of

if TYPE_CHECKING:
    from playwright.sync_api import Page

fast = pytest.mark.fast
NASTY = "</script><script>window.hacked = 1</script>"


def row(candidate: str, added: float, whole: float, **more: Any) -> dict[str, Any]:
    found = {"found_by": "solver", "added_nats": added, "whole_nats": whole, "disk_mb_composed": 5.0}
    return {"candidate": candidate, **found, "lost": "worse as a whole before training", **more}


def found() -> dict[str, Any]:
    """Two budgets; the model of the first is point ``q4`` of the sweep, which was trained on other text before."""
    first = [
        row("decoder 44.8, ffn 64", 0.1, 0.2, disk_mb_measured=5.1, cer_short=0.03, promoted={"cer": 0.02}, lost=None),
        row(
            "decoder 4444, ffn 32", 0.1, 0.3, disk_mb_measured=5.2, cer_short=0.04, lost="worse after a short training"
        ),
        row("decoder 8f, ffn 32", 0.2, 0.3, disk_mb_measured=6.2, lost="over the budget as measured"),
        row(f"decoder f, {NASTY}", 0.3, 0.4, found_by="evolution"),
    ]
    second = [row("decoder 3, ffn 32", 0.5, 0.9, disk_mb_measured=29.0, lost="nothing was trained")]
    return {
        "seconds": 75.0,
        "headline": "cer",
        "direction": "min",
        "blocks": {"decoder": 5},
        "composed_minus_measured": {"disk_mb": 0.02},
        "budgets": [
            {"limits": {"disk_mb": 6.0}, "candidates": first},
            {"limits": {"disk_mb": 30}, "candidates": second},
        ],
    }


def searched(runs: Path, what: Any) -> Path:
    path = runs / "run" / "search" / "search.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(what if isinstance(what, str) else json.dumps(what))
    return path


@fast
def test_candidates_have_their_shape_their_costs_and_their_fate(runs: Path) -> None:
    searched(runs, found())
    (search,) = content(load(runs), runs, runs)["searches"]
    assert (search["name"], search["message"], search["better"]) == ("run", "", "min")
    first, second = search["budgets"]
    assert [one["fate"] for one in first["candidates"]] == ["promoted", "trained", "over", "scored"]
    best, tried, _, evolved = first["candidates"]
    assert best["stacks"] == [["decoder", "44.8."]] and best["widths"] == "ffn 64"
    assert best["costs"] == {"disk_mb": [5.0, 5.1]} and tried["short"] == 0.04
    assert evolved["evolved"] and not best["evolved"] and evolved["widths"] == NASTY
    assert best["full"] == 0.02 and best["lost"] is None
    assert second["limits"] == {"disk_mb": 30} and second["candidates"][0]["fate"] == "scored"
    assert search["costs"]["disk_mb"]["unit"] == "MB on disk"


@fast
def test_budgets_are_sorted(runs: Path) -> None:
    what = found()
    what["budgets"].reverse()
    searched(runs, what)
    (search,) = content(load(runs), runs, runs)["searches"]
    assert [budget["limits"] for budget in search["budgets"]] == [{"disk_mb": 6.0}, {"disk_mb": 30}]


@fast
def test_a_training_that_failed_is_no_model_that_lost(runs: Path) -> None:
    what = found()
    for number, training in ((1, "full"), (3, "short")):
        what["budgets"][0]["candidates"][number] |= {"failed": training, "lost": f"its {training} training failed"}
    searched(runs, what)
    candidates = content(load(runs), runs, runs)["searches"][0]["budgets"][0]["candidates"]
    assert [one["fate"] for one in candidates] == ["promoted", "failed", "over", "failed"]


@fast
def test_a_promoted_candidate_is_found_among_the_points_by_its_figures(runs: Path) -> None:
    what = found()
    what["budgets"][0]["candidates"][0]["promoted"] = {"cer": 0.02, "disk_mb": 5.1, "exact_match": 0.61}
    searched(runs, what)
    candidates = content(load(runs), runs, runs)["searches"][0]["budgets"][0]["candidates"]
    assert candidates[0]["point"] == {"section": 0, "id": "q4"}
    assert candidates[0]["quality"]["name"] == "kept"
    assert candidates[0]["quality"]["figure"][0] == pytest.approx(60 / 65)
    assert candidates[1]["point"] is None and candidates[1]["quality"] is None
    what["budgets"][0]["candidates"][0]["promoted"]["cer"] = 0.0201  # no such record
    searched(runs, what)
    assert content(load(runs), runs, runs)["searches"][0]["budgets"][0]["candidates"][0]["point"] is None


@fast
def test_short_trainings_are_compared_with_the_best_of_their_budget(runs: Path) -> None:
    what = found()
    one = next(one for one in records_of(runs) if one.key == "q8")
    for number, cer in enumerate((0.03, 0.04)):
        metrics = {**one.metrics, "cer": cer, "cer_stderr": 0.001}
        config = {**one.config, "pipeline": {"quantize": {"key": "q8", "bits": number}}}
        append(runs / record.FILE, replace(one, key=f"short{number}", metrics=metrics, config=config))
        what["budgets"][0]["candidates"][number]["trained"] = metrics
    searched(runs, what)
    best, tried, *_ = content(load(runs), runs, runs)["searches"][0]["budgets"][0]["candidates"]
    assert best["shortMinus"] is None
    difference, low, high, basis = tried["shortMinus"]
    assert (difference, basis) == (0.01, "unpaired") and low < 0.01 < high


@fast
@pytest.mark.parametrize("given", [{"direction": "max"}, {}], ids=str)
def test_the_best_short_training_is_that_in_the_direction_of_the_records(runs: Path, given: dict[str, str]) -> None:
    """A file of before has none."""
    what: dict[str, Any] = {**found(), "headline": "acc"}
    what = {name: value for name, value in what.items() if name != "direction"} | given
    one = next(one for one in records_of(runs) if one.key == "q8")
    for number, acc in enumerate((0.8, 0.9)):
        metrics = {"acc": acc, "acc_stderr": 0.001, "disk_mb": 4.0}
        config = {**one.config, "pipeline": {"quantize": {"key": "q8", "bits": number}}}
        made = replace(one, key=f"short{number}", metrics=metrics, config=config, headline="acc", direction="max")
        append(runs / record.FILE, made)
        what["budgets"][0]["candidates"][number] |= {"acc_short": acc, "trained": metrics}
    searched(runs, what)
    (search,) = content(load(runs), runs, runs)["searches"]
    worse, best, *_ = search["budgets"][0]["candidates"]
    assert search["better"] == "max" and best["shortMinus"] is None and worse["shortMinus"][0] == -0.1


@fast
def test_words_of_a_search_stay_data(runs: Path) -> None:
    searched(runs, found())
    assert render(content(load(runs), runs, runs)).count("<script") == 2


@fast
def test_a_file_of_before_has_less(runs: Path) -> None:
    what = found()
    for name in ("direction", "blocks", "composed_minus_measured"):
        del what[name]
    for one in what["budgets"][0]["candidates"]:
        for name in ("found_by", "added_nats", "disk_mb_composed"):
            del one[name]
    what["budgets"][0]["candidates"][2]["whole_nats"] = None
    searched(runs, what)
    (search,) = content(load(runs), runs, runs)["searches"]
    first = search["budgets"][0]["candidates"]
    assert first[0]["added"] is None and first[0]["costs"]["disk_mb"] == [None, 5.1] and first[2]["fate"] == "over"


@fast
def test_a_search_that_trained_nothing_is_shown_without_records(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    what = {**found(), "budgets": found()["budgets"][1:]}
    searched(tmp_path, what)
    assert report.main([str(tmp_path)]) == 0
    assert "the page shows the search" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["pareto.html"]
    assert "nothing was trained" in (tmp_path / "pareto.html").read_text()


def _without_limits() -> dict[str, Any]:
    what = found()
    del what["budgets"][1]["limits"]
    return what


def _with_text_for_a_number() -> dict[str, Any]:
    what = found()
    what["budgets"][0]["candidates"][1]["disk_mb_measured"] = "5"
    return what


@fast
@pytest.mark.parametrize(
    ("what", "why"),
    [
        ('{"seconds": 1, "budg', "Unterminated|delimiter"),
        ("[]", "a list, not an object"),
        ({**found(), "budgets": []}, "budgets are no list"),
        ({**found(), "headline": None}, "headline is no name"),
        ({**found(), "direction": "up"}, "neither min nor max"),
        ({**found(), "seconds": None}, "search.seconds is no finite number"),
        (_without_limits(), r"budgets\[1\].limits are no figures"),
        (_with_text_for_a_number(), r"budgets\[0\].candidates\[1\].disk_mb_measured is no finite number"),
        ({**found(), "budgets": [{"limits": {"disk_mb": 0}, "candidates": []}]}, "not all > 0"),
        ({**found(), "budgets": [{"limits": {}, "candidates": ["decoder 4"]}]}, "has no candidate"),
    ],
)
def test_a_damaged_file_is_one_message_and_the_front_stays(
    runs: Path, what: Any, why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = searched(runs, what)
    with pytest.raises(ValueError, match=why):
        read(path)
    shown = content(load(runs), runs, runs)
    (search,) = shown["searches"]
    assert (
        "\n" not in search["message"] and str(path) in search["message"] and "run the search again" in search["message"]
    )
    assert search["budgets"] == [] and len(shown["sections"]) == 1
    assert faults(runs) == [search["message"]]


@fast
def test_the_report_warns_of_a_damaged_file(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    searched(runs, "{")
    assert report.main([str(runs)]) == 0
    assert capsys.readouterr().err.count("warning: ") == 1


@fast
def test_searches_are_found_below_a_folder_and_beside_a_file(runs: Path) -> None:
    path = searched(runs, found())
    assert files(runs) == files(runs / record.FILE) == [path]
    shutil.move(path.parent, runs / "elsewhere")
    assert files(runs) == []


def test_the_page_draws_a_search(
    window: "Page", runs: Path, messages: list[str], shown: Callable[["Page", Path, Any], str]
) -> None:
    what = found()
    what["budgets"][0]["candidates"][0]["promoted"] = {"cer": 0.02, "disk_mb": 5.1, "exact_match": 0.61}
    searched(runs, what)
    address = shown(window, runs, content(load(runs), runs, runs))
    page = window.locator("#search-0")
    answer = """answerOf({ better: 'min' }, { candidates: [[1, null], [2, 5], [3, 4]].map(([whole, cost]) =>
        ({ whole, full: null, fate: 'scored', costs: { disk_mb: [5, cost] } })) }).whole"""
    assert window.evaluate(answer) == 2, "the best one was not measured"
    answer = """answerOf({ better: 'max' }, { candidates:
        [[1, 3, 9], [2, 4, 8], [3, null, 10]].map(
        ([whole, short, full]) => ({ whole, short, full, fate: 'promoted', costs: {} })) }).whole"""
    assert window.evaluate(answer) == 2, "the full training's figure, of the test split, chose"
    took = "[59.4, 59.7, 75, 119.7].map((seconds) => searchSummary({ budgets: [], seconds, off: {} }))"
    assert [words.partition("took ")[2].partition(". ")[0] for words in window.evaluate(took)] == [
        "59.4 s", "1 min 0 s", "1 min 15 s", "2 min 0 s"
    ]  # fmt: skip

    def labels() -> list[str]:
        return page.locator(".candidates tbody .shape").evaluate_all("all => all.map(one => one.title)")

    assert page.locator(".answers tbody tr").count() == 2 and page.locator(".predicted svg").count() == 3
    assert labels()[0] == "decoder 44.8, ffn 64" and len(labels()) == 4
    page.locator(".candidates thead button", has_text="sum of scores").click()
    page.locator(".candidates thead button", has_text="sum of scores").click()
    assert labels()[0].startswith("decoder f")
    page.get_by_role("button", name="Show on the front").click()
    assert window.evaluate("VIEWS[0].state.chosen") == ["q4"]
    page.get_by_role("button", name="At most 30 MB on disk").click()
    assert page.locator(".candidates tbody tr").count() == 1
    assert page.locator(".answers [aria-pressed=true]").inner_text() == "At most 30 MB on disk"
    window.set_viewport_size({"width": 390, "height": 800})
    assert window.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert window.evaluate("window.hacked") is None
    assert [one for one in messages if one.partition("#")[0] not in (address, "data:,")] == []


def test_no_column_of_the_candidates_is_cut_off_in_a_window_of_1300(
    window: "Page", runs: Path, messages: list[str], shown: Callable[["Page", Path, Any], str]
) -> None:
    what = found()
    what["budgets"][0]["candidates"][0]["promoted"] = {"cer": 0.02, "disk_mb": 5.1, "exact_match": 0.61}
    searched(runs, what)
    page = content(load(runs), runs, runs)
    (search,) = page["searches"]
    first, second, *_ = search["budgets"][0]["candidates"]
    first["widths"] = "heads 4, hidden 64, experts 4, expert_bits 4"
    first["quality"] = {"name": "bits_per_byte_ratio", "figure": [0.992, 0.991, 0.992]}
    second["shortMinus"] = [0.0063, 0.0053, 0.0073, "rows"]
    window.set_viewport_size({"width": 1300, "height": 900})
    shown(window, runs, page)
    table = window.locator("#search-0 .candidates")
    assert "0.992 x dense (0.991" in table.inner_text().replace("\n", " ")
    assert table.evaluate("one => one.parentElement.scrollWidth <= one.parentElement.clientWidth")
