"""What conf offers is listed as it lies there, and composes as on a command line."""

import pytest
from omegaconf import OmegaConf

from slimexp.config.composition import CONF_DIR, chosen, compose, groups, options


@pytest.mark.fast
def test_groups_and_options_are_the_folders_and_files_of_conf() -> None:
    assert "hydra/sweeper" in groups() and not {"", "."} & set(groups())
    assert all((CONF_DIR / group).is_dir() and options(group) for group in groups())
    assert "t5" in " ".join(options("model")) and options("no_such_group") == []


@pytest.mark.fast
def test_what_an_experiment_sets_of_what_was_not_chosen_is_no_component() -> None:
    group = OmegaConf.create({"size": {"_target_": "slimexp.measure.size.Size"}, "task": {"limit": 3}})
    assert list(chosen(group)) == ["size"]


def test_overrides_reach_the_config() -> None:
    assert compose(["seed=7"]).seed == 7
