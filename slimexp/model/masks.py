"""How transformers makes attention masks: it looks at values to see which it can do without, which waits for a GPU."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import ModuleType
from typing import Any

from transformers import masking_utils
from transformers.utils import import_utils


@contextmanager
def as_recorded() -> Iterator[None]:
    """Masks are made without a look at values, as in a recording of a CUDA graph.

    What is compiled within the context is then what a recording needs.
    """
    with _replaced(import_utils, "is_cuda_stream_capturing", lambda: True):
        yield


@contextmanager
def of_full_rows() -> Iterator[None]:
    """Nothing is padded and a row holds one document: causal attention needs no mask, and has a faster kernel."""
    with ExitStack() as stack:
        stack.enter_context(_replaced(import_utils, "is_cuda_stream_capturing", lambda: False))
        stack.enter_context(_replaced(masking_utils, "find_packed_sequence_indices", lambda position_ids: None))
        yield


@contextmanager
def _replaced(module: ModuleType, name: str, function: Any) -> Iterator[None]:
    """Replace a function of transformers; nothing happens in a version that has none of this name."""
    before = getattr(module, name, None)
    if before is None:
        yield
        return
    setattr(module, name, function)
    try:
        yield
    finally:
        setattr(module, name, before)
