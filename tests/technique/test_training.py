"""Values that no technique can train with are refused by its constructor."""

from collections.abc import Callable
from typing import Any

import pytest

Make = Callable[..., Any]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"steps": -1}, "steps must be >= 0, got -1"),
        ({"batch_size": 0}, "batch_size must be >= 1, got 0"),
        ({"accumulate": 0}, "accumulate must be >= 1, got 0"),
        ({"pad_to": 0}, "pad_to must be >= 1, got 0"),
        ({"clip_norm": -1}, "clip_norm must be >= 0, got -1"),
        ({"workers": -1}, "workers must be >= 0, got -1"),
        ({"accumulate": 2.5}, "accumulate must be a whole number >= 1, got 2.5"),
        ({"steps": True}, "steps must be a whole number >= 0, got True"),
        ({"batch_size": None}, "batch_size must be a whole number >= 1, got None"),
        ({"clip_norm": None}, "clip_norm must be a number >= 0, got None"),
    ],
)
def test_wrong_values_are_refused_by_the_constructor(technique: Make, values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        technique("finetune", **values)


def test_a_teacher_that_no_loss_reads_is_refused(technique: Make) -> None:
    with pytest.raises(
        ValueError, match=r"add one that does, e\.g\. \+loss@pipeline\.<stage>\.losses\.kl=kl, or drop it$"
    ):
        technique("finetune", "+model@pipeline.finetune.teacher=t5_spelling")


def test_training_needs_a_loss(technique: Make) -> None:
    with pytest.raises(
        ValueError, match=r"one loss: add one, e\.g\. \+loss@pipeline\.<stage>\.losses\.ce=cross_entropy$"
    ):
        technique("finetune", "~pipeline.finetune.losses.ce", steps=1)


@pytest.mark.parametrize(
    "weight",
    [
        ["pipeline.finetune.losses.ce.weight=0"],
        ["+schedule@pipeline.finetune.losses.ce.weight=linear", "pipeline.finetune.losses.ce.weight={start:0,end:0}"],
    ],
)
def test_losses_that_all_weigh_nothing_train_nothing(technique: Make, weight: list[str]) -> None:
    with pytest.raises(ValueError, match=r"all losses are 0.*: give one of them a weight \(losses\.ce\.weight=1\)"):
        technique("finetune", *weight, steps=1)
    technique("finetune", *weight, steps=0)


def test_what_is_no_loss_is_refused_by_its_name(technique: Make) -> None:
    with pytest.raises(
        ValueError, match=r"losses\.ce must be a loss, got None: ~pipeline\.<stage>\.losses\.ce leaves it out"
    ):
        technique("finetune", losses="{ce: null}")


def test_what_the_student_writes_is_in_no_cache(technique: Make) -> None:
    with pytest.raises(ValueError, match=r"the student writes texts of its own: leave out the cache"):
        technique(
            "distill",
            "+teacher_cache@pipeline.distill.cache=exact",
            "+completion@pipeline.distill.completion=student",
            steps=1,
        )
