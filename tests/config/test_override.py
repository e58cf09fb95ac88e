"""Overrides of a command line."""

import shlex

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from slimexp.config import override

pytestmark = pytest.mark.fast


@pytest.mark.parametrize(
    ("text", "key", "first"),
    [
        ("a.b=1", "a.b", "a.b=1"),
        ("+a.b=1,2", "a.b", "+a.b=1"),
        ("+loss@pipeline.distill.losses.jsd=jsd", "loss", "+loss@pipeline.distill.losses.jsd=jsd"),
        ("~callback.stopper", "callback.stopper", "~callback.stopper"),
        ("seed=range(3,9)", "seed", "seed=3"),
        ("a=interval(0,1)", "a", "a=interval(0,1)"),
    ],
)
def test_key_and_first_value(text: str, key: str, first: str) -> None:
    assert override.key(text) == key
    assert override.first(text) == first


@pytest.mark.parametrize(
    "value",
    ["~/my model (1)", "a(b", "a=b", "a b", "a,b", "{x", "x}", "[1", "it's", "modèle", "日本",
     'a"b', "a\\", "a\\\\", 'c:\\"y',
     "#a", "a;b", "a&b", "${x", "$HOME", "!x", "a<b", "`x`", " lead", "~x", "a^b", "100%", "'q'", '"q"', "null", "1"],
)  # fmt: skip
def test_what_is_told_to_type_is_read_as_the_text_that_was_meant(value: str) -> None:
    (word,) = shlex.split(override.quoted(f"model.path={value}"))
    parsed = OverridesParser.create().parse_override(word)
    assert (parsed.key_or_group, parsed.value()) == ("model.path", value)


@pytest.mark.parametrize("wrong", ["model.path", "=x", "a=b\nc", "(=x"])
def test_nothing_is_told_to_type_where_quotes_are_no_way_out(wrong: str) -> None:
    assert override.quoted(wrong) == ""


def test_options_without_a_name() -> None:
    groups = {"model": ["tool", "toy"], "loss": ["kl"]}
    given = ["model=null", "size=null", "+loss@a.b=3", "model=toy", "model=[tool,toy]", "loss=kl,3"]
    assert list(override.nameless(given, lambda group: groups.get(group, []))) == [
        "model must be the name of an option, got null; options: tool, toy",
        "loss@a.b must be the name of an option, got 3; options: kl",
    ]


def test_flags_and_deletions_give_no_value() -> None:
    assert override.assignments(["-m", "a=1", "~b", "--config-dir=c", "+d=2"]) == ["a=1", "+d=2"]


@pytest.mark.parametrize(
    ("wrong", "suggestion"),
    [
        ("stage.bts", "unknown key 'stage.bts'; did you mean 'stage.bits'? valid: grid, loss, bits, smooth"),
        ("gird", "unknown key 'gird'; did you mean 'grid'? valid: stage"),
        ("grid", "nothing is chosen for 'grid' yet: say where, grid@stage.grid=<option>; options: even"),
        ("model", "nothing is chosen for 'model' yet: write +model=<option>; options: toy"),
        ("loss@stage.loss.b", "yet: write +loss@stage.loss.b=<option>; options: kl"),
        ("grid@stage.smooth", "yet: write +grid@stage.smooth=<option>; options: even"),
        ("grid@stage.gird", "yet: did you mean 'grid@stage.grid'? Else write +grid@stage.gird=<option>; options: even"),
        ("grid@stag.grid", "yet: did you mean 'grid@stage.grid'? options: even"),
        ("grid@x.y.z", "yet: there is no 'x.y'; options: even"),
        ("grid@stage.tagret", "yet: write +grid@stage.tagret=<option>; options: even"),
        ("stag.bits.x", "unknown key 'stag.bits.x'; did you mean 'stage.bits'? valid: stage"),
        ("stage.loss.x.y", "unknown key 'stage.loss.x.y'; did you mean 'stage.loss.a'? valid in 'stage.loss': a"),
        ("stage.smooth.x", "unknown key 'stage.smooth.x'; 'stage.smooth' holds no keys"),
        ("model.path", "unknown key 'model.path'; valid: stage"),
        ("stage.loss.grid", "there is no 'stage.loss.grid' yet: write +grid@stage.loss.grid=<option>; options: even"),
        ("scheduler", "'scheduler' is called 'lr_scheduler' now"),
        ("grid@pipeline.s.target.x", "'grid@pipeline.s.target.x' is called 'grid@pipeline.s.budget.x' now"),
    ],
)
def test_the_nearest_key_is_not_the_misspelt_one(wrong: str, suggestion: str) -> None:
    groups = {"grid": ["even"], "loss": ["kl"], "model": ["toy"]}
    keys = ["stage", "stage._target_", "stage.grid", "stage.loss", "stage.loss.a", "stage.bits", "stage.smooth"]
    assert override.nearest(wrong, keys, lambda group: groups.get(group, []), list(groups)).endswith(suggestion)
