"""One override of a command line."""

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
