"""The autotuner: each layer runs on the kernels that are fastest on this machine for its shape, few rows and many."""

import functools
import hashlib
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from slimexp.host.progress import counted
from slimexp.kernel import store
from slimexp.kernel.base import Kernel, Packed
from slimexp.kernel.build import machine
from slimexp.kernel.timing import BACKENDS, FEW, MANY, MANY_FROM, able, backend_named, choose, converged, time_backends

_LONGEST = 1000  # bytes of a cached choice


class Choice(NamedTuple):
    """Names of the fastest backends for layers of one shape.

    Attributes:
        few: Name of the backend for few rows.
        many: Name of the backend for many rows.
        converged: Whether the times agreed; else the machine was busy, and each process times them anew.
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
        kernel = self.few if x.numel() < MANY_FROM * x.shape[-1] else self.many
        y: Tensor = kernel(x)
        return y


def replace_layers(model: nn.Module, layers: Mapping[str, Packed], dtype: torch.dtype = torch.float32) -> None:
    """Replace the linear layers named in ``layers`` by the kernels that run them fastest, in place.

    Args:
        model: The model, on any device.
        layers: Name of the layer -> its packed weight, on the device that it will run on.
        dtype: Type of the activations between the layers.
    """
    for name, packed in counted(layers.items(), "kernel of layer"):
        model.set_submodule(name, fastest(packed, dtype))


def fastest(packed: Packed, dtype: torch.dtype = torch.float32) -> nn.Module:
    """The layer on the kernels that are fastest for its shape on its device; the first layer of a shape is timed.

    Args:
        packed: The layer's weight, on the device that it will run on.
        dtype: Type of the layer's input.
    """
    choice = _choice((*_shape(packed), str(dtype)), packed, dtype)
    few, many = backend_named(choice.few), backend_named(choice.many)
    layer = few(packed) if few is many else ByRows(few(packed), many(packed))
    layer.converged = choice.converged  # type: ignore[assignment]
    return layer


def kernel_summary(model: nn.Module) -> str | None:
    """The kernels of a model's packed layers in words, with their numbers of layers; ``None`` without such layers."""
    inside = {id(part) for module in model.modules() if isinstance(module, ByRows) for part in module.children()}
    counts: dict[str, int] = {}
    uncertain = 0
    for module in model.modules():
        if isinstance(module, ByRows):
            label = f"{module.few.label} below {MANY_FROM} rows and {module.many.label} from there"
        elif isinstance(module, Kernel) and id(module) not in inside:
            label = module.label
        else:
            continue
        counts[label] = counts.get(label, 0) + 1
        uncertain += not getattr(module, "converged", True)
    if not counts:
        return None
    (label, count), *others = sorted(counts.items(), key=lambda item: -item[1])
    rest = "".join(f"; {n} {name}" for name, n in others)
    if uncertain:
        rest += f"; timed on a busy machine, so {uncertain} may not be on their fastest"
    return f"{label} in {count} of {sum(counts.values())} quantized layers{rest}"


def _shape(packed: Packed) -> tuple[object, ...]:
    """All of a layer that its speed depends on."""
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


_choices: dict[tuple[object, ...], Choice] = {}  # by shape, of this process


def _choice(shape: tuple[object, ...], packed: Packed, dtype: torch.dtype) -> Choice:
    """The choice of this process for a shape, else the one in the cache, else a new one by time."""
    if (choice := _choices.get(shape)) is not None:
        return choice
    backends = [backend.__name__ for backend in able(packed, BACKENDS)]
    key = json.dumps([*machine(), _sources(), torch.get_num_threads(), *shape, *backends])
    name = f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"
    path = next((place / name for place in store.folders()), None)
    if (choice := _cached(path, backends)) is None:
        few_s, many_s = time_backends(packed, FEW, dtype), time_backends(packed, MANY, dtype)
        choice = Choice(*choose(few_s, many_s), converged=converged(few_s) and converged(many_s))
        if choice.converged and path is not None:
            _write(path, json.dumps([choice.few, choice.many]))
    _choices[shape] = choice
    return choice


def _cached(path: Path | None, backends: Sequence[str]) -> Choice | None:
    """The choice that an earlier process cached; ``None`` where there is none, or it names none of ``backends``."""
    if path is None:
        return None
    try:
        names = json.loads(store.read(path, most=_LONGEST))
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return None
    except (OSError, ValueError, RecursionError):
        names = None
    if isinstance(names, list) and len(names) == 2 and all(name in backends for name in names):
        return Choice(names[0], names[1], converged=True)
    store.print_once(f"{path} is no result of autotuning: its layers are timed anew")
    return None


@functools.cache
def _sources() -> str:
    """Digest of the kernels' code: times of other code say nothing of it."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _write(path: Path, text: str) -> None:
    """Write a cache file whole or not at all; where the cache is not writable, each process times for itself."""
    with suppress(OSError):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, ignore_cleanup_errors=True) as aside:
            beside = Path(aside) / path.name
            beside.write_text(text)
            os.replace(beside, path)
