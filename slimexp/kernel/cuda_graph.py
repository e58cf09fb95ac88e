"""Work of a GPU as one CUDA graph."""

import functools
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch

FLOAT8_FROM = (8, 9)  # compute capability


@functools.cache
def has_triton() -> bool:
    return find_spec("triton") is not None


@functools.cache
def capability(device: torch.device) -> tuple[int, int]:
    """What a CUDA device can do."""
    return torch.cuda.get_device_capability(device)


def captured(work: Callable[[], object], device: torch.device, pool: Any = None) -> torch.cuda.CUDAGraph:
    """What ``work`` launches on ``device``, to be launched at once.

    ``work`` has then run once, and its Python twice.

    Args:
        work: Reads and writes tensors that stay where they are.
        device: A CUDA device.
        pool: Of ``torch.cuda.graph_pool_handle``, to share memory with graphs that run at other times and leave nothing
            there; ``None`` for memory of its own.
    """
    with torch.cuda.device(device):
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            work()  # compiles, and allocates what is allocated once
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool):
            work()
    return graph
