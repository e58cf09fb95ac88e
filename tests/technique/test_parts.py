"""A step that runs out of memory is repeated in parts, whose gradients add up to those of the whole batch."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from slimexp.logger.curves import Curves
from slimexp.pipeline.checkpoint import Checkpoint

Make = Callable[..., Any]
LOSSES = {
    "ce": [],
    "kl": ["+loss@pipeline.finetune.losses.kl=kl"],
    "hidden": ["+loss@pipeline.finetune.losses.kl=kl", "+loss@pipeline.finetune.losses.hidden=hidden"],
    "relations": [
        "+loss@pipeline.finetune.losses.relations=relations",
        "+loss@pipeline.finetune.losses.hidden=hidden",
        "pipeline.finetune.losses.hidden.distance=cosine",
        "pipeline.finetune.losses.hidden.projection=true",
    ],
}


def first_block(stage: Any) -> Any:
    return next(iter(stage.family.blocks().values()))[0]


class Small:
    """A memory that holds so many rows of a stage's batch, in the forward pass or only in the backward pass."""

    def __init__(self, stage: Any, rows: int, *, backwards: bool = False, start: int = 0) -> None:
        self.stage, self.rows, self.backwards, self.start = stage, rows, backwards, start
        self.seen: list[int] = []
        first_block(stage).register_forward_pre_hook(self._look, with_kwargs=True)

    def _look(self, module: Any, inputs: Any, named: dict[str, Any]) -> None:
        if not torch.is_grad_enabled():
            return
        states: Tensor = named.get("hidden_states", *inputs[:1])
        self.seen.append(len(states))
        if self.backwards:
            states.register_hook(lambda gradient: self._refuse(len(gradient)))
        else:
            self._refuse(len(states))

    def _refuse(self, rows: int) -> None:
        if rows > self.rows and self.stage.global_step >= self.start:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


@pytest.fixture
def prepared(tiny: Make, technique: Make, corpus: Make) -> Make:
    """Losses and values -> a stage of three steps that holds its model, and keeps the gradients of every step."""

    def make(losses: str = "ce", *, task: str = "causal_lm", drop: float = 0.0, **values: Any) -> Any:
        # without a rate, so that the weights of all steps are the same
        settings = {"steps": 3, "batch_size": 8, "optimizer.lr": 0.0, "clip_norm": 0, "packing": False} | values
        stage = technique("finetune", *LOSSES[losses], **settings)
        teacher = tiny(task) if losses != "ce" else None
        if teacher is not None:
            for parameter in teacher.model.parameters():
                parameter.data.mul_(1.5)
        stage.prepare(tiny(task, attention_dropout=drop), corpus(task), teacher)
        stage.kept = []
        keep = stage.on_gradients

        def on_gradients() -> None:
            keep()
            stage.kept.append({name: p.grad.clone() for name, p in stage.named_parameters() if p.grad is not None})

        stage.on_gradients = on_gradients
        return stage

    return make


def assert_same_gradients(one: Any, other: Any) -> None:
    assert len(one.kept) == len(other.kept) == one.steps
    for gradients, expected in zip(one.kept, other.kept, strict=True):
        assert gradients.keys() == expected.keys()
        for name, gradient in gradients.items():
            torch.testing.assert_close(gradient, expected[name], rtol=1e-3, atol=1e-6, msg=name)


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("losses", LOSSES)
@pytest.mark.parametrize("task", ["causal_lm", "seq2seq"])
def test_gradients_and_curves_are_those_of_whole_batches(
    prepared: Make, fit: Make, task: str, losses: str, accumulate: int, backwards: bool, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    whole, small = (prepared(losses, task=task, accumulate=accumulate) for _ in range(2))
    fit(whole, logger=Curves(path=tmp_path / "whole"))
    assert "out of memory" not in capsys.readouterr().out
    memory = Small(small, 3, backwards=backwards, start=1)
    fit(small, logger=Curves(path=tmp_path / "small"))
    assert_same_gradients(small, whole)
    lines = [line for line in capsys.readouterr().out.splitlines() if "memory" in line]
    assert lines == [
        f"  out of memory at 8 rows: {2 * accumulate} x 4 rows per step from here",
        f"  out of memory at 4 rows: {4 * accumulate} x 2 rows per step from here",
    ]
    assert memory.seen[-4 * accumulate :] == [2] * 4 * accumulate
    rows, expected = ((tmp_path / name).read_text().splitlines() for name in ("small", "whole"))
    for row, other in zip(rows, expected, strict=True):
        assert json.loads(row) == pytest.approx(json.loads(other), rel=1e-4)


def test_a_classifier_whose_rows_are_not_a_multiple_of_the_parts(prepared: Make, fit: Make) -> None:
    whole, small = (prepared(task="classification", batch_size=7) for _ in range(2))
    fit(whole)
    memory = Small(small, 3)
    fit(small)
    assert_same_gradients(small, whole)
    assert memory.seen[-4:] == [2, 2, 2, 1]


def test_one_row_that_does_not_fit_ends_the_run(prepared: Make, fit: Make) -> None:
    stage = prepared(batch_size=4)
    Small(stage, 0, start=1)
    with pytest.raises(torch.OutOfMemoryError, match="Tried to allocate"):
        fit(stage)
    assert len(stage.kept) == 1


def test_other_errors_are_no_lack_of_memory(prepared: Make, fit: Make) -> None:
    stage = prepared()

    def fails(*_: Any) -> None:
        raise RuntimeError("shapes cannot be multiplied")

    first_block(stage).register_forward_hook(fails)
    with pytest.raises(RuntimeError, match="shapes"):
        fit(stage)


def test_the_penalty_of_gates_counts_once(tiny: Make, prune: Make, corpus: Make, fit: Make) -> None:
    ends = []
    for rows in (8, 2):
        stage = prune("importance@pipeline.prune.importance=l0", steps=4, batch_size=8, **{"optimizer.lr": 1e-3})
        stage.prepare(tiny("causal_lm"), corpus("causal_lm"), None)
        levels = stage.gating.levels()
        Small(stage, rows)
        fit(stage)
        ends.append({name: level.detach() for name, level in levels.items()})
    for name, level in ends[0].items():
        torch.testing.assert_close(ends[1][name], level, rtol=1e-3, atol=1e-3)


def test_regrowth_is_computed_in_parts_too(tiny: Make, prune: Make, corpus: Make, fit: Make) -> None:
    masks = []
    for rows in (8, 2):
        stage = prune(steps=4, batch_size=8, every=2, regrow=0.3, **{"optimizer.lr": 1e-3})
        stage.prepare(tiny("causal_lm"), corpus("causal_lm"), None)
        Small(stage, rows, start=2)  # the first pass of that step is the one that looks for growth
        fit(stage)
        assert stage.rows_at_once == (None if rows == 8 else 2)
        masks.append({name: mask.mask.clone() for name, mask in stage.masks.items()})
    assert sum(float((masks[0][name] != mask).float().mean()) for name, mask in masks[1].items()) < 0.01


def test_dropout_draws_no_other_numbers_where_denominators_are_computed(prepared: Make, fit: Make) -> None:
    """In parts from the start: losses that need a pass for their denominators, and others, draw the same numbers."""
    ends = []
    for losses in ("kl", "hidden"):
        stage = prepared(losses, steps=1, drop=0.2)
        stage.rows_at_once = 2
        fit(stage)
        ends.append(torch.get_rng_state())
    assert torch.equal(*ends)


class Killed(Exception):
    """What ends a run in a test."""


def test_a_resumed_training_goes_on_in_parts(prepared: Make, fit: Make, tmp_path: Path) -> None:
    def stage(rows: int) -> tuple[Any, Small]:
        made = prepared(steps=5, drop=0.2, **{"optimizer.lr": 1e-3})
        return made, Small(made, rows)

    (straight, _), (interrupted, _), (resumed, memory) = (stage(4) for _ in range(3))
    fit(straight)
    path = tmp_path / "checkpoint.ckpt"
    checkpoint = Checkpoint(path=path, key="k", curves=tmp_path / "curves", every_seconds=0, every_steps=2)
    evaluate, calls = interrupted.on_step, []

    def on_step(progress: float) -> None:
        calls.append(progress)
        if len(calls) == 5:
            raise Killed
        evaluate(progress)

    interrupted.on_step = on_step
    with pytest.raises(Killed):
        fit(interrupted, callbacks=[checkpoint])
    memory.rows = 8  # it would fit now; what the checkpoint says counts
    fit(resumed, resume=path)
    assert resumed.rows_at_once == 4 and set(memory.seen) == {4}
    for one, other in zip(straight.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)
