"""Command lines of benchmarks that hand settings on to their runs."""

import argparse
import re
import sys
from collections.abc import Collection, Sequence

_OVERRIDE = re.compile(r"(\+{0,2}[A-Za-z_][^=]*=|~[A-Za-z_])")


def parsed(
    parser: argparse.ArgumentParser, given: Sequence[str] | None = None, *, takers: Collection[str] = ()
) -> argparse.Namespace:
    """Options of the command line, and as ``overrides`` what looks like Hydra's: ``key=value``, ``~key``.

    These may stand anywhere, behind an option that takes several values too, which argparse would give them to.

    Args:
        parser: Knows the options.
        given: The words of the command line; ``None`` for this program's own.
        takers: Options whose value is an override.
    """
    words = sys.argv[1:] if given is None else list(given)
    is_override = [
        bool(_OVERRIDE.match(word)) and not (place and words[place - 1] in takers) for place, word in enumerate(words)
    ]
    own = [word for word, other in zip(words, is_override, strict=True) if not other]
    arguments, unknown = parser.parse_known_args(own)
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    arguments.overrides = [word for word, other in zip(words, is_override, strict=True) if other]
    for word in arguments.overrides:
        if word.startswith("runs=") and hasattr(arguments, "runs"):
            parser.error(f"{word} would part the runs from what is written about them: give --runs {word[5:]}")
    return arguments
