"""A small sweep with all that a page must bear: seeds, noise, what is slower, what was not measured, and bad words."""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any

import pytest

from slimexp.analysis.section import Section, load
from slimexp.page.content import content
from slimexp.page.html import render
from slimexp.page.server import LivePage, Server
from slimexp.record import record
from slimexp.record.record import Record, append

if TYPE_CHECKING:
    from playwright.sync_api import Page

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, BROWSERS)), None)

DENSE = {"cer": 0.015, "exact_match": 0.6, "disk_mb": 16.1, "latency_p50_ms": 80.0, "latency_ratio": 1.0}
GUESS = 0.08
WORDS = """</script><script>window.hacked = 1</script> "a" & 'b' <img src=x onerror=alert(1)>"""

SENSITIVITY = {
    "sensitivity_nats/encoder.block.0.layer.0.SelfAttention.q": 0.0123456,
    "sensitivity_nats/encoder.block.0.layer.1.wo": 0.04,
    "sensitivity_nats/decoder.block.0.layer.0.SelfAttention.q": -0.001,
}
LAYERS = [name.partition("/")[2] for name in SENSITIVITY]
BITS = {
    **{f"bits/{layer}": bits for layer, bits in zip(LAYERS, (4.0, 8.0, 2.0), strict=True)},
    **{f"rounded_to_2_nats/{layer}": nats for layer, nats in zip(LAYERS, (0.01, 0.04, 0.002), strict=True)},
    **{f"rounded_to_4_nats/{layer}": nats for layer, nats in zip(LAYERS, (6e-4, 2e-3, 1e-4), strict=True)},
}
MEASURED = {
    "data": {"_target_": "slimexp.data.spelling.Spelling"},
    "pipeline": {"prune": {"key": "bare"}},
    "measure": {
        "sensitivity": {
            "sparsity": 0.5,
            "rows": 16,
            "importance": {"_target_": "slimexp.importance.magnitude.Magnitude"},
            "loss": {"_target_": "slimexp.loss.kl.ForwardKl"},
        }
    },
}


def made(key: str, stage: str, metrics: Mapping[str, float], *, parent: str | None = "d", **changes: Any) -> Record:
    values: dict[str, Any] = {
        "time": "2026-01-01T00:00:00+00:00",
        "name": "run",
        "stage": stage,
        "key": key,
        "parent": parent,
        "technique": stage.title(),
        "seed": 0,
        "overrides": [f"+experiment=front_t5 name={WORDS}"],
        "config": {"data": {"_target_": "slimexp.data.spelling.Spelling"}, "pipeline": {stage: {"key": key}}},
        "git": {"commit": "0123456789abcdef", "dirty": False},
        "versions": {"torch": "2.13"},
        "hardware": {"cpu": WORDS, "gpu": [], "threads": None},
        "headline": "cer",
        "direction": "min",
        "metrics": dict(metrics),
        "directions": {"cer": "min", "exact_match": "max", "disk_mb": "min", "latency_ratio": "min"},
        "baseline": DENSE,
        "baseline_key": "d",
        "trivial": GUESS,
        "seconds": {"train": 1.5},
        "reused": False,
        "artifact": f"run/{stage}-{key}/artifact",
        "curves": None,
        "kernel": "float32 matmul",
    }
    return Record(**{**values, **changes})


def ratios(ratio: float) -> dict[str, float]:
    return {
        "latency_p50_ms": 80 * ratio,
        "latency_ratio": ratio,
        "latency_ratio_low": ratio - 0.05,
        "latency_ratio_high": ratio + 0.05,
    }


def sweep() -> list[Record]:
    trained = {"curves": "run/curves.jsonl"}
    nasty = {"data": {"_target_": "slimexp.data.spelling.Spelling"}, "pipeline": {"prune": {"note": WORDS}}}
    seeded = {**nasty, "pipeline": {"distill": {"temperature": 2}}}
    return [
        made("d", "dense", DENSE, parent=None),
        made("q8", "quantize", {"cer": 0.016, "exact_match": 0.59, "disk_mb": 8.612345, **ratios(0.7)}),
        made(
            "q4",
            "quantize",
            {"cer": 0.02, "exact_match": 0.61, "disk_mb": 5.1, **ratios(1.4), "latency_noisy": 1.0, **BITS},
        ),
        made("q2", "quantize", {"cer": 0.09, "exact_match": 0.0, "disk_mb": 2.4, **ratios(1.3)}),  # worse than no model
        made("p", "prune", {"cer": 0.03, "exact_match": 0.5, "disk_mb": 16.1}, config=nasty),
        made("bare", "prune", {"cer": 0.021} | SENSITIVITY, config=MEASURED),
        made(
            "s0", "distill", {"cer": 0.02, "exact_match": 0.5, "disk_mb": 6.0, **ratios(0.5)}, config=seeded, **trained
        ),
        made("s1", "distill", {"cer": 0.03, "exact_match": 0.4, "disk_mb": 6.0, **ratios(0.6)}, config=seeded, seed=1),
    ]


def written(folder: Path) -> Path:
    """The sweep on disk, with one artifact and the curves of one stage."""
    for one in sweep():
        append(folder / record.FILE, one)
    (folder / "run" / "quantize-q8" / "artifact").mkdir(parents=True)
    rows = [{"step": step, "loss": None if step == 3 else 1 / (step + 1), "lr": 0.1} for step in range(12)]
    (folder / "run" / "curves.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 12, "lo')
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A sweep of the test's own."""
    return written(tmp_path / "it's runs")


@pytest.fixture(scope="session")
def shared_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep that no test changes."""
    return written(tmp_path_factory.mktemp("page") / "it's runs")


@pytest.fixture(scope="session")
def sections(shared_runs: Path) -> list[Section]:
    """Those of ``shared_runs``."""
    return load(shared_runs)


@pytest.fixture
def served(runs: Path) -> Iterator[Server]:
    """A server of ``runs`` that answers."""
    with Server(LivePage(runs, partial(load, runs), None), 0) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def window() -> Iterator["Page"]:
    """A window of a real browser. Where there is none, tests of the page are skipped, and under CI=true they fail."""
    lacking = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
    if CHROMIUM is None:
        lacking(f"no {', '.join(BROWSERS)} on PATH; on Debian: apt-get install chromium")
    try:
        from playwright import sync_api as driver
    except ImportError:
        lacking("playwright is not installed; pip install -e '.[dev]'")
    sandbox = [] if os.geteuid() else ["--no-sandbox"]  # which root cannot have
    with driver.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=[*sandbox, "--disable-gpu"])
        opened = browser.new_page()
        opened.set_default_timeout(10_000)
        yield opened
        browser.close()


@pytest.fixture
def messages(window: "Page") -> Iterator[list[str]]:
    """Messages of the console, and addresses that the page requests."""
    logged: list[str] = []
    listeners: dict[str, Any] = {
        "console": lambda message: logged.append(message.text),
        "pageerror": lambda error: logged.append(str(error)),
        "request": lambda request: logged.append(request.url),
    }
    window.set_viewport_size({"width": 1280, "height": 900})
    window.goto("about:blank")  # a new address that differs behind the # only would not load anew
    for event, listener in listeners.items():
        window.on(event, listener)  # type: ignore[call-overload]
    yield logged
    for event, listener in listeners.items():
        window.remove_listener(event, listener)


@pytest.fixture
def section(sections: list[Section]) -> Section:
    (one,) = sections
    return one


@pytest.fixture
def page(window: "Page", shared_runs: Path, sections: list[Section], messages: list[str]) -> Iterator["Page"]:
    """The page from disk; at the end it has logged nothing and requested nothing but itself."""
    address = open_page(window, shared_runs, content(sections, shared_runs, shared_runs))
    yield window
    assert [one for one in messages if one.partition("#")[0] not in (address, "data:,")] == []


def open_page(window: "Page", runs: Path, what: Mapping[str, Any]) -> str:
    """Write the page and open it; its address."""
    file = runs / "pareto.html"
    file.write_text(render(what))
    window.goto(file.as_uri())
    return file.as_uri()


@pytest.fixture
def shown() -> Callable[["Page", Path, Mapping[str, Any]], str]:
    """Window, folder and content -> the address of the page, which is written there and opened."""
    return open_page
