"""Settings by patterns of names: the first that matches counts, and none is left without a name."""

import pytest

from slimexp.config.by_name import is_pattern, pattern_of, patterns_of

pytestmark = pytest.mark.fast
NAMES = ["a.up", "a.down", "b.up"]


def test_the_first_pattern_that_matches_counts() -> None:
    assert pattern_of("a.up", ["*.up", "a.*"], "x") == "*.up"
    assert patterns_of(NAMES, ["*.up", "a.*"], "x") == {"a.up": "*.up", "a.down": "a.*", "b.up": "*.up"}
    assert [is_pattern(name) for name in ("a.*", "a.?", "a.[bc]", "a.b")] == [True, True, True, False]


def test_names_and_patterns_without_the_other_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^x has no pattern for layer 'a\.down': add one, or '\*' for all others$"):
        patterns_of(NAMES, ["*.up"], "x")
    with pytest.raises(ValueError, match=r"^x: no layer is left for 'a\.\*' by those before it: put it first$"):
        patterns_of(NAMES, ["*", "a.*"], "x")
    with pytest.raises(
        ValueError, match=r"^x: no layer matches 'c\.\*': remove it; layers are b\.\*\.up, b\.\*\.down$"
    ):
        patterns_of(["b.0.up", "b.0.down", "b.1.up"], ["*", "c.*"], "x")
