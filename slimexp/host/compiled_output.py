"""What compiled libraries print past Python."""

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from slimexp.host.progress import reporter


@contextmanager
def unprinted() -> Iterator[None]:
    """Drop what compiled code writes to the standard output; Python's own lines, and those of progress, still go there.

    Nothing is dropped where ``sys.stdout`` is something else.
    """
    try:
        is_standard = sys.stdout.fileno() == 1
    except (OSError, ValueError, AttributeError):  # a notebook, a test
        is_standard = False
    if not is_standard:
        yield
        return
    before = sys.stdout
    before.flush()
    with (
        open(os.devnull, "wb") as nothing,
        os.fdopen(os.dup(1), "w", encoding=before.encoding, errors=before.errors) as own,
    ):
        _flush()
        sys.stdout = own
        reporter.move(before, own)
        os.dup2(nothing.fileno(), 1)
        try:
            yield
        finally:
            _flush()  # what C has written and not sent
            own.flush()
            os.dup2(own.fileno(), 1)
            reporter.move(own, before)
            sys.stdout = before


def _flush() -> None:
    """Send what C's streams hold."""
    ctypes.CDLL(None).fflush(None)
