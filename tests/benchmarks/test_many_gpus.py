"""The benchmark of many GPUs: what it asks of others, and what it makes of their answers."""

import json
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from benchmarks import many_gpus, workers
from benchmarks.sweep import Span

pytestmark = pytest.mark.fast


def answer(words: list[str], **_: Any) -> SimpleNamespace:
    """Of the benchmark that is started: two devices make 1.5x the tokens of one."""
    count = int(next(word for word in words if word.startswith("--devices=")).partition("=")[2])
    strategy = "fsdp" if "trainer.strategy=fsdp" in words else "ddp" if count > 1 else "one device"
    run = {"strategy": strategy, "devices": count, "tokens_per_second": 500.0 * (count + 1), "loss": 2.0,
           "peak_gib_per_device": [3.0] * count}  # fmt: skip
    return SimpleNamespace(stdout=json.dumps({"runs": [run]}))


def test_efficiency_is_per_device_beside_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(workers, "gpus", lambda: ["0", "1"])
    monkeypatch.setattr(subprocess, "run", answer)
    out = tmp_path / "new" / "found.json"
    assert many_gpus.main(["speed", "large", "--rows", "8", "--out", str(out), "trainer.pad_to=4"]) == 1
    found = json.loads(out.read_text())
    seen = [(run["strategy"], run["devices"], run["efficiency"]) for run in found["speed"]]
    assert seen == [("one device", 1, 1.0), ("ddp", 2, 0.75), ("fsdp", 2, 0.75)]
    assert found["missed"] == ["ddp on 2: efficiency 0.75", "fsdp on 2: efficiency 0.75"]
    printed = capsys.readouterr().out
    assert "--devices=2 --rows=16 --steps=60" in printed and "--rows=4 --large=14b" in printed
    assert printed.count("trainer.pad_to=4") == 4 and "| ddp | 2 | 1,500 | 0.75 | 3.0 |" in printed


def test_times_of_trials_are_those_of_the_journal(tmp_path: Path) -> None:
    journal = tmp_path / "journal.jsonl"
    study = optuna.create_study(storage=JournalStorage(JournalFileBackend(str(journal))))
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=3)
    study.ask()  # under way
    spans = many_gpus.spans_of(journal)
    assert len(spans) == 3 and all(isinstance(span, Span) and span.ended >= span.began > 0 for span in spans)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["fast"], "unknown part 'fast': must be one of speed, large, sweep"),
        ([], "this machine has 0 GPUs: give --devices, or --toy"),
        (["--devices", "1", "8"], "this machine has 0 GPUs, of the 8 asked for"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    words: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(workers, "gpus", list)
    with pytest.raises(SystemExit):
        many_gpus.main(words)
    assert message in capsys.readouterr().err
