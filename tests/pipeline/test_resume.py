"""Whatever finished is never done twice and never lost."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from slimexp import artifact, clean
from slimexp.config.check import check
from slimexp.config.composition import compose
from slimexp.pipeline import checkpoint
from slimexp.pipeline.pipeline import Pipeline
from slimexp.record import record

Make = Callable[..., Any]
ROOT = Path(__file__).parents[2]
FILES = ["artifact", "curves.jsonl", "lock", "measures.json"]
CHECKPOINTS = ("checkpoint.every_steps=2", "checkpoint.every_seconds=0")


def short(stage: str, *, steps: int = 5) -> list[str]:
    return [f"pipeline.{stage}.{value}" for value in (f"steps={steps}", "batch_size=4", "optimizer.lr=0.01")]


def pipeline(arguments: Sequence[str]) -> Pipeline:
    cfg = compose(arguments)
    check(cfg)
    return Pipeline(cfg, overrides=list(arguments))


def weights(run: Pipeline) -> dict[str, Tensor]:
    """Of the last stage, as deployed."""
    return load_file(run.stages[-1].artifact / "model.safetensors")


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def records(run: Pipeline) -> list[dict[str, Any]]:
    lines = (Path(run.cfg.runs) / record.FILE).read_text().splitlines()
    return [json.loads(line) for line in lines]


class Killed(BaseException):
    """What ends a run in a test."""


@pytest.fixture
def kill_after(monkeypatch: pytest.MonkeyPatch) -> Make:
    """End the run at the first batch after the n-th checkpoint."""

    def arm(count: int = 1) -> None:
        written, batch_end = [0], checkpoint.Checkpoint.on_train_batch_end

        def counting(self: Any, trainer: Any, *arguments: Any) -> None:
            if written[0] >= count:
                raise Killed
            before = self._last_step
            batch_end(self, trainer, *arguments)
            written[0] += self._last_step != before

        monkeypatch.setattr(checkpoint.Checkpoint, "on_train_batch_end", counting)

    return arm


# --- never twice --------------------------------------------------------------------------------------


def test_a_second_identical_run_reuses_everything(
    overrides: Make, fits: list[str], capsys: pytest.CaptureFixture[str]
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


def test_only_what_changed_is_done_again(overrides: Make, fits: list[str]) -> None:
    chain = [*short("finetune"), "+technique@pipeline.prune=prune", *short("prune"), "pipeline.prune.every=2"]
    one = pipeline(overrides("finetune", *chain))
    one.run()
    other = pipeline(overrides("finetune", *chain, "pipeline.prune.sparsity=0.7"))
    other.run()
    assert fits == ["Finetune", "Prune", "Prune"]
    assert [stage.key for stage in other.stages[:2]] == [stage.key for stage in one.stages[:2]]
    assert other.stages[2].key != one.stages[2].key
    assert len(records(other)) == 4


def test_other_measures_are_taken_of_what_is_there(overrides: Make, fits: list[str]) -> None:
    arguments = overrides("finetune", *short("finetune"))
    pipeline(arguments).run()
    again = pipeline([*arguments, "measure=[size]"])
    assert "disk_mb" in again.run()
    assert fits == ["Finetune"]
    assert [row["reused"] for row in records(again)] == [False, False, True, True]
    assert len(record.read(again.cfg.runs)) == 2


def test_measures_of_other_code_are_taken_again(overrides: Make, fits: list[str]) -> None:
    arguments = overrides("finetune", *short("finetune"))
    first = pipeline(arguments)
    metrics = first.run()
    file = first.stages[-1].folder / "measures.json"
    known = json.loads(file.read_text())
    file.write_text(json.dumps({**known, "code": "older", "metrics": {}}))
    assert pipeline(arguments).run() == metrics
    found = json.loads(file.read_text())
    assert fits == ["Finetune"]
    assert all(found[name] == known[name] for name in ("measure", "code", "metrics", "curves"))


def test_without_resume_everything_is_done_again(overrides: Make, fits: list[str], kill_after: Make) -> None:
    arguments = overrides("finetune", *short("finetune"), *CHECKPOINTS)
    first = pipeline(arguments)
    first.run()
    stamp = (first.stages[0].artifact / "manifest.json").stat().st_mtime_ns
    first.stages[-1].checkpoint.write_text("not a checkpoint")
    again = pipeline([*arguments, "resume=false"])
    again.run()
    assert fits == ["Finetune"] * 2
    assert (first.stages[0].artifact / "manifest.json").stat().st_mtime_ns > stamp
    assert same(weights(again), weights(first)) and not first.stages[-1].checkpoint.exists()
    assert [row["reused"] for row in records(again)] == [False] * 4


def test_text_or_weights_that_changed_under_the_same_path_are_other_work(overrides: Make, table: Path) -> None:
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


def test_what_is_only_seen_of_a_training_is_no_other_work(overrides: Make) -> None:
    def keys(*more: str) -> list[str]:
        return [stage.key for stage in pipeline(overrides("finetune", *more)).stages]

    seen = ["trainer.enable_progress_bar=true", "trainer.log_every_n_steps=7", "+trainer.profiler=simple"]
    assert keys(*seen) == keys("trainer=cpu") == keys()
    assert keys("trainer.precision=bf16-mixed")[1] != keys()[1]


# --- never lost ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("stage", ["finetune", "distill", "prune"])
def test_resumed_equals_straight_bit_for_bit(
    overrides: Make, kill_after: Make, monkeypatch: pytest.MonkeyPatch, stage: str, accumulate: int,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """With dropout, through the whole pipeline: weights, curves (learning rate, temperature), figures."""
    more = [*short(stage, steps=7), *CHECKPOINTS, f"pipeline.{stage}.accumulate={accumulate}"]
    more += ["pipeline.prune.every=1"] if stage == "prune" else []
    more += ["+cut@pipeline.distill.cut=keep", "pipeline.distill.cut.ffn=32"] if stage == "distill" else []

    def make(runs: str) -> Pipeline:
        return pipeline(overrides(stage, *more, runs=runs, dropout_rate=0.2))

    straight = make("straight")
    expected = straight.run()
    interrupted = make("resumed")
    with monkeypatch.context():
        kill_after(2)
        with pytest.raises(Killed):
            interrupted.run()
        monkeypatch.undo()
    assert interrupted.stages[-1].checkpoint.exists() and not interrupted.stages[-1].artifact.exists()
    assert torch.load(interrupted.stages[-1].checkpoint, weights_only=True)["global_step"] == 4
    resumed = make("resumed")
    capsys.readouterr()
    assert resumed.run() == expected
    assert f"{stage}: resuming from" in capsys.readouterr().out
    assert same(weights(resumed), weights(straight))
    assert resumed.stages[-1].curves.read_text() == straight.stages[-1].curves.read_text()
    assert [stage.key for stage in resumed.stages] == [stage.key for stage in straight.stages]


@pytest.mark.parametrize(
    ("task", "more"),
    [
        ("seq2seq", ["pipeline.quantize.freeze=0.3"]),
        ("causal_lm", ["quantizer@pipeline.quantize.quantizer=lsq", "pipeline.quantize.freeze=0.3",
                       "pipeline.quantize.activation_bits=null", "pipeline.quantize.bits=4"]),
        ("causal_lm", ["quantizer@pipeline.quantize.activation_quantizer=static", "pipeline.quantize.freeze=0.3",
                       "pipeline.quantize.calibration_rows=4"]),
        ("causal_lm", ["+allocation@pipeline.quantize.allocation=mixed_precision", "pipeline.quantize.bits=4",
                       "pipeline.quantize.allocation.rows=2", "pipeline.quantize.activation_bits=null",
                       "pipeline.quantize.freeze=0.3"]),
    ],
    ids=["per token", "learned", "static", "mixed"],
)  # fmt: skip
def test_quantization_resumed_after_its_grids_were_frozen_equals_straight(
    overrides: Make, kill_after: Make, monkeypatch: pytest.MonkeyPatch, task: str, more: list[str]
) -> None:
    more = [*short("quantize", steps=7), *CHECKPOINTS, *more]

    def make(runs: str) -> Pipeline:
        return pipeline(overrides("quantize", *more, task=task, runs=runs))

    straight = make("straight")
    expected = straight.run()
    with monkeypatch.context():
        kill_after(2)
        interrupted = make("resumed")
        with pytest.raises(Killed):
            interrupted.run()
        monkeypatch.undo()
    held = torch.load(interrupted.stages[-1].checkpoint, weights_only=True)
    assert held["global_step"] == 4
    assert any(name.endswith("scale") for name in held["state_dict"])  # frozen by then
    resumed = make("resumed")
    assert resumed.run() == expected
    assert same(weights(resumed), weights(straight))
    assert resumed.stages[-1].curves.read_text() == straight.stages[-1].curves.read_text()


def test_the_checkpoint_of_a_distillation_holds_no_teacher(
    overrides: Make, kill_after: Make, tiny_folder: Make
) -> None:
    teacher = tiny_folder("seq2seq", name="large", d_model=256, d_ff=1024)
    arguments = overrides(
        "distill", *short("distill"), *CHECKPOINTS, "+model@pipeline.distill.teacher=pretrained",
        f"pipeline.distill.teacher.path={teacher}", "pipeline.distill.teacher.max_length=16",
    )  # fmt: skip
    run = pipeline(arguments)
    kill_after(1)
    with pytest.raises(Killed):
        run.run()
    student = sum(tensor.numel() * 4 for tensor in load_file(run.stages[0].artifact / "model.safetensors").values())
    size = run.stages[-1].checkpoint.stat().st_size
    assert size <= 3 * student + 150_000 < (teacher / "model.safetensors").stat().st_size


def test_a_disk_that_fills_up_while_saving_loses_no_training(
    overrides: Make, fits: list[str], monkeypatch: pytest.MonkeyPatch
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
    assert same(weights(again), weights(straight))
    assert not again.stages[-1].checkpoint.exists()


def test_a_kill_between_record_and_measures_loses_neither(
    overrides: Make, fits: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = pipeline(overrides("finetune", *short("finetune")))
    write = Path.write_text

    def dying(path: Path, *arguments: Any, **options: Any) -> int:
        if path.name == "measures.partial" and "finetune" in str(path):
            write(path, arguments[0][:20])
            raise Killed
        return write(path, *arguments, **options)

    monkeypatch.setattr(Path, "write_text", dying)
    with pytest.raises(Killed):
        run.run()
    monkeypatch.setattr(Path, "write_text", write)
    assert [row["stage"] for row in records(run)] == ["dense", "finetune"]
    again = pipeline(overrides("finetune", *short("finetune")))
    metrics = again.run()
    assert fits == ["Finetune"] and len(record.read(again.cfg.runs)) == 2
    assert record.read(again.cfg.runs)[-1].metrics == metrics


def test_what_kills_left_behind_is_cleared(overrides: Make, fits: list[str]) -> None:
    arguments = overrides("finetune", *short("finetune"))
    run = pipeline(arguments)
    run.run()
    folder = run.stages[-1].folder
    for name in ("checkpoint.ckpt", "checkpoint.123.partial"):
        (folder / name).write_bytes(b"half of it")
    pipeline(arguments).run()
    assert fits == ["Finetune"]
    assert sorted(path.name for path in folder.iterdir()) == FILES


def test_a_stage_that_is_stopped_early_is_not_finished(overrides: Make) -> None:
    arguments = overrides("prune", *short("prune", steps=500))
    stopped = pipeline([*arguments, "+trainer.max_time={seconds: 1}"])
    with pytest.raises(ValueError, match=r"prune was stopped at step \d+ of 500 and is not finished"):
        stopped.run()
    stage = stopped.stages[-1]
    assert stage.checkpoint.exists() and not stage.artifact.exists()
    assert [row["stage"] for row in records(stopped)] == ["dense"]


# --- real processes -----------------------------------------------------------------------------------


def start(arguments: Sequence[str], cwd: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "slimexp.train", *arguments], cwd=cwd, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    while not path.exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)


@pytest.fixture
def many_steps(overrides: Make) -> list[str]:
    more = [*short("finetune", steps=80), "checkpoint.every_steps=1", "checkpoint.every_seconds=0"]
    return overrides("finetune", *more, dropout_rate=0.2)


def test_a_killed_process_goes_on_where_it_was(many_steps: list[str], overrides: Make, tmp_path: Path) -> None:
    straight = pipeline([*many_steps, f"runs={tmp_path / 'straight'}"])
    straight.run()
    same_place = pipeline(many_steps)
    killed = start(many_steps, tmp_path)
    wait_for(same_place.stages[-1].checkpoint, killed)
    killed.kill()
    assert killed.wait() == -signal.SIGKILL
    assert same_place.stages[0].artifact.exists() and not same_place.stages[-1].artifact.exists()
    out, err = (again := start(many_steps, tmp_path)).communicate(timeout=120)
    assert again.returncode == 0, err
    assert "finetune: resuming from" in out and "dense: finished before, reused" in out
    assert same(weights(same_place), weights(straight))
    assert [row.stage for row in record.read(same_place.cfg.runs)] == ["dense", "finetune"]


@pytest.mark.parametrize(
    ("number", "times", "word"), [(signal.SIGINT, 1, "interrupted"), (signal.SIGTERM, 2, "terminated")]
)
def test_a_signal_ends_it_by_one_line_and_keeps_what_is_finished(
    many_steps: list[str], tmp_path: Path, number: int, times: int, word: str
) -> None:
    expected = pipeline(many_steps)
    process = start(many_steps, tmp_path)
    wait_for(expected.stages[-1].checkpoint, process)
    assert clean.main([str(expected.cfg.runs), "--dominated", "--unfinished", "--yes"]) == 2  # a run is at work
    for _ in range(times):
        process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert err.splitlines() == [f"{word}: what is finished is kept, the same command goes on from there"]
    assert [row["stage"] for row in records(expected)] == ["dense"]
    assert torch.load(expected.stages[-1].checkpoint, weights_only=True)["global_step"] >= 1
    artifact.deployed(expected.stages[0].artifact)
