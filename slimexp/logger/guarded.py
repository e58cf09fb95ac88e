"""The run of a tracker, which stops nothing: what fails is one line, and the work that it shows goes on without it."""

import sys
from collections.abc import Callable
from typing import Any, ClassVar


class Guarded:
    """What trackers of other projects have in common.

    Attributes:
        label: The tracker in words.
        run: Its own object; ``None`` before ``start``, after ``finish`` and once something has failed.
    """

    label: ClassVar[str]
    run: Any = None

    def guarded(self, action: str, call: Callable[[], Any]) -> Any:
        """``call()``; where it fails ``None``, after one line and with no more tracking. ``None`` before ``start``."""
        if self.run is None and action != "start":
            return None
        try:
            return call()
        except Exception as error:
            self.run = None
            say(self.label, f"could not {action} ({type(error).__name__}: {error}); the run goes on without it")
            return None


def say(tracker: str, line: str) -> None:
    """Print a line about a tracker to the standard error."""
    print(f"{tracker}: {line}", file=sys.stderr, flush=True)
