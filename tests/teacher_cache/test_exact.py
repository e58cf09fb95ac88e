"""Learning from the exact cache is learning from the teacher: bit for bit on a CPU."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from slimexp.loss.base import LabelLoss
from slimexp.technique import step_graphs
from slimexp.technique.training import Execution
from tests.technique.tape import TapeRecorder

Make = Callable[..., Any]
TASKS = ("seq2seq", "causal_lm", "classification")


def weights(stage: Any) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in stage.model.parameters()]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(left, right) for left, right in zip(one, other, strict=True))


@pytest.mark.parametrize("task", TASKS)
def test_training_is_the_same_to_the_last_bit(stage: Make, keep: Make, fit: Make, task: str, tmp_path: Path) -> None:
    online, cached = stage(None, task), stage("exact", task)
    before = weights(online)
    fit(online)
    found = keep(cached, tmp_path / "cache")
    assert found.rows == len(found.lacking) == 8
    fit(cached)
    assert cached.teacher_family is None
    assert same(weights(online), weights(cached)) and not same(before, weights(cached))


@pytest.mark.parametrize("packing", ["false", "true"])
def test_rows_are_found_whatever_batch_they_come_in(stage: Make, keep: Make, packing: str, tmp_path: Path) -> None:
    """Another batch size, and more steps: what is there is not made again, and every row has its own states."""
    first = stage("exact", "causal_lm", packing=packing, steps=3)
    held = keep(first, tmp_path / "cache")
    more = stage("exact", "causal_lm", packing=packing, steps=5, batch_size=3)
    teacher = more.teacher_family
    found = keep(more, tmp_path / "cache")
    assert found.rows > len(found.lacking) >= found.rows - held.rows
    for batch in more.batches(0, 5, workers=0):
        head = more.cached.form.head
        with torch.no_grad():
            logits, counts = teacher.forward(batch)[0], batch["labels"] != -100
            assert torch.allclose(head.logits(head.module(batch["taught"]))[counts], logits[counts], atol=1e-5)
        assert (batch["taught"][~counts] == 0).all()


def test_what_is_left_of_a_teacher_learns_nothing(stage: Make, keep: Make, tmp_path: Path) -> None:
    made = stage("exact", "seq2seq")
    keep(made, tmp_path / "cache")
    batch = next(iter(made.batches(0, 1, workers=0)))
    assert any(parameter.requires_grad for parameter in made.cached.modules[0].parameters())
    assert not made.cached.outputs(batch, whole=True).logits.requires_grad


@pytest.mark.parametrize("task", TASKS)
def test_without_chunks_the_loss_is_the_same(
    stage: Make, keep: Make, monkeypatch: pytest.MonkeyPatch, task: str, tmp_path: Path
) -> None:
    online, cached = stage(None, task), stage("exact", task)
    keep(cached, tmp_path / "cache")
    monkeypatch.setattr("slimexp.technique.objective.Objective._label_sums", lambda *_: None)
    for made in (online, cached):
        made.model.eval()
    one, other = (next(iter(made.batches(0, 1, workers=0))) for made in (online, cached))
    assert torch.allclose(online.evaluate(one)[1]["kl"], cached.evaluate(other)[1]["kl"], rtol=1e-6)


def test_a_batch_in_parts_has_the_same_gradient(stage: Make, keep: Make, fit: Make, tmp_path: Path) -> None:
    whole, parts = stage("exact"), stage("exact")
    for made in (whole, parts):
        keep(made, tmp_path / "cache")
    parts.rows_at_once = 1
    for made in (whole, parts):
        fit(made)
    for one, other in zip(weights(whole), weights(parts), strict=True):
        assert torch.allclose(one, other, atol=1e-4)


@pytest.mark.parametrize("form", ["exact", "compact"])
def test_passes_are_recorded(
    stage: Make, keep: Make, fit: Make, monkeypatch: pytest.MonkeyPatch, form: str, tmp_path: Path
) -> None:
    monkeypatch.setattr(step_graphs, "CudaRecorder", TapeRecorder)
    TapeRecorder.replays = 0
    ends = []
    for recorded in (False, True):
        made = stage(form, steps=8)
        made.execution = Execution(pad_to=64, recorded=recorded)
        keep(made, tmp_path / "cache")
        fit(made)
        made.release()
        ends.append(weights(made))
    assert TapeRecorder.replays >= 3
    assert all(torch.allclose(one, other, atol=1e-6) for one, other in zip(*ends, strict=True))


def test_new_text_in_every_epoch_comes_again_after_as_many_epochs_as_are_kept(
    stage: Make, keep: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made = stage("exact", "seq2seq", **{"steps": 40, "batch_size": 8, "cache.epochs": 2})
    rows = made.corpus.splits["train"]
    epochs: list[int] = []

    def noisy(row: int, epoch: int) -> Any:
        epochs.append(epoch)
        return type(rows[row])(f"{rows[row].source} {epoch}", rows[row].target, rows[row].label)

    monkeypatch.setattr(made.corpus, "training_example", noisy)
    found = keep(made, tmp_path / "cache")
    assert not made.corpus.is_fixed and found.rows == 2 * len(rows) and set(epochs) == {0, 1}
    for batch in made.batches(0, 40, workers=0):
        assert "taught" in batch
    assert set(epochs) == {0, 1}


class Inner(LabelLoss):
    needs_teacher = needs_hidden = True

    def of_logits(self, *_: Any) -> Any:
        raise AssertionError


def test_what_is_not_kept_is_refused(technique: Make) -> None:
    cache = "+teacher_cache@pipeline.distill.cache=exact"
    with pytest.raises(ValueError, match=r"losses\.hidden reads inner states of the teacher.*leave out the loss"):
        technique("distill", cache, "+loss@pipeline.distill.losses.hidden=hidden", steps=1)
    for loss in ("byte_span", "universal_logit"):
        with pytest.raises(ValueError, match=rf"losses\.{loss} reads logits at the tokens of a teacher of another"):
            technique("distill", cache, f"+loss@pipeline.distill.losses.{loss}={loss}", steps=1)
    with pytest.raises(ValueError, match="no loss reads the teacher, so there is nothing to cache"):
        technique("distill", cache, "~pipeline.distill.losses.kl", steps=1)
    with pytest.raises(ValueError, match="epochs of a teacher cache must be >= 1, got 0"):
        technique("distill", cache, **{"steps": 1, "cache.epochs": 0})
    with pytest.raises(ValueError, match=r"losses\.own reads inner states"):
        technique("distill", cache, steps=1).cache.check({"own": Inner(weight=1.0)})


def test_a_head_that_is_not_one_product_is_refused(stage: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    made = stage("exact")
    monkeypatch.setattr("slimexp.teacher_cache.exact.head_of", lambda family: None)
    with pytest.raises(ValueError, match=r"are not one product with a matrix.*leave out the teacher cache"):
        made.cache.form(made.teacher_family, made.family)
