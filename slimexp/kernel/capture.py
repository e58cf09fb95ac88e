"""Work of a GPU as one CUDA graph."""

from collections.abc import Callable

import torch


def captured(work: Callable[[], object]) -> torch.cuda.CUDAGraph:
    """What ``work`` launches on the current device, to be launched at once; it has run once before."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        work()  # compiles, and allocates what is allocated once
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph
