"""A config becomes objects, and what a constructor refuses is an error of the config."""

from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from slimexp.config.build import ConfigError, build

pytestmark = pytest.mark.usefixtures("conf")


def tool(**values: Any) -> DictConfig:
    return OmegaConf.create({"model": {"_target_": "counter.Tool", "size": 1, "sharp": True, **values}})


def test_build_hands_runtime_objects_through() -> None:
    given = [object()]
    assert build(tool().model, name=given).given is given


def test_build_keeps_a_partial_partial() -> None:
    made = build(tool(_partial_=True).model, name="saw")
    assert made().given == "saw"


def test_build_gives_plain_containers() -> None:
    assert type(build(tool(name=[1, {"a": 2}]).model).given) is list
    assert build(OmegaConf.create({"a": [1]})) == {"a": [1]}
    assert build(None) is None


@pytest.mark.parametrize("overrides", [{}, {"name": "saw"}])
def test_build_says_where_a_constructor_refused(overrides: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match=r"^model: size must be >= 0, got -1$"):
        build(tool(size=-1).model, **overrides)
