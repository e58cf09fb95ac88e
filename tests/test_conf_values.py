"""Every number under conf/ x what is no such number: valid, or one line before anything is loaded."""

import re
from functools import cache
from typing import Any

import pytest
from omegaconf import DictConfig, ListConfig, OmegaConf

from slimexp.config import binding
from slimexp.config.build import build
from slimexp.config.composition import CONF_DIR, compose

COMPONENTS = sorted(
    (path.parent.name, path.stem)
    for path in CONF_DIR.glob("*/*.yaml")
    if path.parent.name not in ("experiment", "hydra", "pipeline", "callback", "trainer")
)
NEVER = [float("nan"), float("inf"), float("-inf"), 2**70, "abc", True]  # for no number
PERHAPS = [-1, 1e30, None]  # for some


@cache
def composed() -> DictConfig:
    """All components side by side, in a dict that takes any name."""
    return compose([f"+{group}@measure.{group}_{name}={name}" for group, name in COMPONENTS])


def numbers(group: str, name: str) -> list[tuple[str, Any, Any]]:
    """(path, its container, key) of every number of a component."""
    probe = composed().measure[f"{group}_{name}"]
    plain = [(path, parent, key) for path, parent, key in binding.items(probe) if is_number(parent._get_node(key))]
    assert all("_target_" not in path for path, _, _ in plain)
    return plain


def is_number(node: Any) -> bool:
    value = None if isinstance(node, DictConfig | ListConfig) else node._value()
    return isinstance(value, int | float) and not isinstance(value, bool)


def errors(group: str, name: str) -> list[str]:
    probe = composed().measure[f"{group}_{name}"]
    found = list(binding.faults("probe", probe._get_parent(), f"{group}_{name}"))
    for path, parent, key in binding.items(probe, "probe"):
        found += binding.faults(path, parent, key)
    return [line for line in found if "has no value" not in line]


@pytest.mark.parametrize(("group", "name"), COMPONENTS)
def test_what_is_no_number_is_one_line(group: str, name: str) -> None:
    for path, parent, key in numbers(group, name):
        before = parent._get_node(key)._value()
        for value in NEVER:
            parent[key] = value
            lines = errors(group, name)
            if not lines and group == "lr_scheduler":  # a constructor of others without types: see test_optimization
                continue
            assert len(lines) == 1, (path, value, lines)
            assert re.sub(r"\[\d+\]$", "", path).rpartition(".")[2] in lines[0] and "\n" not in lines[0]
        parent[key] = before
    assert errors(group, name) == []


@pytest.mark.parametrize(("group", "name"), COMPONENTS)
def test_what_is_a_number_out_of_range_is_one_line_or_fine(group: str, name: str) -> None:
    for path, parent, key in numbers(group, name):
        before = parent._get_node(key)._value()
        for value in PERHAPS:
            parent[key] = value
            lines = errors(group, name)
            probe = composed().measure[f"{group}_{name}"]
            if not lines and not any(OmegaConf.is_missing(above, item) for _, above, item in binding.items(probe)):
                try:
                    build(probe)
                except ValueError as error:  # as ConfigError is: anything else would be a traceback
                    lines = str(error).splitlines()
            assert len(lines) <= 1, (path, value, lines)
        parent[key] = before
