"""Overrides of a command line."""

import pytest

from slimexp import override

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


def test_options_without_a_name() -> None:
    groups = {"model": ["tool", "toy"], "loss": ["kl"]}
    given = ["model=null", "size=null", "+loss@a.b=3", "model=toy", "model=[tool,toy]", "loss=kl,3"]
    assert list(override.nameless(given, lambda group: groups.get(group, []))) == [
        "model must be the name of an option, got null; options: tool, toy",
        "loss@a.b must be the name of an option, got 3; options: kl",
    ]


def test_flags_and_deletions_give_no_value() -> None:
    assert override.given(["-m", "a=1", "~b", "--config-dir=c", "+d=2"]) == ["a=1", "+d=2"]


@pytest.mark.parametrize(
    ("wrong", "said"),
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
    ],
)
def test_the_nearest_key_is_not_the_misspelt_one(wrong: str, said: str) -> None:
    groups = {"grid": ["even"], "loss": ["kl"], "model": ["toy"]}
    keys = ["stage", "stage.grid", "stage.loss", "stage.loss.a", "stage.bits", "stage.smooth"]
    assert override.nearest(wrong, keys, lambda group: groups.get(group, []), list(groups)).endswith(said)
