"""Layers whose inputs are rounded to integers of 8 bits, in the graph of ONNX: products of integers.

Inputs are rounded as the artifact says it, a step for each token or a fixed one, and multiplied by ONNX Runtime's
``MatMulIntegerToFloat``. They are integers without a sign (their zero is 128) and weights have one: that is the pair
of types for which it uses VNNI. On x86 without VNNI it adds two such products in 16 bits, which may be too few:
``EXACT`` has it avoid that where it must.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from slimexp.format.onnx_parts import DOMAIN, initializer, replace
from slimexp.kernel.base import Packed

if TYPE_CHECKING:
    import onnx_ir as ir

EXACT = {"session.x64quantprecision": "1"}  # entries of a session's configuration
_ZERO = 128  # of inputs
_HALF = 127.5  # steps from the middle of 256 integers to an end
_LEAST = float(np.finfo(np.float32).tiny)  # step of a token of zeros


class RoundedProducts:
    """Puts products of integers in place of those of floats; layers that read the same round it once.

    Args:
        graph: The graph.
    """

    def __init__(self, graph: "ir.Graph") -> None:
        self.graph = graph
        self._rounded: dict[tuple[ir.Value, str | float], tuple[ir.Value, ir.Value]] = {}

    def multiply(self, products: "Sequence[ir.Node]", name: str, packed: Packed) -> None:
        """Replace the products of a layer.

        Args:
            products: Nodes that multiply by its weight.
            name: Of its weight.
            packed: Its weight, of 8 bits with a scale for each row.
        """
        import onnx_ir as ir

        assert packed.activation is not None and packed.scale.shape[1] == 1
        zero = np.zeros(len(packed.numbers), np.int8) if packed.zero is None else packed.zero.numpy().reshape(-1)
        weight = initializer(self.graph, f"{name}_quantized", packed.numbers.numpy().T)
        scale = initializer(self.graph, f"{name}_scale", packed.scale.numpy().reshape(-1))
        beside = initializer(self.graph, f"{name}_zero_point", zero if zero.any() else np.array(0, np.int8))
        per_token = packed.activation == "token"
        for node in products:
            rounded, step = self._inputs(node, packed.activation)
            one = self._constant("one", np.array(1, np.float32)) if per_token else step
            middle = self._constant("middle", np.array(_ZERO, np.uint8))
            nodes = [ir.node("MatMulIntegerToFloat", [rounded, weight, one, scale, middle, beside], domain=DOMAIN)]
            if per_token:
                nodes.append(ir.node("Mul", [nodes[-1].outputs[0], step]))
            if len(node.inputs) > 2:
                nodes.append(ir.node("Add", [nodes[-1].outputs[0], node.inputs[2]]))
            replace(self.graph, node, nodes)

    def _inputs(self, node: "ir.Node", activation: str | float) -> "tuple[ir.Value, ir.Value]":
        """What a product reads as integers, and their steps [..., 1] or one for all."""
        import onnx_ir as ir

        x = node.inputs[0]
        assert x is not None
        if (key := (x, activation)) in self._rounded:
            return self._rounded[key]
        middle = self._constant("middle", np.array(_ZERO, np.uint8))
        nodes = []
        if activation == "token":
            magnitude = ir.node("Abs", [x])
            axes = self._constant("last_axis", np.array([-1], np.int64))
            largest = ir.node("ReduceMax", [magnitude.outputs[0], axes], {"keepdims": 1})
            half = self._constant("half", np.array(_HALF, np.float32))
            full = ir.node("Div", [largest.outputs[0], half])
            positive = ir.node("Max", [full.outputs[0], self._constant("least", np.array(_LEAST, np.float32))])
            steps = ir.node("Div", [x, positive.outputs[0]])
            one = self._constant("one", np.array(1, np.float32))
            rounded = ir.node("QuantizeLinear", [steps.outputs[0], one, middle])
            nodes, step = [magnitude, largest, full, positive, steps, rounded], positive.outputs[0]
        else:
            step = initializer(self.graph, f"{x.name}_step_{activation}", np.array(activation, np.float32))
            rounded = ir.node("QuantizeLinear", [x, step, middle])
            nodes = [rounded]
        producer = x.producer()
        if producer is None:
            self.graph.insert_before(self.graph[0], nodes)
        else:
            self.graph.insert_after(producer, nodes)
        self._rounded[key] = rounded.outputs[0], step
        return self._rounded[key]

    def _constant(self, name: str, array: NDArray[Any]) -> "ir.Value":
        name = f"rounding_{name}"
        if name in self.graph.initializers:
            return self.graph.initializers[name]
        return initializer(self.graph, name, array)
