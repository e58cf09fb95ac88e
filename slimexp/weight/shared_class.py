"""Classes of parametrized layers: torch gives each layer one of its own, which the compiler and torch's cache go by."""

from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager, nullcontext

from torch import nn
from torch.nn.utils import parametrize

_sharing: set[nn.Module] = set()  # layers that share a class now


@contextmanager
def computed_once() -> Iterator[None]:
    """Weights under masks and quantizers are computed once within the context; every time while blocks are compiled.

    Torch's cache goes by the layer that a parametrized class was made for, and layers of compiled blocks share a class:
    all would get the weight of one.
    """
    with nullcontext() if _sharing else parametrize.cached():
        yield


@contextmanager
def classes_shared(blocks: Sequence[nn.Module]) -> Iterator[None]:
    """Layers that are parametrized alike are of one class within the context.

    Torch gives each parametrized layer a class of its own, whose only content are properties that compute its tensors.
    To the compiler, layers of two classes have nothing in common.
    """
    first: dict[Hashable, type] = {}
    own: dict[nn.Module, type] = {}
    for module in (module for block in blocks for module in block.modules()):
        kind = type(module)
        by_torch = kind.__name__ == f"Parametrized{kind.__bases__[0].__name__}"
        if parametrize.is_parametrized(module) and by_torch and module not in _sharing:
            alike = (kind.__bases__, *sorted(module.parametrizations))  # type: ignore[arg-type]
            own[module] = kind
            _sharing.add(module)
            module.__class__ = first.setdefault(alike, kind)
    try:
        yield
    finally:
        for module, kind in own.items():
            module.__class__ = kind
            _sharing.discard(module)
