"""Settings by patterns of names (``*`` for anything), of which the first that matches a name counts."""

import re
from collections.abc import Collection
from fnmatch import fnmatchcase


def pattern_of(name: str, patterns: Collection[str], setting: str) -> str:
    """The first pattern that matches a layer's name; ``setting`` says whose patterns they are.

    Raises:
        ValueError: None does.
    """
    for pattern in patterns:
        if fnmatchcase(name, pattern):
            return pattern
    raise ValueError(f"{setting} has no pattern for layer '{name}': add one, or '*' for all others")


def patterns_of(names: Collection[str], patterns: Collection[str], setting: str) -> dict[str, str]:
    """Name of each layer -> the first pattern that matches it; ``setting`` says whose patterns they are.

    Raises:
        ValueError: A layer matches no pattern, or a pattern no layer that an earlier one leaves.
    """
    found = {name: pattern_of(name, patterns, setting) for name in names}
    for pattern in (pattern for pattern in patterns if pattern not in found.values()):
        if any(fnmatchcase(name, pattern) for name in names):
            raise ValueError(f"{setting}: no layer is left for '{pattern}' by those before it: put it first")
        kinds = dict.fromkeys(re.sub(r"(?<=\.)\d+(?=\.)", "*", name) for name in names)  # of a large model hundreds
        raise ValueError(f"{setting}: no layer matches '{pattern}': remove it; layers are {', '.join(kinds)}")
    return found


def is_pattern(name: str) -> bool:
    """Whether a name may match others, so that its place among patterns counts."""
    return any(letter in name for letter in "*?[")
