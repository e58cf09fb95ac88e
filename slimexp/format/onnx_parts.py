"""Small steps on the graph of ONNX that every way to write a layer takes."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import onnx_ir as ir

DOMAIN = "com.microsoft"  # of the operators of ONNX Runtime


def initializer(graph: "ir.Graph", name: str, array: NDArray[Any]) -> "ir.Value":
    """A constant of the graph."""
    import onnx_ir as ir

    tensor = ir.tensor(np.ascontiguousarray(array).reshape(array.shape), name=name)
    value = ir.Value(name=name, const_value=tensor, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype))
    graph.register_initializer(value)
    return value


def take_place(value: "ir.Value", node: "ir.Node") -> None:
    """Give the output of ``node`` the name, shape and type of ``value``."""
    output = node.outputs[0]
    output.name, output.shape, output.type = value.name, value.shape, value.type


def replace(graph: "ir.Graph", node: "ir.Node", nodes: "Sequence[ir.Node]") -> None:
    """Put ``nodes`` in place of ``node``; the last one's output takes that of its."""
    import onnx_ir as ir

    take_place(node.outputs[0], nodes[-1])
    graph.insert_before(node, nodes)
    ir.convenience.replace_all_uses_with(node.outputs[0], nodes[-1].outputs[0], replace_graph_outputs=True)
    graph.remove(node, safe=True)
