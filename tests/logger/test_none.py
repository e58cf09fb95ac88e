"""Without a logger nothing is tracked, and the curves are written all the same."""

from pathlib import Path

from slimexp.logger.curves import Curves
from slimexp.logger.none import Silent


def test_curves_are_the_only_logger(tmp_path: Path) -> None:
    silent = Silent()
    silent.finish()
    silent.start(name="run", config={})
    (curves,) = silent.loggers("stage", tmp_path / "curves.jsonl")
    assert isinstance(curves, Curves) and curves.path == tmp_path / "curves.jsonl"
    silent.summary("stage", {"cer": 1.0})
    silent.artifact("stage", tmp_path)
    silent.finish()
    assert list(tmp_path.iterdir()) == []
