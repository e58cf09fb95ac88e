"""Python's garbage collector, held off where its passes take longer than what they free is worth.

A pass looks at every object that is alive, and torch and transformers alone make more than a million of them.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


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
    """Leave what is alive at the start, the libraries' objects above all, out of every pass."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
