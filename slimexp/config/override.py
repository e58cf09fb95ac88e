"""Overrides of a command line, as text."""

import re
import shlex
from collections.abc import Callable, Iterator, Sequence
from difflib import get_close_matches

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from slimexp.config import renamed

_QUOTED_NAME = re.compile(r"(['\"])([^'\"]*)\1(?=\s*:)")


def assignments(arguments: Sequence[str]) -> list[str]:
    """Arguments of a command line that assign a value to a key."""
    return [argument for argument in arguments if "=" in argument and not argument.startswith("-")]


def key(override: str) -> str:
    """The key of an override, without its sign, package and value."""
    return override.partition("=")[0].partition("@")[0].lstrip("+~")


def keyless(words: Sequence[str]) -> Iterator[str]:
    """One line for each argument without a key (``=x``, ``+@=x``, an empty word) or without a value (``distill``)."""
    before = ""
    for word in words:
        if not key(word).strip():
            yield f"'{word}' names no key: write KEY=VALUE, +KEY=VALUE or ~KEY"
        elif "=" not in word and not word.startswith("~"):
            blank = f", or, if it belongs to the value before, quotes: '{before} {word}'" if before else ""
            yield f"'{word}' has no value: write KEY=VALUE{blank}"
        before = word if "=" in word else ""


def first(override: str) -> str:
    """The override with the first of its values, where it has several."""
    parsed = OverridesParser.create().parse_override(override)
    if not parsed.is_discrete_sweep():
        return override
    return f"{override.partition('=')[0]}={next(iter(parsed.sweep_string_iterator()))}"


def quoted(override: str) -> str:
    """The word to type into a shell so that its value is read as text; empty where there is no such word."""
    name, equals, value = override.partition("=")
    inner = re.sub(r"(\\*)(\"|$)", lambda match: match[1] * 2 + ("\\" if match[2] else "") + match[2], value)
    word = f'{name}="{inner}"'
    try:
        parsed = OverridesParser.create().parse_override(word)
    except HydraException:
        return ""
    return shlex.quote(word) if name and equals and value.isprintable() and parsed.value() == value else ""


def plain_names(override: str) -> str:
    """The word to type into a shell with no quotes around names in mappings; empty where that cannot be read either."""
    word = _QUOTED_NAME.sub(r"\2", override)
    try:
        OverridesParser.create().parse_override(word)
    except HydraException:
        return ""
    return shlex.quote(word) if word != override else ""


def nameless(overrides: Sequence[str], options: Callable[[str], Sequence[str]]) -> Iterator[str]:
    """One line for each override that chooses ``null`` or a number in a config group.

    Args:
        overrides: Overrides of a command line, from ``assignments``.
        options: Group -> its options; empty where there is no such group.
    """
    for text in overrides:
        parsed = OverridesParser.create().parse_override(text)
        choices = [] if parsed.is_sweep_override() else options(key(text))
        if choices and not isinstance(parsed.value(), (str, list)):
            name, _, value = text.lstrip("+").partition("=")
            yield f"{name} must be the name of an option, got {value}; options: {', '.join(choices)}"


def nearest(
    misspelt: str,
    keys: Sequence[str],
    options: Callable[[str], Sequence[str]],
    groups: Sequence[str],
    value: str = "",
) -> str:
    """One line about a key that could not be overridden.

    Args:
        misspelt: The key as ``key`` returns it, or ``group@place``.
        keys: Dotted paths of everything in the config.
        options: Group -> its options; empty where there is no such group.
        groups: Names of the groups.
        value: The value that it was to have.
    """
    if line := now_called(misspelt):
        return line
    group, at, place = misspelt.partition("@")
    if choices := options(group):
        return f"nothing is chosen for '{misspelt}' yet: {_advice(group, place, keys)} options: {', '.join(choices)}"
    parent, _, name = misspelt.rpartition(".")
    if parent in keys and f"{parent}._target_" not in keys and (choices := options(name)):  # it holds components
        choice = value if value in choices else "<option>"
        return f"there is no '{misspelt}' yet: write +{name}@{misspelt}={choice}; options: {', '.join(choices)}"
    return unknown(misspelt, keys, options, [] if at else groups)


def now_called(word: str) -> str:
    """One line about a key, a group or ``group@place`` of an earlier version; empty where it is none."""
    present = renamed.GROUPS.get(word) or renamed.key(word)
    return f"'{word}' is called '{present}' now" if present != word else ""


def unknown(
    misspelt: str, keys: Sequence[str], options: Callable[[str], Sequence[str]], also: Sequence[str] = ()
) -> str:
    """One line about a key that is not in a config: the nearest one, and what lies where it should.

    Args:
        misspelt: The key, or ``group@place``.
        keys: Dotted paths of everything in the config.
        options: Group -> its options; empty where there is no such group.
        also: Further candidates for the nearest key.
    """
    candidates = [key for key in (*_open(keys), *also) if not misspelt.startswith(f"{key}.")]
    close = get_close_matches(misspelt, candidates, n=1)
    start = f"unknown key '{misspelt}';" + (f" did you mean '{close[0]}'?" if close else "")
    above = misspelt.partition("@")[2] or misspelt
    if valid := _open(_beside(above, keys)):
        return f"{start} valid: {', '.join(valid)}"
    while (above := above.rpartition(".")[0]) and above not in keys:
        pass
    if valid := _open(_beside(f"{above}." if above else "", keys)):
        return f"{start} valid{f' in {above!r}' if above else ''}: {', '.join(valid)}"
    if choices := options(above):
        return f"{start} nothing is chosen for '{above}' yet: add {above}=<option>; options: {', '.join(choices)}"
    return f"unknown key '{misspelt}'; '{above}' holds no keys" if above else start.removesuffix(";")


def _advice(group: str, place: str, keys: Sequence[str]) -> str:
    """The way to choose an option of ``group`` where nothing of it is chosen at ``place``, which may be misspelt."""
    if not place:
        path = next((key for key in keys if key.endswith(f".{group}")), None)
        return f"say where, {group}@{path}=<option>;" if path else f"write +{group}=<option>;"
    if (present := renamed.key(place)) != place:
        return f"'{place}' is called '{present}' now, write {group}@{present}=<option>;"
    parent, _, name = place.rpartition(".")
    exists = place in keys
    if not exists and parent and parent not in keys:
        close = get_close_matches(place, _open(keys), n=1)
        return f"did you mean '{group}@{close[0]}'?" if close else f"there is no '{parent}';"
    close = [] if exists else get_close_matches(name, _open(_beside(place, keys)), n=1)
    hint = f"did you mean '{group}@{place.removesuffix(name)}{close[0]}'? Else " if close else ""
    return f"{hint}write +{group}@{place}=<option>;"


def _open(keys: Sequence[str]) -> list[str]:
    """Keys without Hydra's own, such as ``_target_``, and without items of lists, which Hydra does not set alone."""
    return [key for key in keys if not key.rpartition(".")[2].startswith("_") and not key.endswith("]")]


def _beside(path: str, keys: Sequence[str]) -> list[str]:
    """Names of all that lies where ``path`` does."""
    parent, dot, _ = path.rpartition(".")
    return [key.removeprefix(parent + dot) for key in keys if key.rpartition(".")[0] == parent]
