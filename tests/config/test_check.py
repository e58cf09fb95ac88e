"""Errors in a config are named before anything is loaded, with the nearest right word."""

from dataclasses import dataclass
from typing import Any

import pytest
from omegaconf import OmegaConf

from slimexp.config.build import ConfigError
from slimexp.config.check import check
from slimexp.config.composition import compose

pytestmark = pytest.mark.usefixtures("conf")


def faults(*overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        check(compose(["+experiment=shrink_tool", *overrides]))
    return str(caught.value)


def test_a_right_config_passes() -> None:
    check(compose(["+experiment=shrink_tool"]))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["+pipeline.shrink.stepz=1"],
            "'pipeline.shrink.stepz' of counter.Shrink; did you mean 'pipeline.shrink.steps'",
        ),
        (["+pipeline.shrink.stepz=1"], "valid: steps, rate, tool"),
        (["~pipeline.shrink.steps"], "pipeline.shrink lacks 'steps', which counter.Shrink requires"),
        (["model=unnamed"], "model.size has no value: add model.size=<int> to the command line"),
        (["seed=???"], "seed has no value"),
        (["pipeline.shrink._target_=counter.Shrnk"], "did you mean 'counter.Shrink'"),
        (["model._target_=no_such_package.Tool"], "pip install no-such-package"),
        (["+pipelin=1"], "unknown key 'pipelin'; did you mean 'pipeline'"),
        (["+pipeline.shrnk.steps=1"], "pipeline.shrnk is not a technique"),
        (["+pipeline.shrnk.steps=1"], "did you mean 'pipeline.shrink'"),
        (["+pipeline.other.{_target_: counter.Tool, size: 1, sharp: true}".replace(".{", "={")], "not a technique"),
        (["~pipeline.shrink"], "pipeline is empty"),
        (["name=${nme}"], "name: Interpolation key 'nme' not found"),
        (["pipeline.shrink.steps=${steps}"], "pipeline.shrink.steps: Interpolation key 'steps' not found"),
        (["pipeline.shrink.steps=many"], "pipeline.shrink.steps of counter.Shrink must be int, got 'many'"),
        (["model.sharp=1"], "model.sharp of counter.Tool must be bool, got 1"),
        (["model.size=true"], "must be int, got True"),
        (["+pipeline.shrink.tool={_target_: counter.Tool, size: 1}"], "pipeline.shrink.tool lacks 'sharp'"),
        (["+pipeline.shrink.tool=[{_target_: counter.Tool, size: 1}]"], "pipeline.shrink.tool[0] lacks 'sharp'"),
    ],
)
def test_says_what_is_wrong(overrides: list[str], message: str) -> None:
    assert message in faults(*overrides)


def test_says_everything_at_once() -> None:
    lines = faults("+pipelin=1", "+pipeline.shrink.stepz=1", "model=unnamed").splitlines()
    assert len(lines) == 3


def test_a_group_not_chosen_lists_its_options() -> None:
    cfg = compose(["+experiment=shrink_tool"])
    cfg.model = "???"
    with pytest.raises(ConfigError, match=r"model is not chosen: add model=<option>; options: tool, unnamed"):
        check(cfg)


@pytest.mark.parametrize(
    "node",
    [
        "{_target_: counter.Tool, _partial_: true}",
        "{_target_: counter.Tool, _convert_: all, size: 1, sharp: false, name: null}",
        "{_target_: counter.Whatever, x: 1}",
        "{size: 1}",
        "[1, {_target_: counter.Tool, size: 2, sharp: true}]",
        "null",
    ],
)
def test_accepts(node: str) -> None:
    check(compose(["+experiment=shrink_tool", f"+pipeline.shrink.tool={node}"]))


def test_a_partial_still_refuses_unknown_keys() -> None:
    assert "did you mean 'pipeline.shrink.tool.size'" in faults(
        "+pipeline.shrink.tool={_target_: counter.Tool, _partial_: true, sise: 1}"
    )


def test_another_program_brings_its_own_root() -> None:
    @dataclass
    class Root:
        tool: Any = None

    check(OmegaConf.create({"tool": {"_target_": "counter.Tool", "size": 1, "sharp": True}}), Root)
    with pytest.raises(ConfigError, match="did you mean 'tool'"):
        check(OmegaConf.create({"tol": 1}), Root)
