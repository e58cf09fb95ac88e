"""A student is held against the same without its teacher and without training, on the same questions."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from slimexp import artifact
from slimexp.analysis.section import load
from slimexp.analysis.table import table
from slimexp.data import rows
from slimexp.data.base import Corpus
from slimexp.data.paired import differences
from slimexp.model.loading import Scratch
from slimexp.model.tokenizer import Bpe
from slimexp.page.content import content
from slimexp.record import record
from slimexp.record.schema import MINUS_ARM, NO_TEACHER, NO_TRAINING
from tests.conftest import TINY

Make = Callable[..., Any]
CUT = ["+cut@pipeline.distill.cut=keep", "pipeline.distill.cut.ffn=24", "pipeline.distill.optimizer.lr=0.02"]
ARMS = [f"distill_{NO_TRAINING}", f"distill_{NO_TEACHER}"]


@pytest.fixture
def distilled(overrides: Make) -> Callable[..., list[str]]:
    """More overrides -> the command line of a distillation of four steps."""

    def make(*more: str, task: str = "causal_lm", **options: Any) -> list[str]:
        short = ["pipeline.distill.steps=4", "pipeline.distill.batch_size=4"]
        return overrides("distill", *CUT, *short, *more, task=task, **options)

    return make


def weights(run: Any, stage: str) -> dict[str, torch.Tensor]:
    (found,) = [one for one in run.stages if one.name == stage]
    return load_file(found.artifact / "model.safetensors")


def test_a_student_is_compared_with_its_arms_question_by_question(
    pipeline: Make, distilled: Make, capsys: pytest.CaptureFixture[str], fits: list[str]
) -> None:
    run = pipeline(distilled("arms=true"))
    metrics = run.run()
    said, runs = capsys.readouterr().out, Path(run.cfg.runs)
    assert [stage.name for stage in run.stages] == ["dense", *ARMS, "distill"] and fits == ["Distill", "Distill"]
    assert len({stage.parent for stage in run.stages[1:]}) == 1
    records = {row.stage: row for row in record.read(runs)}
    student = rows.read(runs / records["distill"].scores["task"]).rows
    for kind, end in MINUS_ARM.items():
        arm = records[f"distill_{kind}"]
        expected = differences(student, rows.read(runs / arm.scores["task"]).rows, end)
        assert expected and {name: metrics[name] for name in expected} == expected
        assert records["distill"].metrics.items() >= expected.items()
        assert metrics[f"bits_per_byte{end}"] == pytest.approx(
            metrics["bits_per_byte"] - arm.metrics["bits_per_byte"], rel=1e-6
        )
        assert metrics["params_live"] == arm.metrics["params_live"]
        assert records["distill"].directions[f"bits_per_byte{end}"] == "min"
        assert not any(end in name for name in arm.metrics)
    assert "minus the same without its teacher, on the same rows: perplexity " in said
    assert "minus the same without training, on the same rows: perplexity " in said


def test_arms_are_made_alike_but_for_one_thing(pipeline: Make, distilled: Make) -> None:
    run = pipeline(distilled("arms=true"))
    run.run()
    plain = pipeline(distilled("name=plain"))
    plain.run()
    assert run.stages[-1].key == plain.stages[-1].key  # arms leave the student as it is
    (dense, *_) = run.stages
    technique = pipeline(distilled()).techniques["distill"]
    family = artifact.load(dense.artifact)
    technique.prepare(family, run.corpus, artifact.deployed(dense.artifact))
    cut = {name: weight.to(torch.bfloat16) for name, weight in technique.family.model.state_dict().items()}
    untrained = weights(run, f"distill_{NO_TRAINING}")
    assert all(torch.equal(untrained[name], cut[name]) for name in untrained)
    trained = weights(run, "distill"), weights(run, f"distill_{NO_TEACHER}")
    assert any(not torch.equal(trained[0][name], trained[1][name]) for name in untrained)
    without, own = (run.arms[f"distill_{NO_TEACHER}"].technique, run.techniques["distill"])
    assert not without.needs_teacher and list(without.losses) == ["ce"] and list(own.losses) == ["ce", "kl"]
    assert (without.steps, without.batch_size) == (own.steps, own.batch_size)
    alone = pipeline([*distilled("name=alone"), "~pipeline.distill.losses.kl"])
    alone.run()
    assert all(torch.equal(trained[1][name], weight) for name, weight in weights(alone, "distill").items())


SILENT = [["~pipeline.distill.losses.ce"], ["pipeline.distill.losses.ce.weight=0"],
          ["+schedule@pipeline.distill.losses.ce.weight=step",
           "pipeline.distill.losses.ce.weight={values:[0,0],milestones:[0.5]}"]]  # fmt: skip


@pytest.mark.parametrize("silent", SILENT)
def test_where_the_teacher_alone_was_heard_cross_entropy_takes_its_place(
    pipeline: Make, distilled: Make, silent: list[str]
) -> None:
    run = pipeline(distilled("arms=true", *silent))
    for arm in run.arms.values():
        (loss,) = arm.technique.losses.values()
        assert type(loss).__name__ == "CrossEntropy" and loss.weight == 1


def test_a_weight_that_rises_from_zero_is_heard(pipeline: Make, distilled: Make) -> None:
    rising = ["+schedule@pipeline.distill.losses.ce.weight=linear", "pipeline.distill.losses.ce.weight={start:0,end:1}"]
    (loss, *_) = pipeline(distilled("arms=true", *rising)).arms[f"distill_{NO_TEACHER}"].technique.losses.values()
    assert (loss.weight_at(0.0), loss.weight_at(1.0)) == (0, 1)


def test_what_is_not_trained_may_be_masked_by_a_loss(pipeline: Make, overrides: Make) -> None:
    sensitive = ["+allocation@pipeline.prune.allocation=sensitivity", "pipeline.prune.allocation.rows=2"]
    taught = ["+loss@pipeline.prune.losses.kl=kl", "pipeline.prune.steps=2", "pipeline.prune.every=1", "arms=true"]
    run = pipeline(overrides("prune", *sensitive, *taught, task="causal_lm"))
    run.run()
    sparse = {row.stage: row.metrics["params_nonzero"] for row in record.read(Path(run.cfg.runs))}
    assert all(sparse[f"prune_{kind}"] < sparse["dense"] for kind in (NO_TRAINING, NO_TEACHER))


def test_text_that_a_cache_repeats_is_not_that_of_the_arms(
    pipeline: Make, distilled: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached = ["arms=true", "+teacher_cache@pipeline.distill.cache=exact"]
    assert pipeline(distilled(*cached)).arms
    monkeypatch.setattr(Corpus, "is_fixed", False)
    message = r"pipeline\.distill\.cache repeats the first epochs .*: set pipeline\.distill\.cache=null, or arms=false"
    with pytest.raises(ValueError, match=message):
        pipeline(distilled(*cached))
    assert pipeline(distilled("arms=true")).arms


@pytest.mark.parametrize("unlike", [True, False])
def test_an_arm_packs_rows_only_where_the_student_does(
    pipeline: Make, distilled: Make, tiny_folder: Make, unlike: bool, tmp_path: Path
) -> None:
    folder = tiny_folder("causal_lm", name="teacher", hidden_size=16)
    if unlike:
        source = Scratch(config=TINY["causal_lm"], tokenizer=Bpe(vocab_size=300, characters=10_000), max_length=64)
        family = source.load(task="causal_lm", texts=lambda: ["one two words and three words"] * 9, labels=())
        family.model.save_pretrained(folder)
        family.tokenizer.save_pretrained(folder)
    teacher = ["+model@pipeline.distill.teacher=pretrained", f"pipeline.distill.teacher.path={folder}",
               "pipeline.distill.teacher.max_length=64"]  # fmt: skip
    losses = ["~pipeline.distill.losses.kl", "+loss@pipeline.distill.losses.byte_span=byte_span"]
    run = pipeline(distilled("arms=true", *teacher, *losses))
    packing = {arm.technique.packing for arm in run.arms.values()}
    assert packing == {False if unlike else "auto"} and run.techniques["distill"].packing == "auto"


def test_an_arm_of_completions_is_the_arm_without(pipeline: Make, distilled: Make) -> None:
    written = ["+completion@pipeline.distill.completion=student", "pipeline.distill.completion.prompt=4"]
    keys = [[stage.key for stage in pipeline(distilled("arms=true", *more)).stages] for more in ([], written)]
    assert keys[0][:3] == keys[1][:3] and keys[0][3] != keys[1][3]


def test_a_finished_student_gets_its_arms_later(pipeline: Make, distilled: Make, fits: list[str]) -> None:
    first = pipeline(distilled())
    before = first.run()
    assert len(fits) == 1 and not any("_minus_" in name for name in before)
    later = pipeline(distilled("arms=true"))
    metrics = later.run()
    assert len(fits) == 2  # the arm without a teacher alone
    assert metrics["bits_per_byte"] == before["bits_per_byte"] and f"bits_per_byte{MINUS_ARM[NO_TEACHER]}" in metrics
    (row,) = [row for row in record.read(Path(later.cfg.runs)) if row.stage == "distill"]
    assert f"perplexity{MINUS_ARM[NO_TRAINING]}" in row.metrics
    again = pipeline(distilled("arms=true"))
    assert again.run() == metrics and len(fits) == 2
    assert pipeline(distilled()).run() == metrics  # nor is anything measured anew without them


def test_an_arm_does_not_depend_on_what_only_the_teacher_has(pipeline: Make, distilled: Make) -> None:
    keys = [
        [stage.key for stage in pipeline(distilled("arms=true", *more)).stages]
        for more in ([], ["pipeline.distill.losses.kl.temperature.start=3"])
    ]
    assert keys[0][:3] == keys[1][:3] and keys[0][3] != keys[1][3]


def test_a_chain_goes_on_from_the_student(pipeline: Make, distilled: Make, short: Make) -> None:
    arguments = ["pipeline=[prune,distill,quantize]" if a == "pipeline=distill" else a for a in distilled("arms=true")]
    arguments = [a for a in arguments if "cut" not in a]
    more = ["pipeline.prune.steps=0", "pipeline.quantize.steps=0", "pipeline.quantize.group_size=null"]
    run = pipeline([*arguments, *more])
    run.run()
    assert [stage.name for stage in run.stages] == ["dense", "prune", *ARMS, "distill", "quantize"]
    by_name = {stage.name: stage for stage in run.stages}
    assert {by_name[name].parent for name in (*ARMS, "distill")} == {by_name["prune"].key}
    assert by_name["quantize"].parent == by_name["distill"].key
    sparse = {row.stage: row.metrics["params_nonzero"] for row in record.read(Path(run.cfg.runs))}
    assert sparse[ARMS[0]] == sparse["prune"] and sparse[ARMS[1]] == sparse["distill"] < sparse["dense"]


def test_the_report_has_the_differences(pipeline: Make, distilled: Make) -> None:
    run = pipeline(distilled("arms=true"))
    metrics = run.run()
    runs = Path(run.cfg.runs)
    (section,) = load(runs)
    lines = table(section).splitlines()
    assert "minus no teacher" in lines[1] and "minus no training" in lines[1]
    rows_by_label = {line.split()[1] if line[0] == "*" else line.split()[0]: line for line in lines[2:6]}
    assert set(rows_by_label) == {"dense", *ARMS, "distill"}
    shown = metrics[f"perplexity{MINUS_ARM[NO_TEACHER]}"]
    assert f"{shown:+.3g} [" in rows_by_label["distill"]
    page = content([section], runs, runs)["sections"][0]
    main = [metric["name"] for metric in page["metrics"] if metric["main"]]
    assert [f"perplexity{end}" for end in MINUS_ARM.values()] == [name for name in main if "_minus_" in name]
    (student,) = [point for point in page["points"] if point["label"] == "distill"]
    mean, low, high = student["figures"][f"perplexity{MINUS_ARM[NO_TEACHER]}"]
    assert low <= mean <= high and mean == pytest.approx(shown)


def test_what_has_no_teacher_has_no_arms(pipeline: Make, overrides: Make, distilled: Make) -> None:
    with pytest.raises(ValueError, match="no stage trains with a loss that reads one: set arms=false"):
        pipeline(overrides("prune", "arms=true", task="causal_lm"))
    with pytest.raises(ValueError, match="adds a stage 'distill_no_teacher', and there is one"):
        pipeline(distilled("arms=true", "+technique@pipeline.distill_no_teacher=finetune"))
    gates = ["importance@pipeline.prune.importance=movement", "+loss@pipeline.prune.losses.kl=kl", "arms=true"]
    with pytest.raises(ValueError, match=r"arms=true: pipeline.prune cannot be no training: "):
        pipeline(overrides("prune", *gates, "pipeline.prune.steps=4", task="causal_lm"))


def test_a_rule_that_stops_trials_is_not_asked_of_an_arm(pipeline: Make, distilled: Make, tmp_path: Path) -> None:
    run = pipeline(distilled("arms=true", "+stopper@callback.stop=median", f"callback.stop.folder={tmp_path}"))
    assert "stop" in run.cfg.callback and all("stop" not in arm.cfg.callback for arm in run.arms.values())
