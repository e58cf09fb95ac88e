"""CUDA graphs, and what a GPU of this machine can run."""

import functools
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch

FLOAT8_FROM = (8, 9)  # the first compute capability whose tensor cores multiply float8


@functools.cache
def has_triton() -> bool:
    """Whether Triton is installed."""
    return find_spec("triton") is not None


@functools.cache
def capability(device: torch.device) -> tuple[int, int]:
    """Compute capability of a CUDA device, major and minor."""
    return torch.cuda.get_device_capability(device)


def capture(work: Callable[[], object], device: torch.device, pool: Any = None) -> torch.cuda.CUDAGraph:
    """Capture what ``work`` launches on ``device`` as one CUDA graph.

    Afterwards ``work`` has run once, and its Python twice.

    Args:
        work: A function that reads and writes tensors at fixed addresses.
        device: A CUDA device.
        pool: A handle of ``torch.cuda.graph_pool_handle``, to share memory with graphs that run at other times and keep
            nothing there; ``None`` for memory of its own.
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
