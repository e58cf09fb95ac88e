"""Which kernel runs a layer: the fastest on this machine for the layer's shape, for few rows and for many."""

import functools
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from slimexp.kernel import store
from slimexp.kernel.base import Kernel, Packed
from slimexp.kernel.build import machine
from slimexp.kernel.cuda_graph import captured
from slimexp.kernel.dense import Dense, DenseBfloat16, DenseFloat32
from slimexp.kernel.int_mm import IntMM
from slimexp.kernel.scaled_mm import ScaledMM
from slimexp.kernel.vnni import Vnni
from slimexp.kernel.weight_only import WeightOnly4, WeightOnly8

# The first wins a tie.
BACKENDS: tuple[type[Kernel], ...] = (Vnni, IntMM, ScaledMM, WeightOnly4, WeightOnly8, DenseFloat32, DenseBfloat16)
FEW, MANY = 1, 128  # rows that are raced: a token decoded, a sequence read
_BETWEEN = 16  # rows from which a layer runs what is best for many
_MARGIN = 0.95  # a later backend must take less than this share of the time: below is noise
_NEAR, _HOPELESS = 2.0, 50.0  # times the best time: up to the one a backend may yet win, from the other it is stopped
_AGREE, _WITHIN = 3, 1.1  # a backend's least time is trusted once so many rounds came within this factor of it
_LEAST_ROUNDS, _MOST_ROUNDS = 7, 40
_WORTH = 1.25  # times faster that a second kernel for a layer must be, as it holds the weight again
_REPEATS = 4  # calls per round of a kernel that runs many rows
_IN_A_ROW = 32  # calls on a GPU between two looks at the clock
_LONGEST = 1000  # bytes of a result that is kept
_CACHE_BYTES, _MOST_COPIES, _MOST_ON_GPU = 64e6, 16, 64  # weights that no cache holds


class Winners(NamedTuple):
    """Names of the fastest backends.

    Attributes:
        few: For few rows.
        many: For many.
        converged: Whether the times agreed; else the machine was busy, and each process races anew.
    """

    few: str
    many: str
    converged: bool


class ByRows(nn.Module):
    """Two kernels for one layer, where few rows and many rows run fastest on different ones; both hold the weight."""

    weight = None  # as in Kernel

    def __init__(self, few: Kernel, many: Kernel) -> None:
        super().__init__()
        self.few, self.many = few, many
        many.live = many.nonzero = 0  # the same weights: counted once
        self.in_features, self.out_features = few.in_features, few.out_features

    def forward(self, x: Tensor) -> Tensor:
        kernel = self.few if x.numel() < _BETWEEN * x.shape[-1] else self.many
        y: Tensor = kernel(x)
        return y


def put(model: nn.Module, layers: Mapping[str, Packed], dtype: torch.dtype = torch.float32) -> None:
    """Replace the linear layers named in ``layers`` by kernels that run them where they are, in place.

    Args:
        model: Their model.
        layers: Name -> what is packed.
        dtype: Of what flows between the layers.
    """
    for name, packed in layers.items():
        model.set_submodule(name, fastest(packed, dtype))


def fastest(packed: Packed, dtype: torch.dtype = torch.float32) -> nn.Module:
    """The layer on the kernels that are fastest for its shape on its device; the first layer of a shape is raced."""
    winners = _winners((*_shape(packed), str(dtype)), packed, dtype)
    few, many = _named(winners.few), _named(winners.many)
    layer = few(packed) if few is many else ByRows(few(packed), many(packed))
    layer.converged = winners.converged  # type: ignore[assignment]
    return layer


def kernel_summary(model: nn.Module) -> str | None:
    """What runs in the layers that were packed, in words; ``None`` where there are none."""
    inside = {id(part) for module in model.modules() if isinstance(module, ByRows) for part in module.children()}
    counts: dict[str, int] = {}
    unsettled = 0
    for module in model.modules():
        if isinstance(module, ByRows):
            label = f"{module.few.label} below {_BETWEEN} rows and {module.many.label} from there"
        elif isinstance(module, Kernel) and id(module) not in inside:
            label = module.label
        else:
            continue
        counts[label] = counts.get(label, 0) + 1
        unsettled += not getattr(module, "converged", True)
    if not counts:
        return None
    (label, count), *others = sorted(counts.items(), key=lambda item: -item[1])
    rest = "".join(f"; {n} {name}" for name, n in others)
    if unsettled:
        rest += f"; raced on a busy machine, so {unsettled} may not be on their fastest"
    return f"{label} in {count} of {sum(counts.values())} quantized layers{rest}"


def race(
    packed: Packed, rows: int, dtype: torch.dtype = torch.float32, backends: Sequence[type[Kernel]] = BACKENDS
) -> dict[str, list[float]]:
    """Seconds that each backend takes for ``rows`` rows in interleaved rounds; for few, over weights no cache holds.

    Rounds go on until the times are ``converged``, or there were ``_MOST_ROUNDS``. Backends that refuse are left out;
    those far behind, as ones without vector instructions are, stop at once.
    """
    few = rows < _BETWEEN  # then reading the weights takes the time
    gpu = packed.numbers.is_cuda
    copies = _copies(packed.numbers.numel(), gpu) if few else 1
    repeats = -(-_IN_A_ROW // copies) if gpu else 1 if few else _REPEATS
    apart = [packed._replace(numbers=packed.numbers.clone()) for _ in range(copies)]  # some kernels keep them as is
    x = torch.randn(rows, packed.numbers.shape[1], generator=torch.Generator().manual_seed(0))
    x = x.to(packed.numbers.device, dtype)
    timer = _on_gpu if gpu else _on_cpu
    with torch.inference_mode():
        runners = {one.__name__: timer([one(each) for each in apart] * repeats, x) for one in _able(packed, backends)}
        taken: dict[str, list[float]] = {name: [] for name in runners}
        for turn in range(_MOST_ROUNDS + 1):
            for name, least in runners.items():
                seconds = least()
                if turn:  # the first warms up
                    taken[name].append(seconds)
            if turn:
                runners = {name: runners[name] for name in _within(_HOPELESS, taken) if name in runners}
            if turn >= _LEAST_ROUNDS and converged(taken):
                break
    return taken


def _copies(weights: int, gpu: bool) -> int:
    """Of a layer of so many ``weights`` that no cache holds: on a GPU, not even of a byte each."""
    least, most = (1, _MOST_ON_GPU) if gpu else (4, _MOST_COPIES)
    return max(1, min(most, int(_CACHE_BYTES / (least * weights))))


def _able(packed: Packed, backends: Sequence[type[Kernel]]) -> list[type[Kernel]]:
    return [backend for backend in backends if backend.refusal(packed, packed.numbers.device) is None]


def _on_cpu(layers: Sequence[Kernel], x: Tensor) -> Callable[[], float]:
    """Least seconds of a call; one by one, as a short call is seldom interrupted."""
    return lambda: min(_seconds(layer, x) for layer in layers)


def _seconds(layer: Kernel, x: Tensor) -> float:
    start = time.perf_counter()
    layer(x)
    return time.perf_counter() - start


def _on_gpu(layers: Sequence[Kernel], x: Tensor) -> Callable[[], float]:
    """Mean seconds of a call, all as one CUDA graph: without the time that Python takes to launch them."""
    graph = captured(lambda: [layer(x) for layer in layers], x.device)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def timed() -> float:
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3 / len(layers)

    return timed


def winner(seconds: Mapping[str, Sequence[float]]) -> str:
    """The first backend that no later one beats by more than noise.

    The least times are compared: a busy neighbour only ever adds to one.
    """
    names = list(seconds)
    chosen = names[0]
    for name in names[1:]:
        if min(seconds[name]) < _MARGIN * min(seconds[chosen]):
            chosen = name
    return chosen


def winners(few: Mapping[str, Sequence[float]], many: Mapping[str, Sequence[float]]) -> tuple[str, str]:
    """For few and for many rows: one for both where a second would gain little."""
    best = winner(few), winner(many)
    for name in best:
        if _does(name, few) and _does(name, many):
            return name, name
    return best


def _does(name: str, seconds: Mapping[str, Sequence[float]]) -> bool:
    """Whether it is near the best, and no slower than a floating-point product."""
    dense = (min(each) for other, each in seconds.items() if issubclass(_named(other), Dense))
    return min(seconds[name]) <= min(_WORTH * min(map(min, seconds.values())), *dense)


def converged(seconds: Mapping[str, Sequence[float]]) -> bool:
    """Whether the least times can be trusted: of all backends near the best several rounds came close to theirs."""
    return all(sorted(seconds[name])[:_AGREE][-1] <= _WITHIN * min(seconds[name]) for name in _within(_NEAR, seconds))


def _within(factor: float, seconds: Mapping[str, Sequence[float]]) -> list[str]:
    best = min(map(min, seconds.values()))
    return [name for name, each in seconds.items() if min(each) <= factor * best]


def _named(name: str) -> type[Kernel]:
    return next(backend for backend in BACKENDS if backend.__name__ == name)


def _shape(packed: Packed) -> tuple[object, ...]:
    activation = packed.activation if isinstance(packed.activation, str) else type(packed.activation).__name__
    return (
        *packed.numbers.shape,
        packed.scale.shape[1],
        packed.zero is None,
        packed.bits,
        activation,
        packed.bias is None,
        str(packed.numbers.dtype),
        torch.cuda.get_device_name(packed.numbers.device) if packed.numbers.is_cuda else "cpu",
    )


_raced: dict[tuple[object, ...], Winners] = {}


def _winners(shape: tuple[object, ...], packed: Packed, dtype: torch.dtype) -> Winners:
    """From this process, an earlier one, or a race."""
    if (known := _raced.get(shape)) is not None:
        return known
    backends = [backend.__name__ for backend in _able(packed, BACKENDS)]
    key = json.dumps([*machine(), _sources(), torch.get_num_threads(), *shape, *backends])
    name = f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"
    path = next((place / name for place in store.folders()), None)
    if (found := _kept(path, backends)) is None:
        few_s, many_s = race(packed, FEW, dtype), race(packed, MANY, dtype)
        found = Winners(*winners(few_s, many_s), converged=converged(few_s) and converged(many_s))
        if found.converged and path is not None:
            _write(path, json.dumps([found.few, found.many]))
    _raced[shape] = found
    return found


def _kept(path: Path | None, backends: Sequence[str]) -> Winners | None:
    """What an earlier race found; ``None`` where there was none, or its result is none of ``backends``."""
    if path is None:
        return None
    try:
        names = json.loads(store.read(path, most=_LONGEST))
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return None
    except (OSError, ValueError, RecursionError):
        names = None
    if isinstance(names, list) and len(names) == 2 and all(name in backends for name in names):
        return Winners(names[0], names[1], converged=True)
    store.say(f"{path} is no result of a race: its layers are raced anew")
    return None


@functools.cache
def _sources() -> str:
    """Digest of the kernels: a race of others says nothing of these."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _write(path: Path, text: str) -> None:
    """Whole or not at all; where the cache cannot be written each process races for itself."""
    with suppress(OSError):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, ignore_cleanup_errors=True) as aside:
            beside = Path(aside) / path.name
            beside.write_text(text)
            os.replace(beside, path)
