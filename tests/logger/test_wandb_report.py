"""What the records hold has arrived in W&B or is named; a sweep has one report run, whatever happens to W&B."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from slimexp import report
from slimexp.analysis.section import Section
from slimexp.logger import wandb_log, wandb_report
from slimexp.logger.wandb import Wandb
from slimexp.record import record
from slimexp.record.record import Record

LOGGER = {"_target_": "slimexp.logger.wandb.Wandb", "project": "test", "entity": None, "group": "sweep", "tags": [],
          "mode": "offline", "folder": "elsewhere"}  # fmt: skip


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")


@pytest.fixture
def row(make_record: Callable[..., Record]) -> Callable[..., Record]:
    """Key and bits (and changes) -> a record that was to be mirrored."""

    def make(key: str, bits: int, **changes: Any) -> Record:
        config = {"logger": LOGGER, "bits": bits, "pipeline": {"prune": {"bits": bits}}}
        metrics = {"cer": 0.1 / bits, "disk_mb": float(bits)}
        base = {"cer": 0.015, "disk_mb": 16.0}
        return make_record(key, **{"config": config, "metrics": metrics, "baseline": base, **changes})

    return make


def run(row: Record, runs: Path, metrics: dict[str, float]) -> None:
    """Mirror a record as a run does."""
    tracker = Wandb(project="test", entity=None, group="sweep", tags=[], mode="offline", folder=str(runs))
    tracker.start(name=row.name, config=row.config)
    tracker.summary(row.stage, metrics)
    tracker.finish()


def write(found: Sequence[Section], folder: Path) -> None:
    """A report of little."""
    (folder / wandb_report.PAGE).write_text(f"<p>{[point.label for section in found for point in section.points]}</p>")


@pytest.mark.usefixtures("offline")
def test_what_did_not_arrive_is_named(
    row: Callable[..., Record], tmp_path: Path, settled: Callable[[Path], Path]
) -> None:
    rows = [row("whole", 8), row("changed", 4), row("absent", 2), row("silent", 1, config={"logger": None})]
    for one in rows:
        record.append(tmp_path / record.FILE, one)
    run(rows[0], tmp_path, rows[0].metrics)
    run(rows[1], tmp_path, {**rows[1].metrics, "cer": 0.5})
    with (tmp_path / record.FILE).open("a") as file:
        file.write('{"half')
    found = wandb_report.check(settled(tmp_path))
    assert (found.runs, found.unfinished, found.records) == (2, 0, 3)
    changed, absent = found.faults
    assert changed.startswith("run: prune changed is not whole in run ") and changed.endswith(": prune/cer")
    assert absent == "run: prune absent is in no run: none has its configuration"
    assert str(found).startswith("1 of 3 records are whole in 2 runs\n")


@pytest.mark.usefixtures("offline")
def test_a_sweep_has_one_report_run(
    row: Callable[..., Record],
    tmp_path: Path,
    settled: Callable[[Path], Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    for bits in (8, 4):
        record.append(tmp_path / record.FILE, row(f"b{bits}", bits))
        run(row(f"b{bits}", bits), tmp_path, row("", bits).metrics)
    wandb_report.publish(settled(tmp_path), write)
    (log,) = reports(settled(tmp_path))
    assert log.group == "sweep" and log.finished and log.config["records"] == 2
    assert log.summary["models"] == 3 and 0 < log.summary["hypervolume"] < 1
    assert {"front", "points"} <= log.summary.keys()
    (page,) = log.folder.rglob("*.html")
    assert "prune" in page.read_text()
    (table,) = log.folder.rglob("*.table.json")
    read = json.loads(table.read_text())
    points = [dict(zip(read["columns"], values, strict=True)) for values in read["data"]]
    trained = {log.id for log in wandb_log.logs(tmp_path)} - {log.id}
    assert {point["wandb"] for point in points if not point["dense"]} == trained and len(trained) == 2
    assert {point["artifact"] for point in points if not point["dense"]} == {"run/prune-a/artifact"}
    assert "2 of 2 records are whole in 2 runs" in capsys.readouterr().err

    wandb_report.publish(settled(tmp_path) / record.FILE, write)
    assert reports(settled(tmp_path)) == [log]
    assert f"the report of sweep is there already, as run {log.id}" in capsys.readouterr().err

    record.append(tmp_path / record.FILE, row("b2", 2))
    wandb_report.publish(settled(tmp_path), write)
    (later,) = reports(settled(tmp_path))
    assert later.id == log.id and later.config["records"] == 3


@pytest.mark.usefixtures("offline")
def test_what_two_sweeps_share_is_in_both_reports(
    row: Callable[..., Record], tmp_path: Path, settled: Callable[[Path], Path]
) -> None:
    for bits, group in ((8, "first"), (4, "first"), (8, "second")):
        one = row(f"b{bits}", bits)
        record.append(tmp_path / record.FILE, replace(one, config={**one.config, "logger": {**LOGGER, "group": group}}))
    wandb_report.publish(tmp_path, write)
    found = {log.group: log for log in reports(settled(tmp_path))}
    assert {group: log.config["records"] for group, log in found.items()} == {"first": 2, "second": 1}
    assert len({log.id for log in found.values()}) == 2


def reports(runs: Path) -> list[wandb_log.Log]:
    return [log for log in wandb_log.logs(runs) if log.job_type == wandb_report.REPORT]


@pytest.mark.usefixtures("offline")
def test_an_uploaded_report_is_left_alone(
    row: Callable[..., Record], tmp_path: Path, settled: Callable[[Path], Path]
) -> None:
    record.append(tmp_path / record.FILE, row("b8", 8))
    wandb_report.publish(settled(tmp_path), write)
    (first,) = reports(settled(tmp_path))
    (first.folder / f"run-{first.id}.wandb.synced").touch()
    record.append(tmp_path / record.FILE, row("b4", 4))
    wandb_report.publish(settled(tmp_path), write)
    assert len(reports(settled(tmp_path))) == 2


def test_nothing_stops_a_report(
    row: Callable[..., Record], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    record.append(tmp_path / record.FILE, row("b8", 8))
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert report.main([str(tmp_path), "--wandb"]) == 0
    assert not list(tmp_path.glob("wandb"))
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setattr(wandb_report.Report, "start", lambda *_, **__: 1 / 0)
    assert report.main([str(tmp_path), "--wandb"]) == 0
    output = capsys.readouterr().err
    assert "W&B: no report run (ZeroDivisionError: division by zero); the report itself is written" in output


def test_without_mirrored_records_that_is_said(
    make_record: Callable[..., Record], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record.append(tmp_path / record.FILE, make_record())
    wandb_report.publish(tmp_path, write)
    assert "no record is of a run with logger=wandb" in capsys.readouterr().err
