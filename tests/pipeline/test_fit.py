"""A training that was stopped and resumed is the same as a straight one, and its curves are what was logged."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning.accelerators import CPUAccelerator
from safetensors.torch import load_file

from slimexp.config.explanation import explain
from slimexp.cut.keep import Keep
from slimexp.pipeline import fit
from slimexp.pipeline.pipeline import Pipeline
from slimexp.record.stage import Stage

Make = Callable[..., Any]
CHECKPOINTS = ("checkpoint.every_steps=2", "checkpoint.every_seconds=0", "checkpoint.share=null")


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage("prune", "k", "p", tmp_path)


@pytest.mark.fast
def test_a_stage_that_logged_nothing_has_no_curves(stage: Stage) -> None:
    assert fit.curves(stage) is None


@pytest.mark.fast
@pytest.mark.parametrize(
    ("last", "message"),
    [
        ("", ""),
        ('{"step": 2, "lo', ""),  # half a row, as a kill leaves it
        (
            '{"stfp": 2}\n',
            "prune: its curves.jsonl is damaged (line 2 is no row of it): the rows that can be read are kept\n",
        ),
    ],
    ids=["whole", "half a row", "damaged"],
)
def test_rows_of_curves_that_can_be_read_are_kept(
    stage: Stage, capsys: pytest.CaptureFixture[str], last: str, message: str
) -> None:
    row = json.dumps({"step": 1, "loss": 0.5}) + "\n"
    stage.curves.write_text(row + last)
    assert fit.curves(stage) == stage.curves.read_text() == row
    assert capsys.readouterr().out == message


@pytest.mark.fast
def test_curves_that_are_no_file_are_set_aside(stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    stage.curves.mkdir()
    assert fit.curves(stage) is None
    assert (stage.folder / "damaged-curves.jsonl").is_dir() and "its rows are lost" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("stage", "accumulate"),
    [
        ("finetune", 1),
        ("distill", 2),
        ("prune", 1),
        *(pytest.param(*other, marks=pytest.mark.slow) for other in (("finetune", 2), ("distill", 1), ("prune", 2))),
    ],
)
def test_resumed_equals_straight_bit_for_bit(
    pipeline: Make,
    short: Make,
    weights: Make,
    same_tensors: Make,
    killed: type[BaseException],
    overrides: Make,
    kill_after: Make,
    monkeypatch: pytest.MonkeyPatch,
    stage: str,
    accumulate: int,
    capsys: pytest.CaptureFixture[str],
) -> None:
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
        with pytest.raises(killed):
            interrupted.run()
        monkeypatch.undo()
    assert interrupted.stages[-1].checkpoint.exists() and not interrupted.stages[-1].artifact.exists()
    assert torch.load(interrupted.stages[-1].checkpoint, weights_only=True)["global_step"] == 4
    resumed = make("resumed")
    capsys.readouterr()
    with monkeypatch.context() as patch:
        if stage == "distill":
            patch.delattr(Keep, "choice")  # it is chosen once what stays
        assert resumed.run() == expected
    assert f"{stage}: resuming at step 4 of " in capsys.readouterr().out
    assert same_tensors(weights(resumed), weights(straight))
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
    pipeline: Make,
    short: Make,
    weights: Make,
    same_tensors: Make,
    killed: type[BaseException],
    overrides: Make,
    kill_after: Make,
    monkeypatch: pytest.MonkeyPatch,
    task: str,
    more: list[str],
) -> None:
    more = [*short("quantize", steps=7), *CHECKPOINTS, *more]

    def make(runs: str) -> Pipeline:
        return pipeline(overrides("quantize", *more, task=task, runs=runs))

    straight = make("straight")
    expected = straight.run()
    with monkeypatch.context():
        kill_after(2)
        interrupted = make("resumed")
        with pytest.raises(killed):
            interrupted.run()
        monkeypatch.undo()
    held = torch.load(interrupted.stages[-1].checkpoint, weights_only=True)
    assert held["global_step"] == 4
    assert any(name.endswith("scale") for name in held["state_dict"])  # frozen by then
    resumed = make("resumed")
    assert resumed.run() == expected
    assert same_tensors(weights(resumed), weights(straight))
    assert resumed.stages[-1].curves.read_text() == straight.stages[-1].curves.read_text()


def test_the_checkpoint_of_a_distillation_holds_no_teacher(
    pipeline: Make, short: Make, killed: type[BaseException], overrides: Make, kill_after: Make, tiny_folder: Make
) -> None:
    teacher = tiny_folder("seq2seq", name="large", d_model=256, d_ff=1024)
    arguments = overrides(
        "distill", *short("distill"), *CHECKPOINTS, "+model@pipeline.distill.teacher=pretrained",
        f"pipeline.distill.teacher.path={teacher}", "pipeline.distill.teacher.max_length=16",
    )  # fmt: skip
    run = pipeline(arguments)
    kill_after(1)
    with pytest.raises(killed):
        run.run()
    student = sum(tensor.numel() * 4 for tensor in load_file(run.stages[0].artifact / "model.safetensors").values())
    size = run.stages[-1].checkpoint.stat().st_size
    assert size <= 3 * student + 150_000 < (teacher / "model.safetensors").stat().st_size


def test_a_stage_that_is_stopped_early_is_not_finished(
    pipeline: Make, short: Make, records: Make, overrides: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its checkpoint is written before Lightning brings the model, its shards and its random state off the device."""
    arguments = overrides("prune", *short("prune", steps=500))
    stopped = pipeline([*arguments, "+trainer.max_time={seconds: 1}"])
    there: list[bool] = []
    monkeypatch.setattr(CPUAccelerator, "teardown", lambda self: there.append(stopped.stages[-1].checkpoint.exists()))
    with pytest.raises(ValueError, match=r"prune was stopped at step \d+ of 500 and is not finished"):
        stopped.run()
    stage = stopped.stages[-1]
    assert there == [True] and not stage.artifact.exists()
    assert [row["stage"] for row in records(stopped)] == ["dense"]


@pytest.mark.gpu
def test_a_stage_that_is_stopped_early_keeps_the_random_state_of_the_gpu(
    pipeline: Make, short: Make, overrides: Make
) -> None:
    chosen = ["trainer.accelerator=gpu", "+trainer.max_time={seconds: 1}"]
    stopped = pipeline([*overrides("finetune", *short("finetune", steps=5000)), *chosen])
    with pytest.raises(ValueError, match="is not finished"):
        stopped.run()
    assert "cuda" in torch.load(stopped.stages[-1].checkpoint, weights_only=True)["rng"]


def test_loss_that_is_not_finite_is_one_error_and_no_artifact(
    pipeline: Make, short: Make, records: Make, overrides: Make
) -> None:
    arguments = overrides("finetune", *short("finetune", steps=20), *CHECKPOINTS, "pipeline.finetune.clip_norm=0")
    run = pipeline([*arguments, "pipeline.finetune.optimizer.lr=1e30",
                     "lr_scheduler@pipeline.finetune.lr_scheduler=linear",
                    "pipeline.finetune.lr_scheduler.num_warmup_steps=19"])  # fmt: skip
    with pytest.raises(ValueError, match=r"is (nan|inf) at step \d+: lower optimizer\.lr") as caught:
        run.run()
    message = explain(caught.value)
    assert message is not None and "\n" not in message
    assert not run.stages[-1].artifact.exists() and [row["stage"] for row in records(run)] == ["dense"]
    if run.stages[-1].checkpoint.exists():
        kept = torch.load(run.stages[-1].checkpoint, weights_only=True)["state_dict"]
        assert all(tensor.isfinite().all() for tensor in kept.values() if tensor.is_floating_point())


def test_a_batch_of_more_rows_than_there_are_says_so(
    overrides: Make, pipeline: Make, short: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    cut = ["+cut@pipeline.distill.cut=keep", "pipeline.distill.cut.ffn=16"]
    pipeline(overrides("distill", *short("distill", steps=1), *cut, "pipeline.distill.batch_size=500")).run()
    said = re.search(r"1 steps of (\d+) rows, for the text has (\d+) and batch_size is 500", capsys.readouterr().out)
    assert said is not None and said[1] == said[2]
