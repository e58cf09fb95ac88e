"""Whatever finished is never done twice and never lost, and what is recorded is what was made."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from safetensors.torch import load_file
from torch import Tensor

from slimexp import artifact, checkpoint, record
from slimexp.attachment import attached
from slimexp.config import check, compose, explain
from slimexp.importance.mask import Mask
from slimexp.model.tokenizer import Bpe
from slimexp.pipeline import Pipeline
from slimexp.quantizer.base import Quantizer

Make = Callable[..., Any]
ROOT = Path(__file__).parents[1]
FILES = ["artifact", "curves.jsonl", "lock", "measures.json"]
CHECKPOINTS = ("checkpoint.every_steps=2", "checkpoint.every_seconds=0")


@pytest.fixture
def overrides(tiny_folder: Make, table: Path, tmp_path: Path) -> Make:
    """Pipeline (and more overrides) -> the command line of a run that takes a second."""
    folders: dict[str, Path] = {}

    def make(pipeline: str, *more: str, task: str = "seq2seq", runs: str = "runs", **config: Any) -> list[str]:
        kind = f"{task}{config}"
        if kind not in folders:
            folders[kind] = tiny_folder(task, name=f"dense{len(folders)}", **config)
        return [
            "model=pretrained", f"model.path={folders[kind]}", "model.max_length=16",
            "data=files", f"data.path={table}", f"data.task={task}",
            f"pipeline={pipeline}", "logger=none", "trainer=fast", f"runs={tmp_path / runs}", "measure=[size,task]",
            *more,
        ]  # fmt: skip

    return make


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


@pytest.fixture
def fits(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Grows by the technique's name at every training."""
    seen: list[str] = []
    fit = pl.Trainer.fit

    def counting(self: pl.Trainer, model: Any, *arguments: Any, **options: Any) -> None:
        seen.append(type(model).__name__)
        fit(self, model, *arguments, **options)

    monkeypatch.setattr(pl.Trainer, "fit", counting)
    return seen


# --- one stage -------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["seq2seq", "causal_lm", "classification"])
def test_a_run_leaves_artifacts_measures_curves_and_records(overrides: Make, task: str) -> None:
    run = pipeline(overrides("finetune", *short("finetune"), task=task))
    metrics = run.run()
    dense, stage = run.stages
    assert (dense.name, stage.name) == ("dense", "finetune") and stage.parent == dense.key
    assert stage.folder == Path(run.cfg.runs) / "run" / f"finetune-{stage.key}"
    for folder in (dense.folder, stage.folder):
        assert (folder / "artifact" / "manifest.json").exists() and (folder / "measures.json").exists()
    assert not stage.checkpoint.exists() and len(stage.curves.read_text().splitlines()) == 5
    assert sorted(path.name for path in stage.folder.iterdir()) == FILES
    assert run.corpus.headline in metrics and metrics["disk_mb"] > 0
    assert not same(weights(run), load_file(dense.artifact / "model.safetensors"))


def test_the_record_line_has_everything(overrides: Make) -> None:
    arguments = overrides("finetune", *short("finetune"), "seed=3", "name=mine")
    run = pipeline(arguments)
    metrics = run.run()
    first, last = records(run)
    assert (first["stage"], first["technique"], first["parent"]) == ("dense", "dense", None)
    assert (last["stage"], last["technique"], last["parent"]) == ("finetune", "Finetune", first["key"])
    assert last["schema"] == record.SCHEMA and last["name"] == "mine" and last["seed"] == 3
    assert last["overrides"] == arguments
    assert last["config"]["pipeline"]["finetune"]["steps"] == 5 and last["config"]["seed"] == 3
    assert last["directions"]["exact_match"] == "max" and last["directions"]["disk_mb"] == "min"
    assert first["baseline_key"] == last["baseline_key"] == first["key"]
    assert last["metrics"] == metrics and last["baseline"] == first["metrics"] == first["baseline"]
    assert (last["headline"], last["direction"]) == (run.corpus.headline, run.corpus.direction)
    assert last["trivial"] == run.corpus.trivial(run.corpus.splits["test"])
    assert last["seconds"]["train"] > 0 < last["seconds"]["measure"] and last["reused"] is False
    assert {"torch", "transformers"} <= last["versions"].keys() and last["hardware"]["cores"]
    assert "git" in last and last["kernel"] == "float32 matmul"
    runs = Path(run.cfg.runs)
    assert (runs / last["artifact"]).is_dir() and (runs / last["curves"]).is_file() and first["curves"] is None
    assert [row.key for row in record.read(runs)] == [first["key"], last["key"]]


def test_one_shot_trains_nothing(overrides: Make, fits: list[str]) -> None:
    run = pipeline(overrides("prune", "pipeline.prune.steps=0", "pipeline.prune.sparsity=0.5"))
    run.run()
    assert fits == []
    assert records(run)[-1]["curves"] is None and not run.stages[-1].curves.exists()
    zeros = [float((tensor == 0).float().mean()) for name, tensor in weights(run).items() if ".wo.weight" in name]
    assert zeros == [pytest.approx(0.5, abs=0.01)] * 4


# --- never twice -----------------------------------------------------------------------------------


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
    assert fits == ["Finetune"] and json.loads(file.read_text()) == known


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
    artifact.shutil.copytree(folder, teacher)
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


# --- never lost ------------------------------------------------------------------------------------


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


def test_quantization_with_a_teacher_is_a_config(overrides: Make, tiny_folder: Make) -> None:
    kl = ["+loss@pipeline.quantize.losses.kl=kl", *short("quantize")]
    run = pipeline(overrides("quantize", *kl))
    run.run()  # the dense model teaches where no other is named
    rows = [json.loads(line) for line in run.stages[-1].curves.read_text().splitlines()]
    assert all({"ce", "kl"} <= row.keys() for row in rows) and rows[0]["kl"] > 0
    large = tiny_folder("seq2seq", name="large", d_model=64)
    named = ["+model@pipeline.quantize.teacher=pretrained", f"pipeline.quantize.teacher.path={large}",
             "pipeline.quantize.teacher.max_length=16"]  # fmt: skip
    other = pipeline(overrides("quantize", *kl, *named))
    other.run()
    taught = [json.loads(line) for line in other.stages[-1].curves.read_text().splitlines()]
    assert taught[0]["ce"] == rows[0]["ce"] and taught[0]["kl"] != rows[0]["kl"]
    with pytest.raises(ValueError, match="no loss reads the teacher"):
        pipeline(overrides("quantize", *short("quantize"), *named))


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


def test_loss_that_is_not_finite_is_one_error_and_no_artifact(overrides: Make) -> None:
    arguments = overrides("finetune", *short("finetune", steps=20), *CHECKPOINTS, "pipeline.finetune.clip_norm=0")
    run = pipeline([*arguments, "pipeline.finetune.optimizer.lr=1e30", "scheduler@pipeline.finetune.scheduler=linear",
                    "pipeline.finetune.scheduler.num_warmup_steps=19"])  # fmt: skip
    with pytest.raises(ValueError, match=r"is (nan|inf) at step \d+: lower optimizer\.lr") as caught:
        run.run()
    message = explain(caught.value)
    assert message is not None and "\n" not in message
    assert not run.stages[-1].artifact.exists() and [row["stage"] for row in records(run)] == ["dense"]
    if run.stages[-1].checkpoint.exists():
        kept = torch.load(run.stages[-1].checkpoint, weights_only=True)["state_dict"]
        assert all(tensor.isfinite().all() for tensor in kept.values() if tensor.is_floating_point())


# --- chains ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["seq2seq", "causal_lm"])
def test_prune_quantize_distill_keeps_masks_in_the_packed_weights(overrides: Make, task: str) -> None:
    arguments = overrides("prune_quantize_distill", task=task)
    for stage in ("prune", "quantize", "distill"):
        arguments += [*short(stage), f"pipeline.{stage}.optimizer.weight_decay=0.5"]
    run = pipeline([*arguments, "pipeline.prune.every=1", "pipeline.quantize.activation_bits=null"])
    metrics = run.run()
    _, pruned, quantized, distilled = run.stages

    def masks(folder: Path) -> dict[str, Tensor]:
        found = attached(artifact.load(folder).model)
        return {place.module: a.mask for place, a in found if isinstance(a, Mask)}

    expected = masks(pruned.artifact)
    family = artifact.deployed(distilled.artifact)
    layers = family.compressible()
    assert expected.keys() == layers.keys()
    for name, mask in expected.items():
        assert float((~mask).float().mean()) == pytest.approx(0.5, abs=0.01)
        assert (layers[name].weight[~mask] == 0).all()
    for later in (quantized, distilled):
        assert all(torch.equal(mask, expected[name]) for name, mask in masks(later.artifact).items())
    trained = artifact.load(distilled.artifact).model
    assert any(isinstance(a, Quantizer) for _, a in attached(trained))
    for name, layer in layers.items():  # what was trained is what was packed
        assert torch.equal(layer.weight, trained.get_submodule(name).weight)

    history = artifact.read_manifest(distilled.artifact)["stages"]
    assert [stage["technique"] for stage in history] == ["Prune", "Quantize", "Distill"]
    assert [stage["key"] for stage in history] == [pruned.key, quantized.key, distilled.key]
    rows = records(run)
    assert [row["stage"] for row in rows] == ["dense", "prune", "quantize", "distill"]
    assert rows[2]["metrics"]["weights_mb"] < rows[0]["metrics"]["weights_mb"]
    assert metrics["weights_mb"] == pytest.approx(rows[2]["metrics"]["weights_mb"])
    assert metrics["params_nonzero"] < 0.8 * rows[0]["metrics"]["params_nonzero"]
    assert all(row["baseline"] == rows[0]["metrics"] for row in rows)


def test_random_weights_are_no_baseline(overrides: Make, tmp_path: Path) -> None:
    arguments = [a for a in overrides("finetune", *short("finetune")) if not a.startswith("model")]
    tiny = "{model_type: t5, d_model: 32, d_kv: 8, d_ff: 48, num_heads: 4, num_layers: 1, num_decoder_layers: 1}"
    arguments += ["model=scratch", f"model.config={tiny}", "model.max_length=16"]
    cut = ["+technique@pipeline.distill=distill", "+cut@pipeline.distill.cut=keep", "pipeline.distill.cut.ffn=32"]
    run = pipeline([*arguments, *cut, *short("distill")])
    run.run()
    trained, distilled = records(run)
    assert (trained["stage"], distilled["stage"]) == ("finetune", "distill")
    assert trained["baseline"] == trained["metrics"] == distilled["baseline"]
    assert trained["baseline_key"] == trained["key"] == distilled["baseline_key"]


def test_trackers_find_the_last_stage_under_one_name(overrides: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    told: dict[str, dict[str, float]] = {}
    monkeypatch.setattr("slimexp.tracker.Silent.summary", lambda self, stage, metrics: told.update({stage: metrics}))
    metrics = pipeline(overrides("finetune", *short("finetune"))).run()
    assert list(told) == ["dense", "finetune", "final"] and told["final"] == told["finetune"] == metrics


# --- said before anything is trained ---------------------------------------------------------------


def test_what_comes_in_small_is_compared_with_the_dense_model(overrides: Make) -> None:
    """A cut-out model with the one it was cut from, a compressed one with the one that is named."""
    arguments = overrides("finetune", *short("finetune"))
    path = next(line.removeprefix("model.path=") for line in arguments if line.startswith("model.path="))
    cut = [f"model.source.{line}" for line in (f"path={path}", "max_length=16")] + ["model.cut.ffn=24"]
    cut_out = pipeline([line for line in arguments if not line.startswith("model")] + ["model=cut_out", *cut])
    cut_out.run()
    dense, start, tuned = records(cut_out)
    assert [row["stage"] for row in (dense, start, tuned)] == ["dense", "start", "finetune"]
    assert {row["baseline_key"] for row in (dense, start, tuned)} == {dense["key"]}
    assert start["metrics"]["params_live"] == tuned["metrics"]["params_live"] < dense["metrics"]["params_live"]

    pruned = pipeline(overrides("prune", *short("prune")))
    pruned.run()
    source = [line for line in overrides("distill", *short("distill")) if not line.startswith("model.path=")]
    source += [f"model.path={pruned.stages[-1].artifact}", "name=again"]
    with pytest.raises(ValueError, match=r"model is compressed \(prune\): name the dense model by model@baseline="):
        pipeline(source)
    again = pipeline([*source, "model@baseline=pretrained", f"baseline.path={path}", "baseline.max_length=16"])
    again.run()
    dense, start, distilled = records(again)[-3:]
    assert (start["stage"], start["parent"], distilled["parent"]) == ("start", None, start["key"])
    assert {row["baseline_key"] for row in (dense, start, distilled)} == {dense["key"]}
    history = artifact.read_manifest(again.stages[-1].artifact)["stages"]
    assert [stage["name"] for stage in history] == ["prune", "distill"]
    assert distilled["metrics"]["params_nonzero"] < 0.9 * dense["metrics"]["params_nonzero"]


def test_a_stage_that_is_stopped_early_is_not_finished(overrides: Make) -> None:
    arguments = overrides("prune", *short("prune", steps=500))
    stopped = pipeline([*arguments, "+trainer.max_time={seconds: 1}"])
    with pytest.raises(ValueError, match=r"prune was stopped at step \d+ of 500 and is not finished"):
        stopped.run()
    stage = stopped.stages[-1]
    assert stage.checkpoint.exists() and not stage.artifact.exists()
    assert [row["stage"] for row in records(stopped)] == ["dense"]


def test_a_teacher_of_another_vocabulary(overrides: Make, tiny_folder: Make) -> None:
    folder = tiny_folder("seq2seq", name="teacher")
    teacher = [f"pipeline.distill.teacher.{value}" for value in (f"path={folder}", "max_length=16")]
    arguments = overrides("distill", "+model@pipeline.distill.teacher=pretrained", *teacher)
    pipeline(arguments)
    Bpe(vocab_size=300, characters=100).build(["text"]).save_pretrained(folder)
    with pytest.raises(ValueError, match=r"^pipeline\.distill\.teacher: teacher and student read different"):
        pipeline(arguments)


def test_a_model_of_another_task(overrides: Make) -> None:
    arguments = [a for a in overrides("finetune") if not a.startswith("data.task")]
    with pytest.raises(ValueError, match="of type t5, which does not serve the task 'classification'"):
        pipeline([*arguments, "data.task=classification"])


def test_a_type_that_is_none(overrides: Make) -> None:
    for name in ("bfloat61", "int8", "nn"):
        with pytest.raises(ValueError, match=rf"save_dtype must be a torch floating-point type .*, got '{name}'"):
            pipeline(overrides("finetune", f"save_dtype={name}"))


def test_a_measure_that_does_not_fit_the_task(overrides: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    from slimexp.measure.size import Size

    def refuse(self: Size, task: str) -> None:
        raise ValueError(f"not for {task}")

    monkeypatch.setattr(Size, "validate", refuse)
    with pytest.raises(ValueError, match="not for seq2seq"):
        pipeline(overrides("finetune"))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["pipeline.prune.include=['*.mlp']"], "include: no layer is called '\\*.mlp'; there are encoder"),
        (["pipeline.prune.min_coverage=0.99"], r"min_coverage is 99\.0%"),
        (["pattern@pipeline.prune.pattern=n_m", "pipeline.prune.pattern.m=5", "pipeline.prune.sparsity=0.4"],
         "m must divide the length of a row, got 5 for rows of 32"),
    ],
    ids=str,
)  # fmt: skip
def test_layers_that_cannot_be_pruned_are_refused_before_anything_is_measured(
    overrides: Make, wrong: list[str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        pipeline(overrides("prune", *wrong))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["pipeline.quantize.group_size=20"], r"layer 'encoder\..*': group_size must divide .*, got 20 for rows of 32"),
        (["pipeline.quantize.include=['*.mlp']"], "include: no layer is called '\\*.mlp'; there are encoder"),
        (["pipeline.quantize.min_coverage=0.99"], r"min_coverage is 99\.0%"),
        (["pipeline.quantize.min_coverage=0"], r"min_coverage must be in \(0, 1\]"),
        (["pipeline.quantize.bits=9"], "bits must be 2 to 8, got 9"),
        (["pipeline.quantize.bits=4"], "cannot load an encoder-decoder with 4-bit weights and quantized activations"),
        (["+technique@pipeline.again=quantize", "pipeline.again.steps=0"], "a pipeline quantizes once"),
        (["quantizer@pipeline.quantize.activation_quantizer=static", "pipeline.quantize.calibration_rows=0"],
         "calibration_rows must be >= 1, got 0"),
    ],
    ids=str,
)  # fmt: skip
def test_what_cannot_be_quantized_is_refused_before_anything_is_measured(
    overrides: Make, wrong: list[str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        pipeline(overrides("quantize", "pipeline.quantize.steps=0", *wrong))


def test_a_quantized_artifact_is_not_quantized_again(overrides: Make) -> None:
    run = pipeline(overrides("quantize", "pipeline.quantize.steps=0"))
    run.run()
    dense, quantized = (stage.artifact for stage in run.stages)
    again = [
        "pipeline.quantize.steps=0",
        f"model.path={quantized}",
        "model@baseline=pretrained",
        f"baseline.path={dense}",
    ]
    with pytest.raises(ValueError, match="the model is quantized already: quantize once"):
        pipeline(overrides("quantize", *again))


def test_layers_that_removal_will_leave_are_not_judged_before_it(overrides: Make) -> None:
    """The students have rows of 25 neurons, which the model has not."""
    cut = ["+technique@pipeline.distill=distill", "+cut@pipeline.distill.cut=keep", "pipeline.distill.cut.ffn=25"]
    after = ["pipeline.prune.include=['*.wo']", "pipeline.prune.min_coverage=0.01", "pipeline.prune.pattern.m=5"]
    lines = overrides("finetune", *cut, "+technique@pipeline.prune=prune", *after, "pipeline.prune.sparsity=0.4",
                      "pattern@pipeline.prune.pattern=n_m", "~pipeline.finetune")  # fmt: skip
    pipeline(lines)


def test_constructing_a_pipeline_writes_nothing(overrides: Make, tmp_path: Path) -> None:
    run = pipeline(overrides("finetune"))
    assert not Path(run.cfg.runs).exists()


# --- real processes --------------------------------------------------------------------------------


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


def test_ctrl_c_ends_with_one_line_and_keeps_what_is_finished(many_steps: list[str], tmp_path: Path) -> None:
    expected = pipeline(many_steps)
    process = start(many_steps, tmp_path)
    wait_for(expected.stages[-1].checkpoint, process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.splitlines() == ["interrupted: what is finished is kept, the same command goes on from there"]
    assert [row["stage"] for row in records(expected)] == ["dense"]
    assert torch.load(expected.stages[-1].checkpoint, weights_only=True)["global_step"] >= 1
    artifact.deployed(expected.stages[0].artifact)


@pytest.mark.parametrize("name", ["dense", "start", "final"])
def test_names_with_a_meaning_are_no_names_of_stages(overrides: Make, name: str) -> None:
    with pytest.raises(ValueError, match=f"a stage cannot be called '{name}'"):
        pipeline(overrides("finetune", f"+technique@pipeline.{name}=finetune"))
