"""Running out of memory, on a GPU or the CPU: how it is told from other errors, and smaller batches as a way out."""

import gc
import sys
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

_TYPES = {"MemoryError", "OutOfMemoryError"}  # of Python, and of torch, which is not imported for it
_PHRASES = (
    "out of memory",  # of CUDA, cuDNN and Triton
    "DefaultCPUAllocator: ",
    "std::bad_alloc",
    "CUBLAS_STATUS_ALLOC_FAILED",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a library had no memory left; torch raises a plain ``RuntimeError`` where that was the CPU's."""
    if type(error).__name__ in _TYPES:
        return True
    return isinstance(error, RuntimeError) and any(phrase in str(error) for phrase in _PHRASES)


def halving(call: Callable[[int], T], size: int, name: str) -> T:
    """``call(size)``, again with half of it, rounded up, while memory runs out; one line says which size it became.

    Args:
        call: Does the work in batches of the given size; must be as if it had not begun where it fails.
        size: Size of a batch.
        name: Setting that holds ``size``, as it is typed.
    """
    fitting = size
    while True:
        try:
            result = call(fitting)
            break
        except Exception as error:
            if fitting == 1 or not is_out_of_memory(error):
                raise
        release()  # outside of the handler, which holds the tensors of all its frames
        fitting = -(-fitting // 2)
    if fitting != size:
        print(f"  out of memory with {name}={size}: went on with {fitting}", flush=True)
    return result


def release() -> None:
    """Give back what a failed attempt left: objects in circles, and blocks that torch keeps for reuse."""
    gc.collect()
    if (torch := sys.modules.get("torch")) is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
