"""Records to damage, and every command that reads them."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from slimexp import clean, report, select
from slimexp.analysis.section import load
from slimexp.page.server import LivePage
from slimexp.record.record import Record

GOOD = "quantize"  # the stage of the good record


@pytest.fixture(scope="session")
def rows(make_record: Callable[..., Record]) -> list[dict[str, Any]]:
    """A dense model, a good one, and one to damage; without seals, which a line written by hand need not have."""
    dense = {"cer": 0.015, "disk_mb": 16.0}
    good = {"data": {"_target_": "slimexp.data.spelling.Spelling"}, "pipeline": {"quantize": {"bits": 8}}}
    bad = {"data": {"_target_": "slimexp.data.spelling.Spelling"}, "pipeline": {"prune": {"sparsity": 0.5}}}
    records = [
        make_record("dense", stage="dense", technique="dense", metrics=dense, baseline=dense, config=good),
        make_record("good", stage="quantize", metrics={"cer": 0.02, "disk_mb": 4.0}, baseline=dense, config=good),
        make_record("bad", parent="dense", metrics={"cer": 0.03, "disk_mb": 8.0}, baseline=dense, config=bad),
    ]
    sealed = [json.loads(record.to_json()) for record in records]
    return [{name: value for name, value in row.items() if name != "sha256"} for row in sealed]


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a secret beside it and a link to it; each test writes its own records there."""
    folder = tmp_path_factory.mktemp("damaged")
    runs = folder / "runs"
    runs.mkdir()
    (folder / "secret.jsonl").write_text('{"step": 0, "secret": 4242.5}\n')
    (runs / "out.jsonl").symlink_to(folder / "secret.jsonl")
    os.mkfifo(runs / "pipe")
    return runs


@pytest.fixture
def unpainted(monkeypatch: pytest.MonkeyPatch) -> None:
    """No pictures are drawn, which would take long; other tests draw some."""
    monkeypatch.setattr(report, "write_png", lambda sections, path: path.touch())


def read_by_every_command(runs: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """Every reader ends with its own status and shows the good record; returns what the report wrote to stderr."""
    statuses = [report.main([str(runs), "--out", str(runs.parent / "out")])]
    table = capsys.readouterr()
    statuses.append(select.main([str(runs), "max_disk_mb=5"]))
    chosen = capsys.readouterr()
    statuses.append(clean.main([str(runs), "--unfinished", "--dominated"]))
    cleaned = capsys.readouterr()
    assert statuses[0] == 0 and statuses[1] in (0, 1) and statuses[2] == 0, (statuses, table.err, cleaned.err)
    assert GOOD in table.out and "spelling" in chosen.out
    assert GOOD in (runs.parent / "out" / "report.csv").read_text(encoding="utf-8")
    assert GOOD in (runs.parent / "out" / "report.json").read_text(encoding="utf-8")
    page = (runs.parent / "out" / "pareto.html").read_text(encoding="utf-8")
    assert GOOD in page and "<script>hacked" not in page and "4242.5" not in page
    live = LivePage(runs, lambda: load(runs), None).snapshot()
    assert GOOD in live.data.decode() and b"<script>hacked" not in live.page
    texts = [table.out, table.err, chosen.out, chosen.err, cleaned.out, cleaned.err]
    assert all(character.isprintable() for text in texts for character in text if character != "\n")
    assert "Traceback" not in "".join(texts)
    return table.err


@pytest.fixture(scope="session")
def read_by_all() -> Callable[[Path, pytest.CaptureFixture[str]], str]:
    """Folder and captured output -> what the report wrote to stderr, once every command has read the folder."""
    return read_by_every_command
