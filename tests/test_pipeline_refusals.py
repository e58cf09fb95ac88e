"""What cannot be is refused before anything is trained."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from slimexp.config import check, compose
from slimexp.model.tokenizer import Bpe
from slimexp.pipeline import Pipeline

Make = Callable[..., Any]


def pipeline(arguments: Sequence[str]) -> Pipeline:
    cfg = compose(arguments)
    check(cfg)
    return Pipeline(cfg, overrides=list(arguments))


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
    (quantized / "manifest.json").unlink()  # as another tool would have left it
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


@pytest.mark.parametrize("name", ["dense", "start", "final"])
def test_names_with_a_meaning_are_no_names_of_stages(overrides: Make, name: str) -> None:
    with pytest.raises(ValueError, match=f"a stage cannot be called '{name}'"):
        pipeline(overrides("finetune", f"+technique@pipeline.{name}=finetune"))
