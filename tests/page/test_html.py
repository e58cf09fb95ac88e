"""One file: nothing in the data can leave its element, nothing is fetched, and the policy knows style and script."""

import base64
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest

from slimexp.analysis.section import Section
from slimexp.analysis.style import COLOURS
from slimexp.page.content import content, nothing
from slimexp.page.html import embedded, render

pytestmark = pytest.mark.fast
ASSETS = Path(__file__).parents[2] / "slimexp" / "page"


def test_data_stays_data(shared_runs: Path, sections: list[Section]) -> None:
    page = render(content(sections, shared_runs, shared_runs))
    assert page.count("<script") == page.count("</script>") == 2
    data = json.loads(re.search(r'id="data">(.*?)</script>', page, re.S)[1])  # type: ignore[index]
    (section,) = data["sections"]
    assert section["environments"][0]["hardware"]["cpu"].startswith("</script><script>")
    assert any("<img src=x" in point["label"] for point in section["points"])


def test_words_of_the_template_in_the_data_are_not_filled_in() -> None:
    assert "$script $data $$" in render(nothing("$script $data $$"))


@pytest.mark.parametrize("text", ["<!--", "</script>", "\u2028", '"', "'", "\\", "é"])
def test_embedding_is_undone_by_json(text: str) -> None:
    text_of_element = embedded({"a": text})
    assert json.loads(text_of_element) == {"a": text} and "<" not in text_of_element


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_json_cannot_say_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="JSON"):
        embedded({"a": value})


@pytest.mark.parametrize("live", [False, True])
def test_the_policy_lets_this_style_and_script_run_and_nothing_out(live: bool) -> None:
    shown: dict[str, Any] = {**nothing(""), "live": live}
    page = render(shown)
    policy = re.search(r'Content-Security-Policy" content="(.*?)"', page)[1]  # type: ignore[index]
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    for tag, rule in (("style", "style-src"), ("script", "script-src")):
        text = re.search(rf"<{tag}>(.*?)</{tag}>", page, re.S)[1]  # type: ignore[index]
        assert rules[rule] == f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
    assert rules["default-src"] == "'none'"
    assert rules.get("connect-src") == ("'self'" if live else None)


def test_it_needs_nothing_else() -> None:
    page = render(nothing(""))
    assert re.findall(r"""(?:src|href)\s*=\s*["'][^"']*|url\([^)]*|@import""", page) == ['href="data:,']
    assert not re.search(
        r"""\son\w+\s*=\s*["']|\sstyle\s*=\s*["']|innerHTML|https?://(?!www\.w3\.org/2000/svg)""", page
    )


def test_chains_have_the_colours_of_the_png() -> None:
    style = (ASSETS / "page.css").read_text().lower()
    for place, colour in enumerate(COLOURS):
        assert f"--c{place}: light-dark({colour.lower()}," in style


def test_every_script_of_the_room_is_in_the_page() -> None:
    page = render(nothing(""))
    scripts = sorted(ASSETS.glob("*.js"))
    assert scripts and all(script.read_text() in page for script in scripts)
    assert max(len(script.read_text().splitlines()) for script in scripts) <= 400
