import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from slimexp.config.composition import CONF_DIR
from slimexp.logger.curves import Curves
from slimexp.weight.attachment import attached

Make = Callable[..., Any]
TASKS = ("seq2seq", "causal_lm", "classification")


@pytest.fixture
def prepared(tiny: Make, technique: Make, corpus: Make) -> Make:
    """A stage that distils one random model into another."""

    def make(task: str = "seq2seq", *overrides: str, config: dict[str, Any] | None = None, **values: Any) -> Any:
        stage = technique("distill", *overrides, **{"steps": 6} | values)
        teacher = tiny(task)
        with torch.no_grad():
            for parameter in teacher.model.parameters():
                parameter.mul_(1.5)
        stage.prepare(tiny(task, **config or {}), corpus(task), teacher)
        return stage

    return make


def rows(path: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("task", TASKS)
def test_the_teacher_is_no_part_of_the_student(prepared: Make, fit: Make, task: str, tmp_path: Path) -> None:
    stage = prepared(task)
    teacher = stage.teacher_family.model
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    trainer = fit(stage)
    assert stage.state_dict().keys() == {f"model.{name}" for name in stage.model.state_dict()}
    assert {id(p) for p in teacher.parameters()}.isdisjoint(id(p) for p in stage.parameters())
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())
    assert not any(module.training for module in teacher.modules())

    trainer.save_checkpoint(tmp_path / "checkpoint.ckpt")
    student = sum(p.numel() * p.element_size() for p in stage.parameters())
    size = (tmp_path / "checkpoint.ckpt").stat().st_size
    assert size <= 3 * student + 150_000  # weights, two moments, names


def test_a_larger_teacher_adds_nothing_to_the_checkpoint(
    tiny: Make, technique: Make, corpus: Make, fit: Make, tmp_path: Path
) -> None:
    sizes = []
    for width in (32, 256):
        stage = technique("distill", steps=1)
        stage.prepare(tiny("seq2seq"), corpus("seq2seq"), tiny("seq2seq", d_model=width, d_ff=4 * width))
        fit(stage).save_checkpoint(tmp_path / "checkpoint.ckpt")
        sizes.append((tmp_path / "checkpoint.ckpt").stat().st_size)
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize("task", TASKS)
def test_the_student_comes_to_say_what_the_teacher_says(prepared: Make, fit: Make, task: str, tmp_path: Path) -> None:
    stage = prepared(task, "schedule@pipeline.distill.losses.kl.temperature=constant",
                     "~pipeline.distill.losses.ce", "~pipeline.distill.losses.kl.temperature.start",
                     "~pipeline.distill.losses.kl.temperature.end", "pipeline.distill.losses.kl.temperature.value=1.0",
                     steps=40, **{"optimizer.lr": 0.01, "lr_scheduler.num_warmup_steps": 0})  # fmt: skip
    fit(stage, logger=Curves(path=tmp_path / "curves.jsonl"))
    curve = [row["loss"] for row in rows(tmp_path / "curves.jsonl")]
    assert sum(curve[-5:]) < 0.5 * sum(curve[:5])


def test_a_student_that_is_its_teacher_has_nothing_to_learn(tiny: Make, technique: Make, corpus: Make) -> None:
    stage = technique("distill", steps=1)
    stage.prepare(tiny("seq2seq"), corpus("seq2seq"), tiny("seq2seq"))
    stage.model.eval()
    _, terms = stage.evaluate(next(iter(stage.train_dataloader())))
    assert abs(terms["kl"].item()) < 1e-5 < terms["ce"].item()


def test_terms_and_temperature_are_curves(prepared: Make, fit: Make, tmp_path: Path) -> None:
    values = {"losses.kl.temperature.start": 5.0, "losses.kl.temperature.end": 1.0, "losses.kl.weight": 0.5}
    fit(prepared(steps=8, **values), logger=Curves(path=tmp_path / "curves.jsonl"))
    for row in rows(tmp_path / "curves.jsonl"):
        assert row["temperature"] == pytest.approx(5 - 4 * row["step"] / 8)
        assert row["loss"] == pytest.approx(row["ce"] + 0.5 * row["kl"], rel=1e-5)
    fit(prepared(steps=8, **values), logger=Curves(path=tmp_path / "sparse.jsonl"), log_every_n_steps=4)
    every = {row["step"]: row for row in rows(tmp_path / "curves.jsonl")}
    assert rows(tmp_path / "sparse.jsonl") == [every[3], every[7]]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_resumed_equals_straight_temperature_included(
    prepared: Make, fit: Make, accumulate: int, tmp_path: Path
) -> None:
    def stage() -> Any:
        return prepared(steps=6, accumulate=accumulate, config={"dropout_rate": 0.2})

    straight, interrupted, resumed = stage(), stage(), stage()
    fit(straight, logger=Curves(path=tmp_path / "straight"))
    trainer = fit(interrupted, logger=Curves(path=tmp_path / "resumed"), max_steps=3)
    trainer.save_checkpoint(tmp_path / "checkpoint.ckpt")
    fit(resumed, logger=Curves(path=tmp_path / "resumed"), resume=tmp_path / "checkpoint.ckpt")
    assert (tmp_path / "straight").read_text() == (tmp_path / "resumed").read_text()
    for one, other in zip(straight.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)


# --- a student cut out of its teacher --------------------------------------------------------------


def test_the_student_is_cut_out_of_the_incoming_model(tiny: Make, technique: Make, corpus: Make, fit: Make) -> None:
    stage = technique("distill", "+cut@pipeline.distill.cut=keep", steps=2, **{"cut.ffn": 16, "cut.hidden": 16})
    dense = tiny("seq2seq")
    stage.prepare(dense, corpus("seq2seq"), tiny("seq2seq"))
    assert (stage.model.config.d_ff, stage.model.config.d_model) == (16, 16)
    assert stage.family.model is stage.model and dense.model.config.d_ff == 48
    fit(stage)
    assert list(attached(stage.model)) == []


def test_a_cut_that_cannot_be_is_refused_before_anything_is_loaded(tiny: Make, technique: Make) -> None:
    stage = technique("distill", "+cut@pipeline.distill.cut=keep", **{"cut.ffn": 4096})
    with pytest.raises(ValueError, match=r"cut\.ffn must be in 1\.\.48"):
        stage.validate(tiny("seq2seq").model.config, before=[])


def test_a_cut_comes_before_masks(tiny: Make, technique: Make, corpus: Make) -> None:
    family = tiny("seq2seq")
    technique("prune").prepare(family, corpus("seq2seq"), None)
    with pytest.raises(ValueError, match="removal comes first: the model has masks or quantizers"):
        technique("distill", "+cut@pipeline.distill.cut=keep").prepare(family, corpus("seq2seq"), tiny("seq2seq"))


def test_hidden_states_need_the_teachers_width(tiny: Make, technique: Make) -> None:
    words = ("+cut@pipeline.distill.cut=keep", "+loss@pipeline.distill.losses.hidden=hidden")
    with pytest.raises(ValueError, match=r"needs the teacher's width: set projection=true of the loss, or"):
        technique("distill", *words, **{"cut.hidden": 16}).validate(tiny("seq2seq").model.config, before=[])


def test_the_conf_of_distill_needs_a_teacher_and_finetune_none(technique: Make) -> None:
    assert technique("distill").needs_teacher and not technique("finetune").needs_teacher


# --- losses on blocks, and what they learn ----------------------------------------------------------

CUT = "+cut@pipeline.distill.cut=keep"
HIDDEN = "+loss@pipeline.distill.losses.hidden=hidden"
RELATIONS = "+loss@pipeline.distill.losses.relations=relations"
NARROW = {"cut.hidden": 16, "cut.encoder_layers": "[0]", "cut.decoder_layers": "[0]", "losses.hidden.projection": True}


@pytest.fixture
def narrow(tiny: Make, technique: Make, corpus: Make) -> Make:
    """A narrower student that is held against its teacher through projections, and by relations."""

    def make(task: str = "seq2seq", **values: Any) -> Any:
        decoder = {} if task == "seq2seq" else {"cut.encoder_layers": "null"}
        settings = {"steps": 6, "losses.relations.relation_heads": 4} | NARROW | decoder | values
        stage = technique("distill", CUT, HIDDEN, RELATIONS, **settings)
        teacher = tiny(task)
        with torch.no_grad():
            for parameter in teacher.model.parameters():
                parameter.mul_(4)  # whose tokens are unlike each other
        stage.prepare(tiny(task), corpus(task), teacher)
        return stage

    return make


@pytest.mark.parametrize("task", ["seq2seq", "causal_lm"])
def test_a_narrower_student_learns_with_its_projection_and_is_saved_without(
    narrow: Make, fit: Make, task: str, tmp_path: Path
) -> None:
    from slimexp import artifact

    stage = narrow(task, steps=12, **{"optimizer.lr": 0.01, "lr_scheduler.num_warmup_steps": 0})
    own = {name: weight.clone() for name, weight in stage.losses.named_parameters()}
    stacks = {"seq2seq": ["encoder", "decoder"], "causal_lm": ["decoder"]}[task]
    assert own.keys() == {f"hidden.projections.{stack}.weight" for stack in stacks}
    fit(stage, logger=Curves(path=tmp_path / "curves.jsonl"))
    assert all(not torch.equal(weight, own[name]) for name, weight in stage.losses.named_parameters())
    curve = rows(tmp_path / "curves.jsonl")
    for term in ("hidden", "relations"):
        assert sum(row[term] for row in curve[-3:]) < sum(row[term] for row in curve[:3])
    artifact.save(stage.family, tmp_path / "artifact", dtype=torch.float32, stages=[], key="0")
    assert artifact.load(tmp_path / "artifact").model.state_dict().keys() == stage.model.state_dict().keys()


def test_a_training_with_a_projection_goes_on_where_it_was_stopped(narrow: Make, fit: Make, tmp_path: Path) -> None:
    straight, interrupted, resumed = narrow(), narrow(), narrow()
    fit(straight)
    trainer = fit(interrupted, max_steps=3)
    trainer.save_checkpoint(tmp_path / "checkpoint.ckpt")
    fit(resumed, resume=tmp_path / "checkpoint.ckpt")
    for (name, one), other in zip(straight.named_parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other), name
    weights = torch.load(tmp_path / "checkpoint.ckpt", weights_only=True)["state_dict"]
    assert {name for name in weights if not name.startswith("model.")} == {
        "losses.hidden.projections.encoder.weight", "losses.hidden.projections.decoder.weight"
    }  # fmt: skip


def test_weights_of_task_and_teacher_are_scheduled_alike(prepared: Make, fit: Make, tmp_path: Path) -> None:
    losses = "pipeline.distill.losses"
    chosen = [f"+schedule@{losses}.{name}.weight=linear" for name in ("ce", "kl")]
    ends = [f"{losses}.ce.weight={{start:0,end:1}}", f"{losses}.kl.weight={{start:1,end:0}}"]
    fit(prepared("seq2seq", *chosen, *ends, steps=4), logger=Curves(path=tmp_path / "curves.jsonl"))
    for row in rows(tmp_path / "curves.jsonl"):
        share = row["step"] / 4
        assert (row["ce_weight"], row["kl_weight"]) == (share, 1 - share)
        assert row["loss"] == pytest.approx(share * row["ce"] + (1 - share) * row["kl"], rel=1e-5)


@pytest.mark.parametrize("task", TASKS)
def test_every_loss_of_conf_trains_every_model(tiny: Make, technique: Make, corpus: Make, fit: Make, task: str) -> None:
    names = sorted(path.stem for path in (CONF_DIR / "loss").glob("*.yaml"))
    chosen = [f"+loss@pipeline.distill.losses.own_{name}={name}" for name in names]
    stage = technique("distill", *chosen, "~pipeline.distill.losses.ce", "~pipeline.distill.losses.kl", steps=1)
    teacher = tiny(task)
    with torch.no_grad():
        for parameter in teacher.model.parameters():
            parameter.mul_(1.5)
    stage.prepare(tiny(task), corpus(task), teacher)
    _, terms = stage.evaluate(next(iter(stage.train_dataloader())))
    assert terms.keys() == {f"own_{name}" for name in names} and all(term > 0 for term in terms.values())
    fit(stage)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"losses.hidden.layers": "[0,1,2]"},
            r"must name a block of the teacher for each of the student's 1",
        ),
        ({"losses.hidden.layers": "[7]"}, r"layers must be blocks 0\.\.1 of the teacher \(encoder\), got 7"),
        ({"losses.relations.teacher_block": 2}, r"teacher_block must be one of the teacher's 2 blocks"),
        ({"losses.relations.relation_heads": 5}, r"relation_heads must divide the teacher's .* got 5: choose one of"),
    ],
)
def test_losses_that_do_not_fit_are_refused_before_training(narrow: Make, values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        narrow(**values)
