"""What cannot be done is refused before anything is loaded, a run and an evaluation in the same words."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from slimexp import artifact
from slimexp.config.composition import compose
from slimexp.model.loading import Pretrained
from slimexp.model.tokenizer import Bpe
from slimexp.pipeline import preflight
from slimexp.record import record

Make = Callable[..., Any]


@pytest.fixture
def shared(tiny: Make, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What both commands are given: an artifact, which reads 64 tokens, and text."""
    artifact.save(tiny("seq2seq"), tmp_path / "model", dtype=torch.float32, stages=[])
    monkeypatch.delattr(Pretrained, "load")
    model = ["model=pretrained", f"model.path={tmp_path / 'model'}"]
    return [*model, "data=files", f"data.path={table}", "data.task=seq2seq", "measure=[size]", f"runs={tmp_path}"]


def training(words: Sequence[str]) -> preflight.TrainingParts:
    run = ["pipeline=prune", "logger=none", "trainer=fast", "model.max_length=64"]
    return preflight.training(compose([*run, *words]))


def evaluation(words: Sequence[str]) -> preflight.EvaluationParts:
    return preflight.evaluation(compose(words, "evaluate"))


COMMANDS = pytest.mark.parametrize("command", [training, evaluation])


@COMMANDS
def test_what_can_be_is_built(command: Make, shared: list[str]) -> None:
    parts = command(shared)
    assert parts.dense is parts.source and parts.source.max_length == 64
    assert list(parts.measures) == ["size"] and parts.corpus.task == "seq2seq"


@COMMANDS
def test_a_damaged_model(command: Make, shared: list[str], tmp_path: Path) -> None:
    (tmp_path / "model" / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=rf"^model '{tmp_path / 'model'}' is damaged \(config\.json has 2 of "):
        command(shared)


@COMMANDS
def test_no_place_for_records(command: Make, shared: list[str], tmp_path: Path) -> None:
    (tmp_path / record.FILE).mkdir()
    with pytest.raises(ValueError, match=rf"^{tmp_path / record.FILE} must be a file"):
        command(shared)


@COMMANDS
def test_a_model_of_another_task(command: Make, shared: list[str]) -> None:
    with pytest.raises(ValueError, match="is of type t5, which does not serve the task 'classification'"):
        command([*shared, "data.task=classification"])


@COMMANDS
def test_a_damaged_baseline(command: Make, shared: list[str], tiny: Make, tmp_path: Path) -> None:
    artifact.save(tiny("seq2seq"), tmp_path / "other", dtype=torch.float32, stages=[])
    (tmp_path / "other" / "model.safetensors").unlink()
    named = ["model@baseline=pretrained", f"baseline.path={tmp_path / 'other'}", "baseline.max_length=64"]
    with pytest.raises(ValueError, match=r"other' is damaged \(model\.safetensors is missing\)"):
        command([*shared, *named])


def test_a_teacher_of_another_vocabulary(pipeline: Make, overrides: Make, tiny_folder: Make) -> None:
    folder = tiny_folder("seq2seq", name="teacher")
    teacher = [f"pipeline.distill.teacher.{value}" for value in (f"path={folder}", "max_length=16")]
    arguments = overrides("distill", "+model@pipeline.distill.teacher=pretrained", *teacher)
    pipeline(arguments)
    Bpe(vocab_size=300, characters=100).build(["text"]).save_pretrained(folder)
    with pytest.raises(ValueError, match=r"^pipeline\.distill\.teacher: teacher and student read different"):
        pipeline(arguments)


def test_a_teacher_that_is_nowhere_and_a_cut_that_cannot_be_are_named_by_their_keys(
    pipeline: Make, overrides: Make
) -> None:
    nowhere = ["+model@pipeline.distill.teacher=pretrained", "pipeline.distill.teacher.path=/no/such"]
    with pytest.raises(ValueError, match=r"^pipeline\.distill\.teacher: .*; pipeline\.distill\.teacher\.path takes a"):
        pipeline(overrides("distill", *nowhere))
    cut = ["+cut@pipeline.distill.cut=keep", "pipeline.distill.cut.encoder_layers=[9]"]
    with pytest.raises(ValueError, match=r"^pipeline\.distill: cut: blocks of the encoder"):
        pipeline(overrides("distill", *cut))


def test_a_run_of_a_model_of_another_task(pipeline: Make, overrides: Make) -> None:
    arguments = [a for a in overrides("finetune") if not a.startswith("data.task")]
    with pytest.raises(ValueError, match="of type t5, which does not serve the task 'classification'"):
        pipeline([*arguments, "data.task=classification"])


def test_a_type_that_is_none(pipeline: Make, overrides: Make) -> None:
    for name in ("bfloat61", "int8", "nn"):
        with pytest.raises(ValueError, match=rf"save_dtype must be a torch floating-point type .*, got '{name}'"):
            pipeline(overrides("finetune", f"save_dtype={name}"))


def test_a_measure_that_does_not_fit_the_task(pipeline: Make, overrides: Make, monkeypatch: pytest.MonkeyPatch) -> None:
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
    pipeline: Make, overrides: Make, wrong: list[str], message: str
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
    pipeline: Make, overrides: Make, wrong: list[str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        pipeline(overrides("quantize", "pipeline.quantize.steps=0", *wrong))


def test_a_quantized_artifact_is_not_quantized_again(pipeline: Make, overrides: Make) -> None:
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


def test_layers_that_removal_will_leave_are_not_judged_before_it(pipeline: Make, overrides: Make) -> None:
    """The students have rows of 25 neurons, which the model has not."""
    cut = ["+technique@pipeline.distill=distill", "+cut@pipeline.distill.cut=keep", "pipeline.distill.cut.ffn=25"]
    after = ["pipeline.prune.include=['*.wo']", "pipeline.prune.min_coverage=0.01", "pipeline.prune.pattern.m=5"]
    lines = overrides("finetune", *cut, "+technique@pipeline.prune=prune", *after, "pipeline.prune.sparsity=0.4",
                      "pattern@pipeline.prune.pattern=n_m", "~pipeline.finetune")  # fmt: skip
    pipeline(lines)


REMOVES = ["+technique@pipeline.prune_structured=prune_structured", "pipeline.prune_structured.steps=0"]


ROUNDS = ["+technique@pipeline.quantize=quantize", "pipeline.quantize.steps=0", "~pipeline.finetune"]


IN_GROUPS = [*ROUNDS, "pipeline.quantize.bits=4", "pipeline.quantize.activation_bits=null"]


def test_removal_keeps_to_what_a_later_stage_divides(pipeline: Make, overrides: Make) -> None:
    """Rows of 48 neurons and 32 channels: groups of 16 let both be cut, whatever multiple the removal would take."""
    lines = [*REMOVES, "pipeline.prune_structured.multiple=4", *IN_GROUPS, "pipeline.quantize.group_size=16"]
    run = pipeline(overrides("finetune", *lines, task="causal_lm"))
    assert run.multiples == {"prune_structured": 16}
    assert run.techniques["prune_structured"].multiple == 16
    keys = {stage.name: stage.key for stage in run.stages}
    alone = pipeline(overrides("finetune", *REMOVES, "pipeline.prune_structured.multiple=4", "~pipeline.finetune",
                               task="causal_lm"))  # fmt: skip
    assert alone.multiples == {} and alone.stages[-1].key != keys["prune_structured"]
    run.run()
    config = json.loads((run.stages[-1].artifact / "config.json").read_text())
    assert config["intermediate_size"] % 16 == 0


@pytest.mark.parametrize(
    ("earlier", "later", "message"),
    [
        (["pipeline.prune_structured.axes=[ffn]"], ["pipeline.quantize.group_size=24"],
         r"layer 'model\.layers\.0\.\w+\.\w+': group_size must divide the length of a row, got 24 for rows of 32"),
        ([], ["pipeline.quantize.group_size=64"],
         r"^pipeline\.quantize\.group_size=64 cannot be met after pipeline\.prune_structured: 'heads' has no multiple "
         "of 64 up to its own 32: lower the multiple"),
    ],
    ids=str,
)  # fmt: skip
def test_what_removal_cannot_leave_is_refused_before_anything_is_measured(
    pipeline: Make, overrides: Make, earlier: list[str], later: list[str], message: str
) -> None:
    lines = [*REMOVES, "pipeline.prune_structured.multiple=4", *earlier, *IN_GROUPS, *later]
    with pytest.raises(ValueError, match=message):
        pipeline(overrides("finetune", *lines, task="causal_lm"))


@pytest.mark.parametrize(
    ("cut", "later", "message"),
    [
        ("ffn=36", ["+technique@pipeline.quantize=quantize", "pipeline.quantize.steps=0", "pipeline.quantize.bits=4",
                    "pipeline.quantize.activation_bits=null", "pipeline.quantize.group_size=16"],
         r"pipeline\.distill leaves rows of 36 \(ffn\), and pipeline\.quantize needs multiples of 16: "
         "let distill keep 32 or 48, or choose another group for quantize"),
        ("ffn={decoder:[48,36]}", ["+technique@pipeline.quantize=quantize", "pipeline.quantize.steps=0",
                                  "pipeline.quantize.bits=4", "pipeline.quantize.activation_bits=null",
                                  "pipeline.quantize.group_size=16"],
         r"pipeline\.distill leaves rows whose lengths have the divisor 12 in common \(ffn\), and pipeline\.quantize "
         "needs multiples of 16: let distill keep multiples of 16, or choose another group for quantize"),
        ("hidden=28", ["+technique@pipeline.prune=prune", "pattern@pipeline.prune.pattern=n_m",
                       "pipeline.prune.pattern.m=8"],
         r"pipeline\.distill leaves rows of 28 \(hidden\), and pipeline\.prune needs multiples of 8: let distill"),
    ],
    ids=str,
)  # fmt: skip
def test_what_a_cut_leaves_is_held_against_later_stages(
    pipeline: Make, overrides: Make, cut: str, later: list[str], message: str
) -> None:
    lines = ["+technique@pipeline.distill=distill", "+cut@pipeline.distill.cut=keep", f"pipeline.distill.cut.{cut}"]
    with pytest.raises(ValueError, match=message):
        pipeline(overrides("finetune", *lines, *later, "~pipeline.finetune", task="causal_lm"))


def test_constructing_a_pipeline_writes_nothing(pipeline: Make, overrides: Make, tmp_path: Path) -> None:
    run = pipeline(overrides("finetune"))
    assert not Path(run.cfg.runs).exists()


@pytest.mark.parametrize("name", ["dense", "start", "final"])
def test_names_with_a_meaning_are_no_names_of_stages(pipeline: Make, overrides: Make, name: str) -> None:
    with pytest.raises(ValueError, match=f"a stage cannot be called '{name}'"):
        pipeline(overrides("finetune", f"+technique@pipeline.{name}=finetune"))


def test_what_is_auto_is_chosen_and_stands_in_the_config(pipeline: Make, overrides: Make) -> None:
    """Rows of 96 and 64: groups of 32 divide both, so that the removal keeps to 32 as well."""
    lines = [*REMOVES, *IN_GROUPS, "+technique@pipeline.distill=distill", "pipeline.distill.steps=20"]
    sizes = {"hidden_size": 64, "intermediate_size": 96}
    run = pipeline(overrides("finetune", *lines, task="causal_lm", **sizes))
    stages = run.cfg.pipeline
    assert stages.prune_structured.multiple == 8 and run.multiples == {"prune_structured": 32}
    assert stages.quantize.group_size == 32 and stages.distill.batch_size == 32
    assert stages.distill.lr_scheduler.num_warmup_steps == 2
    rate = stages.distill.optimizer.lr
    assert rate == run.chosen["pipeline.distill.optimizer.lr"] == run.techniques["distill"].chosen["optimizer.lr"] > 0
    given = [f"{key}={'null' if value is None else value}" for key, value in run.chosen.items()]
    assert "pipeline.quantize.group_size=32" in given
    same = pipeline(overrides("finetune", *lines, *given, task="causal_lm", **sizes))
    assert same.chosen == {} and [stage.key for stage in same.stages] == [stage.key for stage in run.stages]


def test_groups_suit_the_rows_that_a_cut_leaves(pipeline: Make, overrides: Make) -> None:
    lines = ["+technique@pipeline.distill=distill", "+cut@pipeline.distill.cut=keep", "pipeline.distill.cut.ffn=32"]
    run = pipeline(overrides("finetune", *lines, *IN_GROUPS, task="causal_lm"))
    assert run.cfg.pipeline.quantize.group_size == 32


def test_each_of_two_stages_with_one_optimizer_has_its_own_numbers(pipeline: Make, overrides: Make) -> None:
    shared = "pipeline.distill.lr_scheduler=${pipeline.prune.lr_scheduler}"
    lines = overrides("prune", "+technique@pipeline.distill=distill", shared, "pipeline.prune.steps=10",
                      "pipeline.distill.steps=30")  # fmt: skip
    stages = pipeline(lines).cfg.pipeline
    assert (stages.prune.lr_scheduler.num_warmup_steps, stages.distill.lr_scheduler.num_warmup_steps) == (1, 3)


@pytest.mark.parametrize("task", ["seq2seq", "causal_lm", "classification"])
def test_the_task_of_data_is_the_model_s_own(pipeline: Make, overrides: Make, task: str) -> None:
    lines = [line for line in overrides("finetune", task=task) if not line.startswith("data.task")]
    assert pipeline(lines).cfg.data.task == task


def test_a_budget_out_of_reach_is_refused_before_anything_is_measured(pipeline: Make, overrides: Make) -> None:
    lines = [*REMOVES, "pipeline.prune_structured.budget.share=0.01", "~pipeline.finetune"]
    with pytest.raises(ValueError, match=r"a budget of 0\.01 .* cannot be met by cutting .* in multiples of 8"):
        pipeline(overrides("finetune", *lines, task="causal_lm"))
