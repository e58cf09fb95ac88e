"""The page in a real Chromium: it computes what Python computes, by mouse, by keyboard and on a phone."""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from slimexp.analysis import pareto
from slimexp.analysis.section import Section, load
from slimexp.page.content import content
from slimexp.page.server import Server
from slimexp.record import record
from slimexp.record.record import append, read
from slimexp.select import Budget, choose

if TYPE_CHECKING:
    from playwright.sync_api import Page


def keys(page: "Page", script: str) -> list[str]:
    return sorted(page.evaluate(script))


def dots(page: "Page", kind: str = "") -> list[str]:
    found = page.locator(f"svg .point{kind}").evaluate_all("all => all.map(one => one.dataset.focus)")
    return sorted(one.removeprefix("dot ") for one in found)


def front(section: Section, x: str, y: str, ways: Sequence[str]) -> list[str]:
    """Keys of the front by slimexp.analysis.pareto; what is no better than the guess is not on it."""
    points = [point for point in section.points if not point.value("cer") >= 0.08]
    indices = pareto.front([(point.value(x), point.value(y)) for point in points], ways)
    return sorted(" ".join(points[index].keys) for index in indices)


def test_front_and_marks_are_those_of_python(page: "Page", section: Section) -> None:
    expected = sorted(" ".join(section.points[index].keys) for index in section.front)
    assert keys(page, "[...VIEWS[0].onFront].map((point) => point.id)") == expected
    assert dots(page) == ["d", "p", "q2", "q4", "q8", "s0 s1"]
    assert dots(page, ":has(.slow)") == ["q2", "q4"]
    assert dots(page, ":has(.bars)") == ["s0 s1"]
    assert "1 not drawn" in page.inner_text("article > p")


@pytest.mark.parametrize(
    ("x", "y", "ways"),
    [
        ("latency_ratio", "exact_match", ("min", "max")),
        ("kept", "disk_mb", ("max", "min")),
        ("cer", "cer", ("min",) * 2),
    ],
)
def test_other_axes_have_their_own_front(page: "Page", section: Section, x: str, y: str, ways: Sequence[str]) -> None:
    page.select_option("[data-focus='axis x']", x)
    page.select_option("[data-focus='axis y']", y)
    assert keys(page, "[...VIEWS[0].onFront].map((point) => point.id)") == front(section, x, y, ways)


def test_fronts_of_many_random_points_equal_pareto(page: "Page") -> None:
    """Ties, infinite costs, both directions."""
    import numpy as np

    draw = np.random.default_rng(0)
    sets = [draw.choice([0.0, 1.0, 2.0, 3.0, 1e300, -1e300], (12, 2)).tolist() for _ in range(200)]
    found = page.evaluate(
        """([sets, ways]) => sets.map((rows) => {
          const points = rows.map(([x, y], id) => ({ id, figures: { x: [x], y: [y] } }));
          const on = front(points, { name: "x", better: ways[0] }, { name: "y", better: ways[1] }, { guess: null });
          return on.map((point) => point.id).sort((a, b) => a - b);
        })""",
        [sets, ["min", "max"]],
    )
    assert found == [pareto.front(rows, ("min", "max")).tolist() for rows in sets]


def test_every_stop_of_the_sliders_names_what_select_names(
    page: "Page", section: Section, monkeypatch: pytest.MonkeyPatch
) -> None:
    # thousands of draws; the page compares error bars
    monkeypatch.setattr("slimexp.analysis.comparison.Comparisons.compare", lambda *_: None)
    answers = page.evaluate(
        """() => {
          const { section } = VIEWS[0], options = section.budgets.map((budget) => [null, ...stops(section, budget)]);
          const all = options.reduce((sets, some) => sets.flatMap((one) => some.map((limit) => [...one, limit])), [[]]);
          return all.map((limits) => {
            const held = section.budgets.map((one, at) => ({ ...one, limit: limits[at] }))
              .filter(({ limit }) => limit !== null);
            const { point, fits } = choose(section, held);
            return [held.map(({ metric, side, limit }) => `${side}_${metric}=${limit}`), point.id, fits];
          });
        }"""
    )
    assert len(answers) > 200
    for budgets, key, fits in answers:
        expected = choose(section, [Budget.parse(text) for text in budgets])
        assert expected.point is not None
        assert (" ".join(expected.point.keys), expected.fits) == (key, fits), budgets


def test_a_slider_dims_names_and_gives_the_command(page: "Page", shared_runs: Path) -> None:
    slider = page.get_by_role("slider", name="at most: size on disk (MB)")
    assert slider.get_attribute("aria-valuetext") == "no limit"
    for _ in range(3):
        slider.press("ArrowLeft")
    assert slider.get_attribute("aria-valuetext") == "at most 6"
    assert dots(page, ".out") == ["d", "p", "q8"] and dots(page, ".best") == ["q4"]
    result = page.inner_text(".result")
    assert (
        "3 of 7 models fit" in result
        and "slower than dense" in result
        and str(shared_runs / "run/quantize-q4/artifact") in result
    )
    assert page.locator(".result code").first.inner_text().endswith("max_disk_mb=6")
    assert page.locator(".limit").count() == 1
    page.locator(".result .copy").first.click()
    page.locator(".result .copy", has_text=re.compile("Copied|Selected")).wait_for()
    page.get_by_role("button", name="Lift all limits").click()
    assert dots(page, ".out") == [] and page.locator(".limit").count() == 0


def test_an_engine_is_an_axis_and_has_a_slider(
    shown: Callable[..., str], window: "Page", runs: Path, messages: list[str]
) -> None:
    for one in [one for one in read(runs) if one.key in ("q8", "q4", "s0")]:
        ms = {"q8": 2.0, "q4": 3.0, "s0": 1.0}[one.key]
        figures = {"onnx_logit_gap": 1e-6, "onnx_threads": 1.0, "onnx_forward_ms": ms}
        append(runs / record.FILE, replace(one, metrics=figures, directions={"onnx_forward_ms": "min"}))
    shown(window, runs, content(load(runs), runs, runs))
    group = window.locator("[data-focus='axis x'] optgroup").nth(1)
    assert group.get_attribute("label") == "in other engines, by the name of the format"
    assert group.locator("option").all_inner_texts()[0] == "onnx forward pass (ms) (min)"
    window.select_option("[data-focus='axis x']", "onnx_forward_ms")
    assert dots(window) == ["q4", "q8", "s0 s1"]
    slider = window.get_by_role("slider", name="at most: onnx forward pass (ms)")
    slider.press("ArrowLeft")
    slider.press("ArrowLeft")
    assert dots(window, ".out") == ["q4"]
    assert "max_onnx_forward_ms=2" in window.inner_text(".budgets .copyable >> nth=0")


def test_where_none_fits_the_nearest_is_named(page: "Page") -> None:
    page.get_by_role("slider", name="at most: size on disk (MB)").press("Home")
    page.get_by_role("slider", name="at most: character error rate").press("Home")
    assert "None fits. The nearest:" in page.inner_text(".result")


def test_words_of_the_data_are_text(page: "Page") -> None:
    page.locator("tbody .name", has_text="<img").first.click()
    assert "</script><script>window.hacked = 1</script>" in page.inner_text(".comparison")
    assert page.evaluate("window.hacked === undefined && document.images.length === 0")


def test_the_table_sorts_and_marks_the_order(page: "Page") -> None:
    head = page.locator("th", has=page.locator("[data-focus='sort latency_ratio']"))
    order = "all => all.slice(0, 4).map(one => one.dataset.focus)"
    for way, first in (("ascending", "row s0 s1"), ("descending", "row q4")):
        page.locator("[data-focus='sort latency_ratio']").press("Enter")
        assert head.get_attribute("aria-sort") == way
        assert page.locator("tbody .name").evaluate_all(order)[0] == first
        assert page.evaluate("document.activeElement.dataset.focus") == "sort latency_ratio"
    assert page.locator("tbody .name").last.get_attribute("data-focus") in ("row p", "row bare")


def test_a_filter_hides_and_the_front_is_of_what_is_shown(page: "Page") -> None:
    page.locator("[data-focus='kind quantize']").click()
    assert dots(page) == ["d", "p", "s0 s1"]
    assert "3 hidden by the filter" in page.inner_text("article > p")
    page.locator("[data-focus='kind quantize']").click()
    page.locator("[data-focus=text]").fill("distill")
    assert dots(page) == ["d", "s0 s1"]


def test_a_logarithmic_axis_is_asked_for(page: "Page") -> None:
    assert not page.locator("[data-focus='log x']").is_checked()
    before = page.locator(".tick").all_inner_texts()
    page.locator("[data-focus='log x']").check()
    assert page.locator(".tick").all_inner_texts() != before
    page.select_option("[data-focus='axis x']", "exact_match")  # one of them is 0
    assert page.locator("[data-focus='log x']").is_disabled()


def test_the_guess_stands_in_the_picture_when_asked_for(page: "Page") -> None:
    guess = page.locator(".canvas .guess")
    assert guess.count() == 1  # q2, worse than the guess, is as high
    page.locator("[data-focus=text]").fill("distill")
    assert guess.count() == 0 and "no model (best trivial guess): 0.08" in page.inner_text(".legend")
    page.locator("[data-focus=guess]").check()
    assert guess.count() == 1


def test_every_metric_is_a_column_when_asked_for(page: "Page") -> None:
    before = page.locator("thead th").count()
    page.locator("[data-focus=every]").check()
    assert page.locator("thead th").count() > before
    page.locator("[data-focus='sort latency_noisy']").wait_for()


def test_a_difference_has_a_sign_and_says_where_its_interval_holds_zero(
    window: "Page", messages: list[str], runs: Path, shown: Callable[["Page", Path, Any], str]
) -> None:
    for key, low in (("q8", -0.001), ("q4", 0.001)):
        one = next(one for one in read(runs) if one.key == key)
        ends = {"": 0.002, "_low": low, "_high": 0.005}
        figures = {f"cer_minus_no_teacher{end}": value for end, value in ends.items()}
        append(runs / record.FILE, replace(one, metrics={**one.metrics, **figures}))
    shown(window, runs, content(load(runs), runs, runs))
    cells = window.locator("tbody td").all_inner_texts()
    assert any(re.fullmatch(r"\+0\.002\s*-0\.001 to \+0\.005, not separable", cell) for cell in cells)
    assert any(re.fullmatch(r"\+0\.002\s*\+0\.001 to \+0\.005", cell) for cell in cells)


def test_by_keyboard_alone(page: "Page") -> None:
    page.locator("[data-focus=text]").focus()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.getAttribute('role')") == "option"
    assert page.locator(".tip").is_visible()
    first = page.evaluate("document.activeElement.dataset.focus")
    page.keyboard.press("ArrowRight")
    second = page.evaluate("document.activeElement.dataset.focus")
    assert first != second
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.dataset.focus") == second
    assert page.evaluate("VIEWS[0].state.chosen") == [second.removeprefix("dot ")]
    page.keyboard.press("Escape")
    assert page.locator(".tip").is_hidden()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.getAttribute('role')") != "option"


def test_colours_follow_the_system_or_the_reader(page: "Page") -> None:
    back = "getComputedStyle(document.body).backgroundColor"
    page.emulate_media(color_scheme="dark")
    dark = page.evaluate(back)
    page.emulate_media(color_scheme="light")
    light = page.evaluate(back)
    assert dark != light
    button = page.locator("#theme")
    for expected in (light, dark, light):  # light, dark, as the system
        button.click()
        assert page.evaluate(back) == expected


def test_a_phone_is_wide_enough(page: "Page") -> None:
    page.set_viewport_size({"width": 360, "height": 740})
    page.locator("tbody .name").nth(2).click()
    page.get_by_role("slider").first.press("Home")
    assert page.evaluate("document.documentElement.scrollWidth") == 360


def test_a_visit_goes_on_after_a_reload_and_nonsense_in_the_address_is_ignored(page: "Page") -> None:
    page.select_option("[data-focus='axis x']", "latency_ratio")
    page.locator("tbody .name").nth(1).click()
    page.wait_for_url(lambda address: "q2" in address)
    state = page.evaluate("VIEWS[0].state")
    page.reload()
    assert page.evaluate("VIEWS[0].state") == state
    for nonsense in (
        "%",
        "[]",
        json.dumps({"spelling": {"x": "no", "chosen": ["no", 1], "limits": {"cer": "a"}, "sort": 1}}),
    ):
        page.evaluate("(text) => { location.hash = text; }", nonsense)
        page.reload()
        assert page.evaluate("VIEWS[0].state.x") == "disk_mb"


def test_the_policy_forbids_the_network(page: "Page", messages: list[str]) -> None:
    assert page.evaluate("fetch('http://127.0.0.1:9/').then(() => 'sent', () => 'refused')") == "refused"
    refusals = [one for one in messages if "Content Security Policy" in one]
    assert refusals and not any(one.startswith("http") for one in messages)
    for one in refusals:
        messages.remove(one)


def test_growth_is_drawn_when_opened(page: "Page", section: Section) -> None:
    page.locator(".growth summary").click()
    page.wait_for_selector(".growth .line")
    assert f"over {len(section.hypervolume_history)} points" in page.inner_text(".growth summary")


def test_doubt_and_published_points_are_shown(
    shown: Callable[..., str], window: "Page", runs: Path, messages: list[str]
) -> None:
    for one in read(runs):
        append(runs / record.FILE, replace(one, metrics={**one.metrics, "cer_stderr": 0.004}))
    (runs / "points.csv").write_text("label,cer,disk_mb\nOthers <2024>,0.012,3\n")
    found = load(runs, reference=runs / "points.csv")
    open_points = [point for index, point in enumerate(found[0].points) if found[0].undecided(index)]
    shown(window, runs, content(found, runs, runs))
    assert keys(window, "VIEWS[0].drawn.filter((one) => VIEWS[0].isOpen(one)).map((one) => one.id)") == sorted(
        " ".join(point.keys) for point in open_points
    )
    assert f"{len(open_points)} not separable" in window.inner_text("article > p")
    assert dots(window, ":has(.open)") != [] and "not separable (pale)" in window.inner_text(".legend")
    assert window.locator(".canvas .published").count() == 1
    assert "☆ Others <2024> (published by others)" in window.inner_text("tbody")
    assert "Not separable from it" in window.inner_text(".result")
    names = [" ".join(point.keys) for point in found[0].points]
    best = names.index(window.evaluate("choose(VIEWS[0].section, []).point.id"))
    pairs = {
        name: found[0].comparisons.compare(best, other, found[0].headline)
        for other, name in enumerate(names)
        if other != best
    }
    assert keys(window, "rivalsOf(VIEWS[0].section, [], choose(VIEWS[0].section, []).point).map((one) => one.id)") == (
        sorted(name for name, pair in pairs.items() if pair is not None and not pair.separable)
    )
    window.select_option("[data-focus='axis x']", "kept")  # probabilities are of other axes
    assert dots(window, ":has(.open)") == []


def test_a_live_page_takes_up_new_records_and_keeps_its_state(
    window: "Page", runs: Path, served: Server, messages: list[str]
) -> None:
    window.goto(served.address)
    window.locator("tbody .name").nth(1).click()
    window.select_option("[data-focus='axis x']", "latency_ratio")
    window.locator("[data-focus='axis x']").focus()
    new = next(one for one in read(runs) if one.key == "q8")
    append(runs / record.FILE, replace(new, key="q6", config={**new.config, "pipeline": {"quantize": {"key": 6}}}))
    window.wait_for_selector("[data-focus='row q6']")
    assert window.evaluate("VIEWS[0].state.x") == "latency_ratio"
    assert window.locator("[aria-pressed=true].name").count() == 1
    assert window.evaluate("document.activeElement.dataset.focus") == "axis x"
    assert {one for one in messages if not one.startswith(served.address)} <= {"data:,"}
