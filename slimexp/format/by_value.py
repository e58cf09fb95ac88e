"""Quantized layers in the graph of another library, found by what their weights are.

Weights lose their names while a graph is made, and some are transposed. What is found is bit for bit what the packed
integers stand for.
"""

import hashlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from slimexp.kernel.base import Packed


class Found(NamedTuple):
    """A layer whose weight was found.

    Attributes:
        name: Name of the layer.
        packed: Its integers.
        transposed: Whether the weight is [in, out].
    """

    name: str
    packed: Packed
    transposed: bool


class ByValue:
    """Layers by the values of their weights.

    Args:
        layers: Name -> packed weight.
    """

    def __init__(self, layers: Mapping[str, Packed]) -> None:
        self._of: dict[bytes, Found] = {}
        self._digests: dict[str, bytes] = {}
        self._found: set[bytes] = set()
        for name, packed in layers.items():
            weight = packed.weight().numpy()
            plain, turned = _digest(weight), _digest(weight.T)
            self._of[turned] = Found(name, packed, True)
            self._of[plain] = Found(name, packed, False)  # one that is its own transpose counts as it is
            self._digests[name] = plain

    def find(self, array: NDArray[Any]) -> Found | None:
        """The layer with this weight, or the last of several; ``None`` where there is none."""
        digest = _digest(array)
        if (found := self._of.get(digest)) is not None:
            self._found |= {digest, self._digests[found.name]}
        return found

    def check_all_found(self) -> None:
        """Refuse a graph without the weight of a layer.

        Raises:
            ValueError: There is one.
        """
        if lost := [name for name, digest in self._digests.items() if digest not in self._found]:
            raise ValueError(
                f"the graph holds no weight of the quantized layer '{lost[0]}': its integers would be lost"
            )


def _digest(array: NDArray[Any]) -> bytes:
    shape = f"{array.dtype}{array.shape}".encode()
    return hashlib.sha256(shape + np.ascontiguousarray(array).tobytes()).digest()
