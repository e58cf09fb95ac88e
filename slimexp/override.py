"""Overrides of a command line, as text."""

from collections.abc import Callable, Iterator, Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser


def given(arguments: Sequence[str]) -> list[str]:
    """Those arguments of a command line that give something a value."""
    return [argument for argument in arguments if "=" in argument and not argument.startswith("-")]


def key(override: str) -> str:
    """What is left of it without its sign, package and value."""
    return override.partition("=")[0].partition("@")[0].lstrip("+~")


def first(override: str) -> str:
    """With the first of its values, where it has several."""
    parsed = OverridesParser.create().parse_override(override)
    if not parsed.is_discrete_sweep():
        return override
    return f"{override.partition('=')[0]}={next(iter(parsed.sweep_string_iterator()))}"


def nameless(overrides: Sequence[str], options: Callable[[str], Sequence[str]]) -> Iterator[str]:
    """One line for each that chooses ``null`` or a number of a config group.

    Args:
        overrides: Of a command line, as ``given`` leaves them.
        options: What can be chosen in a group; nothing where there is no such group.
    """
    for text in overrides:
        parsed = OverridesParser.create().parse_override(text)
        choices = [] if parsed.is_sweep_override() else options(key(text))
        if choices and not isinstance(parsed.value(), (str, list)):
            name, _, value = text.lstrip("+").partition("=")
            yield f"{name} must be the name of an option, got {value}; options: {', '.join(choices)}"
