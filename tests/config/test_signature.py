"""Signatures read from source equal those of the imported objects."""

import inspect
from importlib import import_module
from typing import Unpack, get_args, get_origin, get_type_hints

import pytest
import pytorch_lightning as pl

from slimexp.config.composition import CONF_DIR
from slimexp.config.signature import signature

TARGETS = sorted(
    {
        line.split(":", 1)[1].split("#")[0].strip()
        for path in CONF_DIR.rglob("*.yaml")
        for line in path.read_text().splitlines()
        if line.strip().startswith("_target_:")
    }
)

pytestmark = pytest.mark.usefixtures("shop")


def names(target: str) -> dict[str, bool]:
    """Parameter -> whether it is required."""
    return {name: item.required for name, item in signature(target).parameters.items()}


@pytest.mark.fast
@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("shop.Plain", {}),
        ("shop.Made", {"one": True, "two": False}),
        ("shop.Child", {"one": True, "two": False}),
        ("shop.Own", {"three": True}),
        ("shop.Own.load", {"path": True}),
        ("shop.Own.join", {"a": True, "b": False}),
        ("shop.Row", {"left": True, "right": False, "made": False, "asked": True}),
        ("shop.LongRow", {"left": True, "right": False, "made": False, "asked": True, "tail": True}),
        ("shop.both", {"a": True, "b": True}),
        ("shop.starred", {"x": True}),
        ("shop.back.starred", {"x": True}),
        ("shop.tool", {"slow": True}),
    ],
)
def test_reads_parameters(target: str, expected: dict[str, bool]) -> None:
    assert names(target) == expected
    assert not signature(target).open


@pytest.mark.fast
@pytest.mark.parametrize(
    "target", ["shop.Shown", "shop.Alias", "shop.Foreign", "shop.Decorated", "math.sqrt", "shop.T"]
)
def test_is_open_where_more_may_be_accepted_or_nothing_is_known(target: str) -> None:
    assert signature(target).open


@pytest.mark.parametrize("target", TARGETS)
def test_equals_the_imported_signature(target: str) -> None:
    module, _, name = target.rpartition(".")
    imported = inspect.signature(getattr(import_module(module), name)).parameters
    variadic = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    expected = {key: item.default is item.empty for key, item in imported.items() if item.kind not in variadic}
    rest = [item.annotation for item in imported.values() if item.kind is item.VAR_KEYWORD]
    if target == "slimexp.pipeline.trainer.Trainer":  # passes the rest on to its base
        base = inspect.signature(pl.Trainer).parameters
        expected, rest = {key: item.default is item.empty for key, item in base.items()} | expected, []
    unpacked = [get_args(annotation)[0] for annotation in rest if get_origin(annotation) is Unpack]
    for row in unpacked:
        expected |= {key: key in row.__required_keys__ for key in get_type_hints(row)}
    assert names(target) == expected
    assert signature(target).open == (len(rest) > len(unpacked))


@pytest.mark.fast
def test_a_key_that_may_be_absent_is_not_required() -> None:
    """``NotRequired`` of a typed dict (PEP 655): its annotation is that of the value."""
    parameters = signature("slimexp.technique.finetune.Finetune").parameters
    assert not parameters["completion"].required and parameters["teacher"].required
    assert parameters["completion"].annotation == "Completion | None"
