"""ONNX, which ONNX Runtime runs: one graph of the whole model, packed weights as integers in it.

The graph reads ``input_ids`` and ``attention_mask`` [B, S] (and ``decoder_input_ids`` [B, T] of an encoder-decoder), of
any batch and length, and gives ``logits``. That of a causal language model also reads keys and values of P earlier
tokens, ``past_key_values.LAYER.key`` and ``.value`` [B, H, P, D], with ``attention_mask`` [B, P + S], and gives those
of all as ``present.LAYER.key`` and ``.value``; P is 0 at first. An encoder-decoder computes all anew for each token.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from slimexp.format.base import Artifact, Facts, Format, Running
from slimexp.format.by_value import ByValue
from slimexp.format.onnx_parts import DOMAIN, initializer, replace, take_place
from slimexp.format.onnx_rounded import EXACT, RoundedProducts
from slimexp.format.onnx_runtime import OnnxRuntime, keep_outputs
from slimexp.format.tracing import copy_beside, quiet, sample, sample_with_cache
from slimexp.host import extra
from slimexp.kernel.base import Packed
from slimexp.serialization.unpack import unpacked

if TYPE_CHECKING:
    import onnx_ir as ir

GRAPH = "model.onnx"
DATA = f"{GRAPH}.data"  # the weights, which may be more than the 2 GB of a graph's file
OPSET = 21  # the first with integers of 4 bits and scales of groups
WIDTHS = (4, 8)  # bits of the integers that it has
FLOAT32 = 1  # accuracy_level of MatMulNBits: inputs stay in float32
BLOCKS = (16, 32, 64, 128, 256)  # numbers with one scale that MatMulNBits has kernels for


class Onnx(Format):
    """A folder with ``model.onnx``, its weights, ``config.json`` and the tokenizer.

    A quantized layer is ``MatMulNBits``, an operator of ONNX Runtime that multiplies by the packed integers of the
    artifact. It is told to leave inputs in float32: ONNX Runtime puts one that rounds them to 8 bits in place of a
    standard ``DequantizeLinear`` before a ``MatMul``. What it does not take has a ``DequantizeLinear``: embeddings,
    and groups of a size that 16 does not divide.

    A layer that rounds its inputs is a product of integers (``onnx_rounded``), with steps as the artifact has them.

    Args:
        cache: Whether the graph of a causal language model reads and gives keys and values.
    """

    noise = 4.0

    def __init__(self, *, cache: bool) -> None:
        self.cache = cache

    def require(self) -> None:
        for module in ("onnx", "onnxscript", "onnxruntime", "transformers.exporters"):
            extra.require(module, extra="onnx", by="format=onnx")

    def refusal(self, model: Artifact) -> str | None:
        if model.content["cache_bits"] is not None:
            return "its keys and values are rounded, and those of the graph are not"
        if model.is_float8:
            return "its weights are float8, and only integers are written"
        if model.experts is not None:
            return model.experts
        if wrong := sorted(set(model.bits.values()) - set(WIDTHS)):
            return f"it has weights of {wrong[0]} bits, and ONNX has integers of 4 and 8"
        if model.rounds_activations and not all(map(_multiplies, model.schemes)):
            return (
                "the inputs of its layers are rounded, and ONNX Runtime multiplies two integers where weights have 8 "
                "bits and a scale for each row: quantize with bits=8 and "
                "group_size=null, or with activation_bits=null"
            )
        return None

    def write(self, model: Artifact, folder: Path) -> Facts:
        import onnx_ir as ir
        from transformers.exporters import OnnxConfig, OnnxExporter

        with quiet():
            config = OnnxConfig(dynamic=True, opset_version=OPSET)
            inputs = sample_with_cache(model) if self.cache and model.task == "causal_lm" else sample(model)
            program, _ = OnnxExporter().export_program(model.unrounded, inputs, config)
        layers_with_cache = keep_outputs(program)
        _tidy(program)
        if layers := unpacked(model.folder):
            _hold_integers(program, layers)
        ir.save(program, folder / GRAPH, external_data=DATA)
        copy_beside(model, folder)
        operators = Counter(node.op_type for node in program.graph.all_nodes())
        return {
            "opset": OPSET,
            "dynamic_shapes": True,
            "layers_with_cache": layers_with_cache,
            "operators": dict(operators.most_common()),
        }

    def load(self, model: Artifact, folder: Path) -> Running:
        # of products of integers alone: 1.32 fails at 8-bit embeddings where the entry has it give weights another sign
        return OnnxRuntime(folder / GRAPH, EXACT if model.rounds_activations else {})

    def as_run(self, model: Artifact, folder: Path) -> Running | None:
        return OnnxRuntime(folder / GRAPH, {}) if model.rounds_activations else None


def _tidy(program: "ir.Model") -> None:
    """Drop what no output needs, and what says from which line of Python a node came."""
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    RemoveUnusedNodesPass()(program)
    graph = program.graph
    parts: list[Any] = [program, graph, *graph.all_nodes(), *graph.inputs, *graph.initializers.values()]
    for part in parts:
        part.metadata_props.clear()
    for node in graph.all_nodes():
        for value in node.outputs:
            value.metadata_props.clear()


def _hold_integers(program: "ir.Model", layers: Mapping[str, Packed]) -> None:
    """Replace the float weights of quantized layers by their integers.

    Raises:
        ValueError: The graph has no such weight of a layer.
    """
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    by_value, rounded = ByValue(layers), RoundedProducts(program.graph)
    for value in list(program.graph.initializers.values()):
        if value.const_value is None or len(value.const_value.shape) != 2:
            continue
        if found := by_value.find(value.const_value.numpy()):
            if found.packed.activation is None:
                _replace(program.graph, value, found.name, found.packed, transposed=found.transposed)
            elif products := _products(value, found.transposed):
                rounded.multiply(products, f"{found.name}.weight", found.packed)
            else:
                raise ValueError(f"'{found.name}' rounds what it reads, and is no product in the graph")
    RemoveUnusedNodesPass()(program)
    program.opset_imports[DOMAIN] = 1
    by_value.check_all_found()


def _multiplies(scheme: dict[str, Any]) -> bool:
    """Whether the runtime multiplies integers by the weights of such layers, if their inputs are rounded."""
    weights = scheme["weights"]
    rounds = scheme.get("input_activations") is not None
    return not rounds or (weights["num_bits"] == 8 and weights["strategy"] in ("channel", "tensor"))


def _replace(graph: "ir.Graph", value: "ir.Value", name: str, packed: Packed, *, transposed: bool) -> None:
    """Put integers in place of the weight ``value`` [out, in], or [in, out] where it is transposed."""
    products, block = _products(value, transposed), _block(packed)
    if products is None or block is None:
        _dequantize(graph, value, f"{name}.weight.transposed" if transposed else f"{name}.weight", packed, transposed)
    else:
        _multiply(graph, products, f"{name}.weight", packed, block)


def _products(value: "ir.Value", transposed: bool) -> "list[ir.Node] | None":
    """The nodes that multiply by a weight; ``None`` where something else reads it, as that of an embedding."""
    products: list[ir.Node] = []
    for node, place in value.uses():
        more: list[ir.Node] | None = None
        if node.op_type == "Transpose":
            more = _products(node.outputs[0], not transposed)
        elif place == 1 and (
            (node.op_type == "MatMul" and transposed)
            or (node.op_type == "Gemm" and _is_plain(node) and bool(node.attributes.get_int("transB", 0)) != transposed)
        ):
            more = [node]
        if more is None:
            return None
        products += more
    return products


def _is_plain(node: "ir.Node") -> bool:
    """Whether a ``Gemm`` is ``x W + b``."""
    attributes = node.attributes
    factors = (attributes.get_float("alpha", 1.0), attributes.get_float("beta", 1.0))
    return factors == (1.0, 1.0) and not attributes.get_int("transA", 0)


def _block(packed: Packed) -> int | None:
    """Numbers of a block of ``MatMulNBits`` that takes the fewest bytes; ``None`` where no block fits into a group."""
    columns, groups = packed.numbers.shape[1], packed.scale.shape[1]
    fitting = [block for block in BLOCKS if groups == 1 or columns // groups % block == 0]
    return min(fitting, key=lambda block: math.ceil(columns / block) * (block * packed.bits + 32), default=None)


def _multiply(graph: "ir.Graph", products: "Sequence[ir.Node]", name: str, packed: Packed, block: int) -> None:
    """Put ``MatMulNBits`` in place of products: its integers have no sign, its scales are those of blocks of a row."""
    import onnx_ir as ir

    rows, columns = packed.numbers.shape
    blocks, middle = math.ceil(columns / block), 2 ** (packed.bits - 1)
    repeats = blocks if packed.scale.shape[1] == 1 else columns // packed.scale.shape[1] // block
    padded = torch.nn.functional.pad(packed.numbers.int(), (0, blocks * block - columns)) + middle
    scale = packed.scale.repeat_interleave(repeats, 1)
    inputs = [
        initializer(graph, f"{name}_quantized", _bytes(padded, packed.bits).reshape(rows, blocks, -1)),
        initializer(graph, f"{name}_scale", scale.numpy()),
        None,
    ]
    if packed.zero is not None:
        zero = packed.zero.int().repeat_interleave(repeats, 1) + middle
        inputs[2] = initializer(graph, f"{name}_zero_point", _bytes(zero, packed.bits))
    attributes = {"K": columns, "N": rows, "bits": packed.bits, "block_size": block, "accuracy_level": FLOAT32}
    for node in products:
        bias = [None, node.inputs[2]] if len(node.inputs) > 2 else []
        new = ir.node("MatMulNBits", [node.inputs[0], *inputs, *bias], attributes, domain=DOMAIN)
        replace(graph, node, [new])


def _bytes(numbers: torch.Tensor, bits: int) -> NDArray[np.uint8]:
    """Unsigned numbers [rows, columns] as bytes, two of 4 bits in each, the first one low."""
    array: NDArray[np.uint8] = numbers.numpy().astype(np.uint8)
    if bits == 8:
        return array
    array = np.pad(array, ((0, 0), (0, array.shape[1] % 2)))
    pairs: NDArray[np.uint8] = np.bitwise_or(array[:, ::2], np.left_shift(array[:, 1::2], np.uint8(4)))
    return pairs


def _dequantize(graph: "ir.Graph", value: "ir.Value", name: str, packed: Packed, transposed: bool) -> None:
    """Put a ``DequantizeLinear`` in place of a weight."""
    import ml_dtypes
    import onnx_ir as ir

    kind: Any = ml_dtypes.int4 if packed.bits == 4 else np.int8
    groups = packed.scale.shape[1]
    attributes = {"axis": int(transposed)}
    if groups > 1:
        attributes = {"axis": int(not transposed), "block_size": packed.numbers.shape[1] // groups}

    def grid(numbers: torch.Tensor) -> NDArray[Any]:
        array = numbers.numpy().T if transposed else numbers.numpy()
        return array if groups > 1 else array.reshape(-1)

    integers = packed.numbers.numpy().astype(kind)
    inputs = [
        initializer(graph, f"{name}_quantized", integers.T if transposed else integers),
        initializer(graph, f"{name}_scale", grid(packed.scale)),
    ]
    if packed.zero is not None:
        inputs.append(initializer(graph, f"{name}_zero_point", grid(packed.zero).astype(kind)))
    node = ir.node("DequantizeLinear", inputs, attributes)
    take_place(value, node)
    node.outputs[0].name = f"{name}_dequantized"
    graph.insert_before(graph[0], node)
    ir.convenience.replace_all_uses_with(value, node.outputs[0])
