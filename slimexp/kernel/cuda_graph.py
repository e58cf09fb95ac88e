"""CUDA graphs, and what a GPU of this machine can run."""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor

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
        side = _stream(torch.cuda.current_device())
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            work()  # compiles, and allocates what is allocated once
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        # other threads pin batches and write checkpoints meanwhile
        with undone(), torch.cuda.graph(graph, pool=pool, stream=side, capture_error_mode="thread_local"):
            work()
    return graph


@functools.cache
def _stream(index: int) -> torch.cuda.Stream:
    """The stream of a device that graphs are recorded on: cuBLAS keeps memory for each that it has seen."""
    return torch.cuda.Stream(index)


@contextmanager
def undone() -> Iterator[None]:
    """Where recording fails, torch goes on with the stream and the random numbers of before, which it would not."""
    stream = torch.cuda.current_stream()
    try:
        yield
    except BaseException:
        torch.cuda.set_stream(stream)
        generator = torch.cuda.default_generators[stream.device_index]
        generator.graphsafe_set_state(generator.clone_state())
        raise


class _Record(NamedTuple):
    """A recorded call.

    Attributes:
        graph: What it launches.
        inputs: Where it reads its arguments.
        outputs: Where it leaves what it returns.
    """

    graph: torch.cuda.CUDAGraph
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


class Recorded:
    """A function of tensors that launches many small kernels: on a GPU, recorded for each list of shapes and replayed.

    Elsewhere it is called as it is.

    Args:
        work: The function. It does not change its arguments, and reads no other tensor that changes.
    """

    def __init__(self, work: Callable[..., tuple[Tensor, ...]]) -> None:
        self._work = work
        self._records: dict[tuple[Any, ...], _Record] = {}

    def __call__(self, *arguments: Tensor) -> tuple[Tensor, ...]:
        """What the function returns; on a GPU the next call overwrites it."""
        if arguments[0].device.type != "cuda":
            return self._work(*arguments)
        shapes = tuple((tensor.shape, tensor.dtype, tensor.device) for tensor in arguments)
        if shapes not in self._records:
            self._records[shapes] = self._record(arguments)
        record = self._records[shapes]
        for place, tensor in zip(record.inputs, arguments, strict=True):
            place.copy_(tensor)
        record.graph.replay()
        return record.outputs

    def _record(self, arguments: tuple[Tensor, ...]) -> _Record:
        inputs = tuple(tensor.clone(memory_format=torch.contiguous_format) for tensor in arguments)
        outputs: tuple[Tensor, ...] = ()

        def run() -> None:
            nonlocal outputs
            outputs = self._work(*inputs)

        graph = capture(run, inputs[0].device)
        return _Record(graph, inputs, outputs)
