"""Training: every weight, the objective, resuming bit for bit, and numbers that are not finite."""

import json
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from slimexp.logger.curves import Curves
from slimexp.loss.base import Loss, Outputs, Ratio
from slimexp.model.layer import share_of
from slimexp.model.tokenizer import Bpe
from slimexp.pipeline.checkpoint import Checkpoint
from slimexp.technique.finite import NonFiniteLoss
from slimexp.technique.teacher import check_vocabularies

Make = Callable[..., Any]
DROPOUT = {
    "seq2seq": {"dropout_rate": 0.2},
    "causal_lm": {"attention_dropout": 0.2},
    "classification": {"hidden_dropout_prob": 0.2},
}


@pytest.fixture
def prepared(tiny: Make, technique: Make, corpus: Make) -> Make:
    """A finetune stage that holds its model and its text."""

    def make(task: str = "seq2seq", config: dict[str, Any] | None = None, **values: Any) -> Any:
        stage = technique("finetune", **{"steps": 6} | values)
        stage.prepare(tiny(task, **config or {}), corpus(task), None)
        return stage

    return make


def state(stage: Any) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in stage.model.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# --- training --------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["seq2seq", "causal_lm", "classification"])
def test_every_weight_is_trained_and_the_loss_falls(prepared: Make, fit: Make, task: str, tmp_path: Path) -> None:
    stage = prepared(task, steps=30, batch_size=8, **{"optimizer.lr": 0.01})
    before = {name: parameter.detach().clone() for name, parameter in stage.named_parameters()}
    fit(stage, logger=Curves(path=tmp_path / "curves.jsonl"))
    assert all(not torch.equal(parameter, before[name]) for name, parameter in stage.named_parameters())
    curve = [json.loads(line)["loss"] for line in (tmp_path / "curves.jsonl").read_text().splitlines()]
    assert sum(curve[-5:]) < 0.9 * sum(curve[:5])
    assert stage.finish() == {"share": 1.0}


def test_dropout_is_on_in_training_whatever_was_before(prepared: Make, fit: Make) -> None:
    stage = prepared(config=DROPOUT["seq2seq"])
    stage.model.eval()
    modes: list[bool] = []
    stage.on_step = lambda progress: modes.append(all(module.training for module in stage.model.modules()))
    fit(stage)
    assert modes == [True] * 6


@pytest.mark.parametrize("accumulate", [1, 3])
def test_progress_and_learning_rate_count_optimizer_steps(
    prepared: Make, fit: Make, accumulate: int, tmp_path: Path
) -> None:
    stage = prepared(steps=4, accumulate=accumulate, **{"optimizer.lr": 0.5, "lr_scheduler.num_warmup_steps": 2})
    seen: list[float] = []
    stage.on_step = seen.append
    trainer = fit(stage, logger=Curves(path=tmp_path / "curves.jsonl"))
    assert seen == [0.0, 0.25, 0.5, 0.75]
    assert trainer.global_step == 4 and stage.progress == 1.0
    rows = [json.loads(line) for line in (tmp_path / "curves.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 1, 2, 3]
    assert [row["lr"] for row in rows] == [0.0, 0.25, 0.5, pytest.approx(0.25)]  # warm-up, then half a cosine


def test_norms_and_biases_are_not_decayed(prepared: Make, fit: Make) -> None:
    stage = prepared("classification", **{"optimizer.weight_decay": 0.3})
    decayed, rest = fit(stage, max_steps=1).optimizers[0].param_groups
    assert (decayed["weight_decay"], rest["weight_decay"]) == (0.3, 0.0)
    assert all(p.ndim > 1 for p in decayed["params"]) and all(p.ndim <= 1 for p in rest["params"])
    assert len(decayed["params"]) + len(rest["params"]) == len(list(stage.parameters()))


@pytest.mark.parametrize(("clip_norm", "largest"), [(1e-3, 1e-3), (0, 1e9)])
def test_gradients_are_clipped_where_asked_for(prepared: Make, fit: Make, clip_norm: float, largest: float) -> None:
    stage = prepared(clip_norm=clip_norm)
    norms: list[float] = []

    def watch() -> None:
        norms.append(torch.stack([p.grad.norm() for p in stage.parameters() if p.grad is not None]).norm().item())

    stage.on_gradients = watch
    fit(stage)
    assert len(norms) == 6 and max(norms) <= largest * 1.001
    assert clip_norm or min(norms) > 1e-3


def test_the_objective_is_the_weighted_sum_of_its_terms(tiny: Make, corpus: Make, technique: Make) -> None:
    stage = technique(
        "finetune", "+loss@pipeline.finetune.losses.other=cross_entropy", steps=1,
        **{"losses.other.weight": 0.5, "losses.other.label_smoothing": 0.2},
    )  # fmt: skip
    stage.prepare(tiny("seq2seq"), corpus("seq2seq"), None)
    stage.trainer = pl.Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
    stage.log = stage.log_dict = stage._log = lambda *_, **__: None
    batch = next(iter(stage.train_dataloader()))
    total, terms = stage.evaluate(batch)
    assert set(terms) == {"ce", "other"} and terms["ce"] != terms["other"]
    assert total.item() == pytest.approx((terms["ce"] + 0.5 * terms["other"]).item(), rel=1e-6)
    assert torch.equal(stage.training_step(batch, 0), total)


def test_dropout_can_rest(prepared: Make, fit: Make) -> None:
    for active in (True, False):
        stage = prepared(steps=1, dropout=active)
        fit(stage)
        assert {module.training for module in stage.model.modules()} == {active}


# --- resume ----------------------------------------------------------------------------------------


class Killed(Exception):
    """What ends a run in a test."""


class KillAfter(pl.Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            raise Killed


RESUMED = {("seq2seq", 1, 3), ("causal_lm", 2, 3), ("classification", 2, 4)}  # the others are slow


@pytest.mark.parametrize(
    ("task", "accumulate", "killed_after"),
    [
        pytest.param(*case, marks=[] if case in RESUMED else pytest.mark.slow)
        for case in product(("seq2seq", "causal_lm", "classification"), (1, 2), (3, 4))
    ],
)
def test_resumed_equals_straight_bit_for_bit(
    prepared: Make, fit: Make, task: str, accumulate: int, killed_after: int, tmp_path: Path
) -> None:
    """Weights, learning rates and losses, with dropout, from a checkpoint at step 2 and a kill after it, or at 4's."""

    def stage() -> Any:
        return prepared(task, DROPOUT[task], steps=7, accumulate=accumulate, **{"optimizer.lr": 0.01})

    def curves(name: str) -> Curves:
        return Curves(path=tmp_path / name)

    straight, interrupted, resumed = stage(), stage(), stage()
    fit(straight, logger=curves("straight"))
    path = tmp_path / "checkpoint.ckpt"
    checkpoint = Checkpoint(path=path, key="k", curves=tmp_path / "resumed", every_seconds=0, every_steps=2)
    with pytest.raises(Killed):
        fit(interrupted, logger=curves("resumed"), callbacks=[checkpoint, KillAfter(killed_after)])
    assert torch.load(path, weights_only=True)["global_step"] == 2  # Lightning logs the fourth after its callbacks
    fit(resumed, logger=curves("resumed"), resume=path)
    assert same(state(straight), state(resumed))
    assert not same(state(straight), state(interrupted))
    assert (tmp_path / "straight").read_text() == (tmp_path / "resumed").read_text()


def test_two_straight_runs_are_the_same(prepared: Make, fit: Make) -> None:
    one, other = prepared(config=DROPOUT["seq2seq"]), prepared(config=DROPOUT["seq2seq"])
    fit(one)
    fit(other)
    assert same(state(one), state(other))


# --- numbers that are not finite -------------------------------------------------------------------


class Bad(Loss):
    """Cross-entropy that turns bad, forwards or only backwards, at a step."""

    def __init__(self, stage: Any, *, step: int, backwards: bool) -> None:
        super().__init__(weight=1.0)
        self.stage = [stage]  # not a submodule
        self.step = step
        self.backwards = backwards

    def forward(self, student: Outputs, teacher: Outputs | None, labels: Tensor, progress: float) -> Ratio:
        term = student.logits.float().square().mean()[None]
        if self.stage[0].global_step < self.step:
            return Ratio(term, torch.ones_like(term))
        if self.backwards:
            term.register_hook(lambda gradient: gradient * float("nan"))
            return Ratio(term, torch.ones_like(term))
        return Ratio(term * float("inf"), torch.ones_like(term))


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("clip_norm", [0, 1.0])
def test_stops_at_once_and_keeps_the_last_good_checkpoint(
    prepared: Make, fit: Make, backwards: bool, clip_norm: float, tmp_path: Path
) -> None:
    stage = prepared(clip_norm=clip_norm)
    stage.losses = nn.ModuleDict({"bad": Bad(stage, step=3, backwards=backwards)})
    path = tmp_path / "checkpoint.ckpt"
    what = "norm of the gradient is nan" if backwards else "loss is inf"
    with pytest.raises(NonFiniteLoss, match=rf"{what} at step 3: lower .* the last checkpoint before it is kept"):
        fit(stage, callbacks=[Checkpoint(path=path, key="k", curves=tmp_path / "c", every_seconds=0, every_steps=1)])
    kept = torch.load(path, weights_only=True)
    assert kept["global_step"] == 3
    assert all(tensor.isfinite().all() for tensor in kept["state_dict"].values() if tensor.is_floating_point())


# --- teachers and vocabularies ---------------------------------------------------------------------


def test_a_teacher_with_another_tokenizer_is_refused(tiny: Make) -> None:
    student, teacher = tiny("causal_lm"), tiny("causal_lm")
    teacher.tokenizer = Bpe(vocab_size=300, characters=100).build(["text"])
    with pytest.raises(ValueError, match=r"different vocabularies \(2\d\d and 259 tokens, \d+ differ, e\.g\. .*\)"):
        check_vocabularies(student.tokenizer, teacher.tokenizer)


def test_padded_rows_behind_the_same_tokenizer_are_fine(tiny: Make) -> None:
    student, teacher = tiny("causal_lm"), tiny("causal_lm")
    teacher.model.resize_token_embeddings(320)
    check_vocabularies(student.tokenizer, teacher.tokenizer)


def test_share_counts_tied_parameters_once(tiny: Make) -> None:
    family = tiny("causal_lm")
    assert share_of(family, list(family.model.parameters())) == 1.0
    embedding = family.model.get_input_embeddings().weight
    assert share_of(family, [embedding]) == embedding.numel() / sum(p.numel() for p in family.model.parameters())
