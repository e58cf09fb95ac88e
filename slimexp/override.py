"""One override of a command line, as text."""

from hydra.core.override_parser.overrides_parser import OverridesParser


def key(override: str) -> str:
    """What is left of it without its sign, package and value."""
    return override.partition("=")[0].partition("@")[0].lstrip("+~")


def first(override: str) -> str:
    """With the first of its values, where it has several."""
    parsed = OverridesParser.create().parse_override(override)
    if not parsed.is_discrete_sweep():
        return override
    return f"{override.partition('=')[0]}={next(iter(parsed.sweep_string_iterator()))}"
