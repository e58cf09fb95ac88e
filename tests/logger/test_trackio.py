"""A run in a store of Trackio's, read back by Trackio."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from slimexp.logger.trackio import Trackio

trackio = pytest.importorskip("trackio")


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Trackio's storage, in a folder of the test."""
    import trackio.sqlite_storage

    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == "trackio" and hasattr(module, "TRACKIO_DIR"):
            monkeypatch.setattr(module, "TRACKIO_DIR", tmp_path / "store")
    return trackio.sqlite_storage.SQLiteStorage


def made() -> Trackio:
    return Trackio(project="tests", group=None, space_id=None)


def test_curves_measures_and_places_are_read_back(
    store: Any, fit: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tracker = made()
    tracker.start(name="run", config={"pipeline": {"distill": {"steps": 6}}})
    fit(tracker.loggers("distill", tmp_path / "curves.jsonl"), 6, tmp_path)
    tracker.summary("distill", {"perplexity": 12.5})
    tracker.artifact("distill", tmp_path / "artifact")
    tracker.finish()
    tracker.finish()
    rows = store.get_logs("tests", "run")
    losses = {row["step"]: row["distill/loss"] for row in rows if "distill/loss" in row}
    assert list(losses) == [1, 3, 5] and losses[1] > losses[5] > 0
    assert not any(name.endswith("epoch") for row in rows for name in row)
    (final,) = [row["distill/final/perplexity"] for row in rows if "distill/final/perplexity" in row]
    (folder,) = [row["distill/artifact"] for row in rows if "distill/artifact" in row]
    assert (final, folder) == (12.5, str(tmp_path / "artifact"))
    config = store.get_run_config("tests", "run")
    assert config["pipeline"] == {"distill": {"steps": 6}} and "leaks" not in config
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err == (
        'Trackio: run run on this machine; `trackio show --project "tests"` shows it\n'
    )


def test_what_fails_is_one_line_and_the_run_goes_on(
    store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(**_: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(trackio, "init", fail)
    tracker = made()
    tracker.start(name="run", config={})
    assert len(tracker.loggers("distill", tmp_path / "curves.jsonl")) == 1
    tracker.summary("distill", {"perplexity": 12.5})
    tracker.finish()
    assert capsys.readouterr().err == (
        "Trackio: could not start (OSError: no space left); the run goes on without it\n"
    )


def test_another_process_of_a_training_tracks_nothing(
    store: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("pytorch_lightning.utilities.rank_zero_only.rank", 1, raising=False)
    tracker = made()
    tracker.start(name="run", config={})
    assert tracker.run is None and len(tracker.loggers("distill", tmp_path / "curves.jsonl")) == 1


def test_a_package_that_is_not_here_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trackio", None)
    with pytest.raises(ValueError, match=r"logger=trackio needs .* pip install 'slimexp\[trackio\]'"):
        made()
