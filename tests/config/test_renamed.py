"""Names of earlier versions lead to what is there now, and nowhere else."""

import inspect

import hydra
import pytest

from slimexp.config import renamed
from slimexp.config.binding import unknown
from slimexp.config.composition import options
from slimexp.config.definition import TargetNotFound, home
from slimexp.config.override import nearest
from slimexp.config.signature import signature
from slimexp.record.settings import flat


@pytest.mark.fast
@pytest.mark.parametrize("old", renamed.CLASSES)
def test_every_present_name_is_a_class_and_no_old_one_is(old: str) -> None:
    present = renamed.class_path(old)
    assert home(present) == (present, True)
    assert renamed.class_path(present) == present
    with pytest.raises(TargetNotFound, match=rf"'{old}' is called '{present}' now"):
        signature(old)


@pytest.mark.fast
def test_groups_and_options_exist() -> None:
    for old, present in renamed.GROUPS.items():
        assert options(present) and not options(old)
    for (group, old), present in renamed.OPTIONS.items():
        assert present in options(group) and old not in options(group)


@pytest.mark.fast
def test_a_configuration_is_translated_and_left_as_it_was() -> None:
    stage = {"_target_": "slimexp.technique.prune_structured.PruneStructured", "scheduler": {"name": "cosine"}}
    stage["target"] = {"_target_": "slimexp.target.disk.Disk", "megabytes": 3}
    config = {"data": {"target": "answer"}, "pipeline": {"small": stage, "none": None}, "items": [{"_target_": "x.Y"}]}
    before = list(flat(config))
    translated = renamed.config(config)
    assert list(flat(config)) == before
    assert translated["pipeline"]["small"] == {
        "_target_": "slimexp.technique.prune_structured.PruneStructured",
        "lr_scheduler": {"name": "cosine"},
        "budget": {"_target_": "slimexp.budget.disk.Disk", "megabytes": 3},
    }
    assert translated["data"] == config["data"] and translated["pipeline"]["none"] is None
    assert renamed.config(translated) == translated
    assert [renamed.key(key) for key, _ in flat(config)] == [key for key, _ in flat(translated)]


@pytest.mark.fast
def test_a_key_that_is_there_under_both_names_is_kept() -> None:
    stage = {"scheduler": 1, "lr_scheduler": 2}
    assert renamed.config({"pipeline": {"stage": stage}}) == {"pipeline": {"stage": stage}}


@pytest.mark.fast
def test_a_group_and_its_place_have_present_names() -> None:
    assert renamed.key("target@pipeline.prune.target") == "budget@pipeline.prune.budget"
    assert renamed.key("loss@pipeline.prune.losses.ce") == "loss@pipeline.prune.losses.ce"


@pytest.mark.fast
def test_an_old_key_of_a_command_line_is_named() -> None:
    line = nearest("pipeline.prune.scheduler.num_warmup_steps", [], options, [])
    assert line == (
        "'pipeline.prune.scheduler.num_warmup_steps' is called 'pipeline.prune.lr_scheduler.num_warmup_steps' now"
    )


@pytest.mark.fast
def test_a_root_key_that_moved_is_found_where_it_is_now() -> None:
    old = {"compile": True, "trainer": {"devices": 1}}
    assert renamed.config(old) == {"trainer": {"devices": 1, "compile": True}}
    assert renamed.config({"compile": True}) == {"compile": True}, "nowhere to go"
    assert renamed.config({"compile": True, "trainer": {"compile": "auto"}})["trainer"] == {"compile": "auto"}
    assert renamed.key("compile") == "trainer.compile" and renamed.key("pipeline.x.compile") == "pipeline.x.compile"
    assert nearest("compile", [], options, []) == "'compile' is called 'trainer.compile' now"
    assert unknown("compile", "", ["seed"]) == "'compile' is called 'trainer.compile' now"


@pytest.mark.parametrize("target", renamed.LATER)
def test_options_that_came_later_are_those_of_the_constructor_and_its_defaults(target: str) -> None:
    """So that a configuration without them is read, and run, as it was."""
    parameters = inspect.signature(hydra.utils.get_class(target)).parameters
    assert {name: parameters[name].default for name in renamed.LATER[target]} == renamed.LATER[target]


def test_a_class_has_the_options_that_it_got_later() -> None:
    kl = {"_target_": "slimexp.loss.kl.ForwardKl", "weight": 1.0}
    stored = {"pipeline": {"distill": {"losses": {"kl": kl, "other": {**kl, "scale_by_temperature": False}}}}}
    losses = renamed.config(stored)["pipeline"]["distill"]["losses"]
    assert losses["kl"] == {**kl, "scale_by_temperature": True} and not losses["other"]["scale_by_temperature"]
    assert stored["pipeline"]["distill"]["losses"]["kl"] == kl
