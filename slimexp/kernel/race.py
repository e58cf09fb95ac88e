"""Which kernel runs a layer: the fastest on this machine for the layer's shape, for few rows and for many."""

import hashlib
import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from slimexp.kernel.base import Kernel, Packed
from slimexp.kernel.build import machine
from slimexp.kernel.dense import DenseBfloat16, DenseFloat32
from slimexp.kernel.vnni import Vnni

BACKENDS: tuple[type[Kernel], ...] = (Vnni, DenseFloat32, DenseBfloat16)  # the first wins a tie
FEW, MANY = 1, 128  # rows that are raced: a token decoded, a sequence read
_BETWEEN = 16  # rows from which a layer runs what is best for many
_MARGIN = 0.95  # a later backend must take less than this share of the time: below is noise
_MOST = 0.8  # share of the rounds in which it must
_ROUNDS = 11
_CACHE_BYTES, _MOST_COPIES = 64e6, 16  # float32 weights that no cache holds


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


def put(model: nn.Module, layers: Mapping[str, Packed]) -> None:
    """Replace the linear layers named in ``layers`` by kernels that run them, in place."""
    for name, packed in layers.items():
        model.set_submodule(name, fastest(packed))


def fastest(packed: Packed) -> nn.Module:
    """The layer on the kernels that are fastest for its shape on this CPU; the first layer of a shape is raced."""
    few, many = (_named(name) for name in _winners(_shape(packed), packed))
    return few(packed) if few is many else ByRows(few(packed), many(packed))


def told(model: nn.Module) -> str | None:
    """What runs in the layers that were packed, in words; ``None`` where there are none."""
    inside = {id(part) for module in model.modules() if isinstance(module, ByRows) for part in module.children()}
    counts: dict[str, int] = {}
    for module in model.modules():
        if isinstance(module, ByRows):
            label = f"{module.few.label} below {_BETWEEN} rows and {module.many.label} from there"
        elif isinstance(module, Kernel) and id(module) not in inside:
            label = module.label
        else:
            continue
        counts[label] = counts.get(label, 0) + 1
    if not counts:
        return None
    (label, count), *others = sorted(counts.items(), key=lambda item: -item[1])
    rest = "".join(f"; {n} {name}" for name, n in others)
    return f"{label} in {count} of {sum(counts.values())} quantized layers{rest}"


def race(packed: Packed, rows: int, backends: Sequence[type[Kernel]] = BACKENDS) -> dict[str, list[float]]:
    """Seconds that each backend takes for ``rows`` rows, in interleaved rounds, over weights no cache holds.

    Backends that refuse are left out.
    """
    copies = max(1, min(_MOST_COPIES, int(_CACHE_BYTES / (4 * packed.integers.numel())))) if rows < _BETWEEN else 1
    able = [backend for backend in backends if backend.refusal(packed, torch.device("cpu")) is None]
    runners = {backend.__name__: [backend(packed) for _ in range(copies)] for backend in able}
    x = torch.randn(rows, packed.integers.shape[1], generator=torch.Generator().manual_seed(0))
    taken: dict[str, list[float]] = {name: [] for name in runners}
    with torch.inference_mode():
        for turn in range(_ROUNDS + 1):
            for name, layers in runners.items():
                start = time.perf_counter()
                for layer in layers:
                    layer(x)
                if turn:  # the first warms up
                    taken[name].append((time.perf_counter() - start) / copies)
    return taken


def winner(seconds: Mapping[str, Sequence[float]]) -> str:
    """The first backend that no later one beats by more than noise, in most rounds.

    Rounds are compared one by one: what a busy neighbour does to some of them decides nothing.
    """
    names = list(seconds)
    chosen = names[0]
    for name in names[1:]:
        faster = [a < _MARGIN * b for a, b in zip(seconds[name], seconds[chosen], strict=True)]
        if sum(faster) >= _MOST * len(faster):
            chosen = name
    return chosen


def _named(name: str) -> type[Kernel]:
    return next(backend for backend in BACKENDS if backend.__name__ == name)


def _shape(packed: Packed) -> tuple[object, ...]:
    activation = packed.activation if isinstance(packed.activation, str) else type(packed.activation).__name__
    return (*packed.integers.shape, packed.scale.shape[1], packed.bits, activation, packed.bias is not None)


_raced: dict[tuple[object, ...], tuple[str, str]] = {}


def _winners(shape: tuple[object, ...], packed: Packed) -> tuple[str, str]:
    """Names of the backends for few and for many rows, from this process, an earlier one, or a race."""
    if (known := _raced.get(shape)) is not None:
        return known
    path = (
        _folder()
        / f"{hashlib.sha256(json.dumps([*machine(), torch.get_num_threads(), *shape]).encode()).hexdigest()[:16]}.json"
    )
    found: tuple[str, str]
    try:
        few, many = json.loads(path.read_text())
        found = few, many
    except (OSError, ValueError):
        found = winner(race(packed, FEW)), winner(race(packed, MANY))
        _write(path, json.dumps(found))
    _raced[shape] = found
    return found


def _folder() -> Path:
    """Where results of races are kept: ``$SLIMEXP_CACHE``, else the user's cache folder."""
    if own := os.environ.get("SLIMEXP_CACHE"):
        return Path(own) / "kernel"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "slimexp" / "kernel"


def _write(path: Path, text: str) -> None:
    """Whole or not at all; where the cache cannot be written each process races for itself."""
    beside = path.with_suffix(f".{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.write_text(text)
        os.replace(beside, path)
    except OSError:
        return
