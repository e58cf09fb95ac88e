"""Python's garbage collector, held off where its passes take longer than what they free is worth.

A pass looks at every object that is alive, and torch and transformers alone make more than a million of them.
"""

import ctypes
import gc
from collections.abc import Iterator
from contextlib import contextmanager, suppress


@contextmanager
def paused() -> Iterator[None]:
    """Make no pass, where many objects are made that no cycle keeps alive: the nodes of syntax trees, say.

    Such objects are freed as ever, when the last reference to them goes.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextmanager
def frozen() -> Iterator[None]:
    """Leave what is alive at the start, the libraries' objects above all, out of every pass.

    A pass over the libraries takes a quarter of a second. What is frozen is freed as ever when its last reference goes;
    where a cycle keeps it alive, after the context. Within another such context nothing more is frozen: Python's
    collector unfreezes all at once.
    """
    if gc.get_freeze_count() > 0:
        yield
        return
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def release() -> None:
    """Collect what nothing refers to, and hand its memory back to the system, where the C library can.

    glibc keeps freed pieces of up to 32 MB, which most weights are, for whoever asks next: of a model that is gone, all
    of its memory may stay.
    """
    gc.collect()
    with suppress(OSError, AttributeError):  # another system, or another C library
        ctypes.CDLL(None).malloc_trim(0)
