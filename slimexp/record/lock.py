"""A lock that is waited for, and not in silence."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from slimexp.file import integrity
from slimexp.host.progress import working


@contextmanager
def held(path: Path, busy: str) -> Iterator[None]:
    """Hold a lock until the block ends. What another process has made meanwhile is to be looked for within.

    Args:
        path: The file that is locked, created where there is none.
        busy: What another process is doing that holds it, for a line that says that it is waited for.

    Raises:
        OSError: The file cannot be opened, or is no regular file.
    """
    with integrity.lock_file(path) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"{busy}, waiting", flush=True)
            with working("waiting for another process"):
                fcntl.flock(file, fcntl.LOCK_EX)
        yield
