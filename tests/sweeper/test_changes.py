"""Changes between two sweeps are named by key and value, with names of earlier versions translated."""

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, distribution_to_json

from slimexp.sweeper.changes import CONTENT, FIXED, changes

pytestmark = pytest.mark.fast

STORED = {
    "x": distribution_to_json(CategoricalDistribution(["1", "2"])),
    "seeds": [],
    CONTENT: "a",
    FIXED: {"lr": 0.1, "bits": 8},
}


def test_equal_descriptions_have_no_changes() -> None:
    assert changes(STORED, dict(STORED)) == ""


def test_values_are_shown_as_they_are_typed() -> None:
    requested = {**STORED, "x": distribution_to_json(FloatDistribution(1.0, 8.0, log=True)), "seeds": [0]}
    assert changes(STORED, requested) == "x was 1,2 and is tag(log, interval(1, 8)), seeds was [] and is [0]"


def test_keys_come_and_go() -> None:
    requested = {**STORED, "y": STORED["x"]}
    assert changes(STORED, requested) == "y is new"
    assert changes(requested, STORED) == "y is no longer there"


def test_what_is_fixed_is_named_by_key_where_it_is_stored() -> None:
    requested = {**STORED, CONTENT: "b", FIXED: {"lr": 0.2}}
    assert changes(STORED, requested) == "lr was 0.1 and is 0.2, bits is no longer there"
    older = {key: value for key, value in STORED.items() if key != FIXED}
    assert changes(older, requested) == f"{CONTENT} changed"
    many = {**STORED, CONTENT: "b", FIXED: {f"k{number}": number for number in range(6)}}
    assert changes(STORED, many).endswith("and 4 more")


def test_renamed_keys_and_classes_are_no_change() -> None:
    stored = {**STORED, FIXED: {"pipeline.prune.scheduler._target_": "slimexp.tracker.Wandb"}}
    requested = {**STORED, CONTENT: "b", FIXED: {"pipeline.prune.lr_scheduler._target_": "slimexp.logger.wandb.Wandb"}}
    assert changes(stored, requested) == ""


def test_an_option_that_came_later_is_no_change_at_what_stages_did_before() -> None:
    target = {"pipeline.prune._target_": "slimexp.technique.prune.Prune"}
    stored = {**STORED, FIXED: target | {"pipeline.prune.workers": 0}}
    for packing, expected in ((False, ""), ("auto", "pipeline.prune.packing was false and is auto")):
        now = target | {"pipeline.prune.workers": 0, "pipeline.prune.packing": packing}
        assert changes(stored, {**STORED, CONTENT: "b", FIXED: now}) == expected


def test_an_option_that_a_class_got_later_is_no_change_at_what_it_did_before() -> None:
    kl = "pipeline.distill.losses.kl"
    target = {f"{kl}._target_": "slimexp.loss.kl.ForwardKl"}
    for scale, expected in ((True, ""), (False, f"{kl}.scale_by_temperature was true and is false")):
        now = target | {f"{kl}.scale_by_temperature": scale}
        assert changes({**STORED, FIXED: target}, {**STORED, CONTENT: "b", FIXED: now}) == expected


def test_the_number_of_loader_processes_is_no_change() -> None:
    stored = {**STORED, FIXED: {"pipeline.prune.workers": 0}}
    assert changes(stored, {**STORED, CONTENT: "b", FIXED: {"pipeline.prune.workers": "auto"}}) == ""
