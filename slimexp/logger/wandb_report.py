"""The records in W&B: whether they all arrived there, and a report run that shows the front of a sweep.

The record is the truth; nothing here stops a report.
"""

import hashlib
import json
import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from slimexp.analysis.section import Point, Section, sections
from slimexp.config import renamed
from slimexp.host.console import printable
from slimexp.logger import wandb_log
from slimexp.logger.guarded import say
from slimexp.logger.wandb_log import Log
from slimexp.logger.wandb_run import WandbRun, wandb_module
from slimexp.record import record
from slimexp.record.record import Record

REPORT = "report"  # job type of the run
PAGE = "pareto.html"
_SHOWN = 3  # metrics that a fault names
_MIRROR = "slimexp.logger.wandb.Wandb"  # logger of the runs whose records W&B should have

Write = Callable[[Sequence[Section], Path], object]


@dataclass(frozen=True)
class Check:
    """Whether all records arrived in W&B.

    Attributes:
        runs: Number of W&B runs.
        unfinished: Number of those that are not finished: killed, or at work.
        records: Number of records that should have been mirrored.
        faults: One line for each record that no run holds as a whole.
    """

    runs: int
    unfinished: int
    records: int
    faults: list[str]

    def __str__(self) -> str:
        stopped = f" ({self.unfinished} not finished)" if self.unfinished else ""
        whole = f"{self.records - len(self.faults)} of {self.records} records are whole in {self.runs} runs{stopped}"
        return "\n".join([whole, *self.faults])


def check(runs: Path) -> Check:
    """Compare the transaction logs below the folder ``runs`` with its records.

    A record has arrived when a run of its very configuration has all its metrics, with their values, in the summary.
    """
    logs = [log for log in wandb_log.logs(runs) if log.job_type != REPORT]
    by_config = _by_config(logs)
    mirrored = [row for row in _rows(runs) if _is_mirrored(row)]
    return Check(
        runs=len(logs),
        unfinished=sum(not log.finished for log in logs),
        records=len(mirrored),
        faults=[fault for row in mirrored if (fault := _fault(row, by_config.get(_canonical(row.config), [])))],
    )


def publish(runs: Path, write: Write) -> None:
    """Write a report run for every sweep whose records are below ``runs``, and say whether all runs arrived.

    A sweep is a group of W&B or, where there is none, a run's name. Its report run has the same id each time, so that
    a later one takes the place of an earlier one; where nothing has changed none is written. What fails is printed.

    Args:
        runs: The runs folder; a file of records stands for the folder it is in.
        write: Writes the report of sections into a folder, ``pareto.html`` among its files.
    """
    runs = runs if runs.is_dir() else runs.parent
    try:
        sweeps: dict[str, list[Record]] = {}
        merged = {row.key: row for row in record.read(runs, quiet=True)}  # the report has warned
        for row in _rows(runs):
            if _is_mirrored(row):
                sweeps.setdefault(printable(row.config["logger"].get("group") or row.name), []).append(row)
        if not sweeps:
            say(WandbRun.label, "no record is of a run with logger=wandb, so there is nothing to report to it")
            return
        say(WandbRun.label, str(check(runs)))
        for sweep, own in sweeps.items():
            _publish(sweep, own, merged, runs, write)
    except Exception as error:  # W&B's own, and whatever a mirror must not stop a report with
        say(WandbRun.label, f"no report run ({type(error).__name__}: {error}); the report itself is written")


class Report(WandbRun):
    """The run that shows a sweep.

    Args:
        sweep: Group of the sweep's runs, or their name.
        settings: Arguments of ``WandbRun``.
    """

    def __init__(self, *, sweep: str, **settings: Any) -> None:
        super().__init__(**settings)
        self.sweep = sweep
        digest = hashlib.sha256(json.dumps([self.project, self.entity, sweep]).encode()).hexdigest()
        self.identity = {"id": f"{REPORT}-{digest[:12]}", "job_type": REPORT, "resume": "allow"}

    def show(self, drawn: Sequence[Section], page: Path, rows: Sequence[list[dict[str, Any]]]) -> None:
        """Log the page and, of every section, its table, its plot, and its figures in the summary."""

        def log() -> None:
            wandb = wandb_module()
            shown: dict[str, Any] = {"front": wandb.Html(page.read_text(), inject=False, data_is_not_path=True)}
            for section, points in zip(drawn, rows, strict=True):
                prefix = f"{section.title}/" if len(drawn) > 1 else ""
                points = [{**point, "wandb": self._links(point["wandb"])} for point in points]
                columns = list(dict.fromkeys(name for point in points for name in point))
                table = wandb.Table(columns=columns, data=[[point.get(name) for name in columns] for point in points])
                shown[f"{prefix}points"] = table
                if {section.x, section.y} <= set(columns):
                    shown[f"{prefix}plot"] = wandb.plot.scatter(table, section.x, section.y, title=section.title)
                self.run.summary.update({f"{prefix}{name}": value for name, value in _figures(section).items()})
            self.run.log(shown)

        self.guarded("report", log)

    def _links(self, ids: Sequence[str]) -> str:
        """Addresses of runs; their ids where the account is not known yet."""
        base = (self.run.url or "").partition("/runs/")[0]
        if not base and self.entity:
            base = f"{self.run.settings.app_url}/{self.entity}/{self.project}"
        return " ".join(f"{base}/runs/{id_}" if base else id_ for id_ in ids)


def _publish(sweep: str, own: Sequence[Record], merged: Mapping[str, Record], runs: Path, write: Write) -> None:
    rows = [merged[key] for key in dict.fromkeys(row.key for row in own)]  # whichever sweep did the work last
    settings = {key: value for key, value in own[-1].config["logger"].items() if key != "_target_"}
    report = Report(sweep=sweep, **{**settings, "folder": str(runs)})
    if report.mode == "disabled":
        return
    logs = wandb_log.logs(runs)
    drawn = sections(rows)
    by_config = _by_config([log for log in logs if log.job_type != REPORT])
    holders = {row.key: [log.id for log in by_config.get(_canonical(row.config), [])] for row in rows}
    tables = [[_row(section, index, holders) for index in range(len(section.points))] for section in drawn]
    with TemporaryDirectory() as folder:
        write(drawn, Path(folder))
        page = Path(folder) / PAGE
        digest = hashlib.sha256(page.read_bytes() + json.dumps(tables).encode()).hexdigest()
        earlier = [log for log in logs if log.id == report.identity["id"]]
        if any(log.finished and log.config.get("digest") == digest for log in earlier):
            say(WandbRun.label, f"the report of {sweep} is there already, as run {report.identity['id']}")
            return
        _drop(earlier)
        report.start(name=f"{REPORT} of {sweep}", config={"sweep": sweep, "records": len(rows), "digest": digest})
        report.show(drawn, page, tables)
        report.finish()


def _drop(earlier: Sequence[Log]) -> None:
    """Remove reports that were never uploaded: the one that follows takes their place."""
    for log in earlier:
        if log.folder.name.startswith("offline-run-") and not list(log.folder.glob("*.synced")):
            shutil.rmtree(log.folder)


def _row(section: Section, index: int, holders: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """A point of a section, as a row of the table."""
    point: Point = section.points[index]
    ids = list(dict.fromkeys(id_ for key in point.keys for id_ in holders.get(key, ())))
    return {
        "model": point.label,
        "front": index in section.front,
        "dense": point.dense,
        "slower": point.slower,
        "seeds": len(point.seeds),
        **{name: spread.mean for name, spread in point.figures.items() if math.isfinite(spread.mean)},
        "run": " ".join(point.runs),
        "wandb": ids,
        "artifact": " ".join(point.artifacts),
        "key": " ".join(point.keys),
    }


def _figures(section: Section) -> dict[str, float]:
    """Figures of a section, for the summary."""
    volume = {} if section.hypervolume is None else {"hypervolume": section.hypervolume}
    return {**volume, "models": len(section.points), "models_on_front": len(section.front)}


def _rows(runs: Path) -> Iterator[Record]:
    """Every record as it was written: merged by key, records of several runs would be mixed."""
    yield from record.written(runs, quiet=True)


def _is_mirrored(row: Record) -> bool:
    return (row.config.get("logger") or {}).get("_target_") == _MIRROR


def _fault(row: Record, holders: Sequence[Log]) -> str | None:
    """A line on what ``holders``, the runs of the record's configuration, lack; ``None`` where one has it all."""
    name = f"{printable(row.name)}: {row.stage} {row.key}"
    if not holders:
        return f"{name} is in no run: none has its configuration"
    metrics = {f"{row.stage}/{metric}": value for metric, value in row.metrics.items()}
    lacking = [[metric for metric, value in metrics.items() if log.summary.get(metric) != value] for log in holders]
    least = min(lacking, key=len)
    if not least:
        return None
    more = f" and {len(least) - _SHOWN} more" if len(least) > _SHOWN else ""
    return f"{name} is not whole in run {holders[lacking.index(least)].id}: {', '.join(least[:_SHOWN])}{more}"


def _by_config(logs: Sequence[Log]) -> dict[str, list[Log]]:
    index: dict[str, list[Log]] = {}
    for log in logs:
        index.setdefault(_canonical(renamed.config(log.config)), []).append(log)
    return index


def _canonical(config: Mapping[str, Any]) -> str:
    return json.dumps(config, sort_keys=True)
