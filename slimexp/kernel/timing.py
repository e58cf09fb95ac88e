"""Seconds that each backend takes for a layer on this machine, and which backend they speak for."""

import time
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from slimexp.kernel.base import Kernel, Packed
from slimexp.kernel.cuda_graph import capture
from slimexp.kernel.dense import Dense, DenseBfloat16, DenseFloat32
from slimexp.kernel.int_mm import IntMM
from slimexp.kernel.scaled_mm import ScaledMM
from slimexp.kernel.vnni import Vnni
from slimexp.kernel.weight_only import WeightOnly4, WeightOnly8

# The first wins a tie.
BACKENDS: tuple[type[Kernel], ...] = (Vnni, IntMM, ScaledMM, WeightOnly4, WeightOnly8, DenseFloat32, DenseBfloat16)
FEW, MANY = 1, 128  # rows that are timed: a token decoded, a sequence read
MANY_FROM = 16  # rows from which a layer runs what is best for many
_MARGIN = 0.95  # a later backend must take less than this share of the time: below is noise
_CONTENDER, _HOPELESS = 2.0, 50.0  # times the best time: up to the one a backend may yet win, from the other it stops
_AGREEING, _TOLERANCE = 3, 1.1  # a least time is reliable once so many rounds came within this factor of it
_LEAST_ROUNDS, _MOST_ROUNDS = 7, 40
_WORTHWHILE = 1.25  # times faster that a second kernel for a layer must be, as it holds the weight again
_REPEATS = 4  # calls per round of a kernel that runs many rows
_IN_A_ROW = 32  # calls on a GPU between two looks at the clock
_CACHE_BYTES, _MOST_COPIES, _MOST_ON_GPU = 64e6, 16, 64  # weights that no cache holds


def time_backends(
    packed: Packed, rows: int, dtype: torch.dtype = torch.float32, backends: Sequence[type[Kernel]] = BACKENDS
) -> dict[str, list[float]]:
    """Time a layer on several backends in interleaved rounds, which load by other processes disturbs alike.

    Rounds go on until the times have ``converged``, at most ``_MOST_ROUNDS``. Backends that refuse the layer are left
    out; those far behind, as ones without vector instructions are, stop after a round. Of few rows the time is that of
    reading the weights, so copies of the layer take turns, more than the processor's cache holds.

    Args:
        packed: The layer.
        rows: Number of rows of the random input.
        dtype: Type of the input.
        backends: Candidates; the first wins a tie.

    Returns:
        Name of the backend -> seconds per call, one of each round.
    """
    few = rows < MANY_FROM  # then reading the weights takes the time
    gpu = packed.numbers.is_cuda
    copies = _copies(packed.numbers.numel(), gpu) if few else 1
    repeats = -(-_IN_A_ROW // copies) if gpu else 1 if few else _REPEATS
    apart = [packed._replace(numbers=packed.numbers.clone()) for _ in range(copies)]  # some kernels keep them as is
    x = torch.randn(rows, packed.numbers.shape[1], generator=torch.Generator().manual_seed(0))
    x = x.to(packed.numbers.device, dtype)
    timer = _on_gpu if gpu else _on_cpu
    with torch.inference_mode():
        runners = {
            backend.__name__: timer([backend(each) for each in apart] * repeats, x)
            for backend in able(packed, backends)
        }
        times: dict[str, list[float]] = {name: [] for name in runners}
        for turn in range(_MOST_ROUNDS + 1):
            for name, least in runners.items():
                seconds = least()
                if turn:  # the first warms up
                    times[name].append(seconds)
            if turn:
                runners = {name: runners[name] for name in _near_best(_HOPELESS, times) if name in runners}
            if turn >= _LEAST_ROUNDS and converged(times):
                break
    return times


def _copies(weights: int, gpu: bool) -> int:
    """Number of copies of a layer of ``weights`` weights that no cache holds all of, at 4 bytes a weight (GPU: 1)."""
    least, most = (1, _MOST_ON_GPU) if gpu else (4, _MOST_COPIES)
    return max(1, min(most, int(_CACHE_BYTES / (least * weights))))


def able(packed: Packed, backends: Sequence[type[Kernel]]) -> list[type[Kernel]]:
    """The backends that run ``packed`` on its device, in order."""
    return [backend for backend in backends if backend.refusal(packed, packed.numbers.device) is None]


def _on_cpu(layers: Sequence[Kernel], x: Tensor) -> Callable[[], float]:
    """A timer of the least seconds of a call; calls are timed one by one, as a short one is seldom interrupted."""
    return lambda: min(_seconds(layer, x) for layer in layers)


def _seconds(layer: Kernel, x: Tensor) -> float:
    start = time.perf_counter()
    layer(x)
    return time.perf_counter() - start


def _on_gpu(layers: Sequence[Kernel], x: Tensor) -> Callable[[], float]:
    """A timer of the mean seconds of a call, all as one CUDA graph: without the time that Python takes to launch."""
    graph = capture(lambda: [layer(x) for layer in layers], x.device)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def timed() -> float:
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3 / len(layers)

    return timed


def fastest_backend(seconds: Mapping[str, Sequence[float]]) -> str:
    """The first backend that no later one beats by more than noise.

    The least times are compared: load by other processes only ever adds to one.

    Args:
        seconds: Name of the backend -> its times.
    """
    names = list(seconds)
    best = names[0]
    for name in names[1:]:
        if min(seconds[name]) < _MARGIN * min(seconds[best]):
            best = name
    return best


def choose(few: Mapping[str, Sequence[float]], many: Mapping[str, Sequence[float]]) -> tuple[str, str]:
    """Names of the backends for few and for many rows: one for both where a second would gain little.

    Args:
        few: Times by backend for few rows.
        many: Times by backend for many rows.
    """
    best = fastest_backend(few), fastest_backend(many)
    for name in best:
        if _suffices(name, few) and _suffices(name, many):
            return name, name
    return best


def _suffices(name: str, seconds: Mapping[str, Sequence[float]]) -> bool:
    """Whether backend ``name`` is near the best, and no slower than a floating-point product."""
    dense = (min(each) for other, each in seconds.items() if issubclass(backend_named(other), Dense))
    return min(seconds[name]) <= min(_WORTHWHILE * min(map(min, seconds.values())), *dense)


def converged(seconds: Mapping[str, Sequence[float]]) -> bool:
    """Whether the least times are reliable: of every backend near the best, several rounds came close to its least.

    Args:
        seconds: Name of the backend -> its times.
    """
    contenders = (sorted(seconds[name]) for name in _near_best(_CONTENDER, seconds))
    return all(times[:_AGREEING][-1] <= _TOLERANCE * times[0] for times in contenders)


def _near_best(factor: float, seconds: Mapping[str, Sequence[float]]) -> list[str]:
    """Backends whose least time is at most ``factor`` times the best."""
    best = min(map(min, seconds.values()))
    return [name for name, each in seconds.items() if min(each) <= factor * best]


def backend_named(name: str) -> type[Kernel]:
    """The backend whose class is called ``name``."""
    return next(backend for backend in BACKENDS if backend.__name__ == name)
