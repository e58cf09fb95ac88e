"""Whatever finished is never done twice and never lost."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from slimexp import artifact
from slimexp.file import integrity
from slimexp.record import record

Make = Callable[..., Any]
FILES = ["artifact", "curves.jsonl", "lock", "measures.json"]
CHECKPOINTS = ("checkpoint.every_steps=2", "checkpoint.every_seconds=0", "checkpoint.share=null")


def test_a_second_identical_run_reuses_everything(
    pipeline: Make, short: Make, overrides: Make, fits: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = overrides("finetune", *short("finetune"))
    first = pipeline(arguments)
    metrics = first.run()
    before = (Path(first.cfg.runs) / record.FILE).read_text()
    stamps = {path: path.stat().st_mtime_ns for path in Path(first.cfg.runs).rglob("*") if path.is_file()}
    capsys.readouterr()
    again = pipeline(arguments)
    assert again.run() == metrics
    assert fits == ["Finetune"]
    assert capsys.readouterr().out.count("reused from") == 2
    assert (Path(again.cfg.runs) / record.FILE).read_text() == before
    assert {path: path.stat().st_mtime_ns for path in Path(first.cfg.runs).rglob("*") if path.is_file()} == stamps


def test_only_what_changed_is_done_again(
    pipeline: Make, short: Make, records: Make, overrides: Make, fits: list[str]
) -> None:
    chain = [*short("finetune"), "+technique@pipeline.prune=prune", *short("prune"), "pipeline.prune.every=2"]
    one = pipeline(overrides("finetune", *chain))
    one.run()
    other = pipeline(overrides("finetune", *chain, "pipeline.prune.sparsity=0.7"))
    other.run()
    assert fits == ["Finetune", "Prune", "Prune"]
    assert [stage.key for stage in other.stages[:2]] == [stage.key for stage in one.stages[:2]]
    assert other.stages[2].key != one.stages[2].key
    assert len(records(other)) == 4


def test_other_measures_are_taken_of_what_is_there(
    pipeline: Make, short: Make, records: Make, overrides: Make, fits: list[str]
) -> None:
    arguments = overrides("finetune", *short("finetune"))
    pipeline(arguments).run()
    again = pipeline([*arguments, "measure=[size]"])
    assert "disk_mb" in again.run()
    assert fits == ["Finetune"]
    assert [row["reused"] for row in records(again)] == [False, False, True, True]
    assert len(record.read(again.cfg.runs)) == 2


def test_measures_of_other_code_are_taken_again(pipeline: Make, short: Make, overrides: Make, fits: list[str]) -> None:
    arguments = overrides("finetune", *short("finetune"))
    first = pipeline(arguments)
    metrics = first.run()
    file = first.stages[-1].folder / "measures.json"
    stored = json.loads(file.read_text())
    file.write_text(json.dumps({**stored, "code": "older", "metrics": {}}))
    assert pipeline(arguments).run() == metrics
    found = json.loads(file.read_text())
    assert fits == ["Finetune"]
    assert all(found[name] == stored[name] for name in ("measure", "code", "metrics", "curves"))


def test_without_resume_everything_is_done_again(
    pipeline: Make,
    short: Make,
    weights: Make,
    same_tensors: Make,
    records: Make,
    overrides: Make,
    fits: list[str],
    kill_after: Make,
) -> None:
    arguments = overrides("finetune", *short("finetune"), *CHECKPOINTS)
    first = pipeline(arguments)
    first.run()
    stamp = (first.stages[0].artifact / "manifest.json").stat().st_mtime_ns
    first.stages[-1].checkpoint.write_text("not a checkpoint")
    again = pipeline([*arguments, "resume=false"])
    again.run()
    assert fits == ["Finetune"] * 2
    assert (first.stages[0].artifact / "manifest.json").stat().st_mtime_ns > stamp
    assert same_tensors(weights(again), weights(first)) and not first.stages[-1].checkpoint.exists()
    assert [row["reused"] for row in records(again)] == [False] * 4


def test_text_or_weights_that_changed_under_the_same_path_are_other_work(
    pipeline: Make, overrides: Make, table: Path
) -> None:
    arguments = overrides("distill", "+model@pipeline.distill.teacher=pretrained")
    folder = Path(next(a for a in arguments if a.startswith("model.path=")).partition("=")[2])
    teacher = folder.with_name("teacher")
    shutil.copytree(folder, teacher)
    arguments += [f"pipeline.distill.teacher.path={teacher}", "pipeline.distill.teacher.max_length=16"]

    def keys() -> list[str]:
        return [stage.key for stage in pipeline(arguments).stages]

    def spoil(folder: Path) -> None:
        state = load_file(folder / "model.safetensors")
        from safetensors.torch import save_file

        save_file({name: 2 * tensor for name, tensor in state.items()}, folder / "model.safetensors", {"format": "pt"})

    first = keys()
    assert keys() == first
    spoil(teacher)
    second = keys()
    assert second[0] == first[0] and second[1] != first[1]
    spoil(folder)
    third = keys()
    assert third[0] != second[0]
    table.write_text(table.read_text().replace("two words 1!", "2 words 1!"))
    assert keys()[0] != third[0]


def test_what_is_only_seen_of_a_training_is_no_other_work(pipeline: Make, overrides: Make) -> None:
    def keys(*more: str) -> list[str]:
        return [stage.key for stage in pipeline(overrides("finetune", *more)).stages]

    seen = ["trainer.enable_progress_bar=true", "trainer.log_every_n_steps=7", "+trainer.profiler=simple"]
    assert keys(*seen) == keys("trainer=cpu") == keys()
    assert keys("trainer.precision=bf16-mixed")[1] != keys()[1]


def test_a_disk_that_fills_up_while_saving_loses_no_training(
    pipeline: Make,
    short: Make,
    weights: Make,
    same_tensors: Make,
    overrides: Make,
    fits: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    straight = pipeline(overrides("finetune", *short("finetune", steps=6), *CHECKPOINTS, runs="straight"))
    straight.run()
    run = pipeline(overrides("finetune", *short("finetune", steps=6), *CHECKPOINTS))
    save = artifact.save

    def full(family: Any, folder: Path, **options: Any) -> None:
        if "finetune" in str(folder):
            raise OSError(28, "No space left on device")
        save(family, folder, **options)

    monkeypatch.setattr(artifact, "save", full)
    with pytest.raises(OSError, match="No space left"):
        run.run()
    monkeypatch.setattr(artifact, "save", save)
    assert torch.load(run.stages[-1].checkpoint, weights_only=True)["global_step"] == 4
    again = pipeline(overrides("finetune", *short("finetune", steps=6), *CHECKPOINTS))
    again.run()
    assert same_tensors(weights(again), weights(straight))
    assert not again.stages[-1].checkpoint.exists()


def test_a_kill_between_record_and_measures_loses_neither(
    pipeline: Make,
    short: Make,
    records: Make,
    killed: type[BaseException],
    overrides: Make,
    fits: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = pipeline(overrides("finetune", *short("finetune")))
    publish = integrity.publish

    def dying(partial: Path, path: Path) -> None:
        if path.name == "measures.json" and "finetune" in str(path):
            partial.write_text(partial.read_text()[:20])
            raise killed
        publish(partial, path)

    monkeypatch.setattr(integrity, "publish", dying)
    with pytest.raises(killed):
        run.run()
    monkeypatch.setattr(integrity, "publish", publish)
    assert [row["stage"] for row in records(run)] == ["dense", "finetune"]
    again = pipeline(overrides("finetune", *short("finetune")))
    metrics = again.run()
    assert fits == ["Finetune"] and len(record.read(again.cfg.runs)) == 2
    assert record.read(again.cfg.runs)[-1].metrics == metrics


def test_what_kills_left_behind_is_cleared(pipeline: Make, short: Make, overrides: Make, fits: list[str]) -> None:
    arguments = overrides("finetune", *short("finetune"))
    run = pipeline(arguments)
    run.run()
    folder = run.stages[-1].folder
    for name in ("checkpoint.ckpt", "checkpoint.123.partial"):
        (folder / name).write_bytes(b"half of it")
    pipeline(arguments).run()
    assert fits == ["Finetune"]
    assert sorted(path.name for path in folder.iterdir()) == FILES
