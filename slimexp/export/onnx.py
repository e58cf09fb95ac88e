"""ONNX, which ONNX Runtime runs: one graph of the whole model, packed weights as integers in it.

The graph reads ``input_ids`` and ``attention_mask`` [B, S] (and ``decoder_input_ids`` [B, T] of an encoder-decoder), of
any batch and length, and gives ``logits``. It has no cache: a decoder computes all tokens anew for each that it writes.
"""

import hashlib
import io
import logging
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from slimexp.export.base import Artifact, Format, Ids, Logits, Running
from slimexp.file.bounded import read_object
from slimexp.format.unpack import unpacked
from slimexp.host import extra
from slimexp.kernel.base import Packed

if TYPE_CHECKING:
    import onnx_ir as ir

GRAPH = "model.onnx"
DATA = f"{GRAPH}.data"  # the weights, which may be more than the 2 GB of a graph's file
OPSET = 21  # the first with integers of 4 bits and scales of groups
WIDTHS = (4, 8)  # bits of the integers that it has
WEIGHTS = (".safetensors", ".safetensors.index.json")


class Onnx(Format):
    """A folder with ``model.onnx``, its weights, ``config.json`` and the tokenizer.

    A quantized layer is ``MatMul(x, DequantizeLinear(integers, scale))``: the very numbers of the artifact.
    """

    def require(self) -> None:
        for module in ("onnx", "onnxscript", "onnxruntime", "transformers.exporters"):
            extra.require(module, extra="onnx", by="format=onnx")

    def refusal(self, model: Artifact) -> str | None:
        if model.rounds_activations:
            return (
                "the inputs of its layers are rounded to integers, a scale for each token, and ONNX Runtime has one "
                "for all of them: take format=compressed_tensors, or quantize with activation_bits=null"
            )
        if model.content["cache_bits"] is not None:
            return "its keys and values are rounded, and the graph has no cache: take format=compressed_tensors"
        if _is_float8(model.folder):
            return "its weights are float8, and only integers are written: take format=compressed_tensors"
        if wrong := sorted(set(model.bits.values()) - set(WIDTHS)):
            return (
                f"it has weights of {wrong[0]} bits, and ONNX has integers of 4 and 8: take format=compressed_tensors"
            )
        return None

    def write(self, model: Artifact, folder: Path) -> None:
        import onnx_ir as ir
        from transformers.exporters import OnnxConfig, OnnxExporter

        with _quiet():
            config = OnnxConfig(dynamic=True, opset_version=OPSET)
            program, _ = OnnxExporter().export_program(model.family.model, _sample(model), config)
        _keep_logits(program)
        _hold_integers(program.graph, unpacked(model.folder))
        ir.save(program, folder / GRAPH, external_data=DATA)
        for name in model.content["files"]:
            if not name.endswith(WEIGHTS):
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(model.folder / name, folder / name)

    def load(self, model: Artifact, folder: Path) -> Running:
        return OnnxRuntime(folder / GRAPH)


class OnnxRuntime(Running):
    """A graph that ONNX Runtime runs on the CPU.

    Args:
        path: Its file.
    """

    def __init__(self, path: Path) -> None:
        import onnxruntime

        self.session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def logits(self, source: Ids, target: Ids) -> Logits:
        inputs = {"input_ids": np.array([source]), "attention_mask": np.ones((1, len(source)), np.int64)}
        if target:
            inputs["decoder_input_ids"] = np.array([target])
        array: Logits = self.session.run(["logits"], inputs)[0][0]
        return array


def _is_float8(folder: Path) -> bool:
    stored = read_object(folder / "config.json").get("quantization_config") or {}
    return any(group["weights"]["type"] == "float" for group in stored.get("config_groups", {}).values())


def _sample(model: Artifact) -> dict[str, Any]:
    """Inputs to trace with: neither a batch of one nor a length of one, which would become fixed."""
    ids = torch.ones(2, min(7, model.family.max_length), dtype=torch.long)
    inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if model.task == "seq2seq":
        inputs["decoder_input_ids"] = ids[:, :-1]
    return inputs if model.task == "classification" else inputs | {"use_cache": False}


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the tracer says of its own progress and of libraries that the model does not use."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def _keep_logits(program: "ir.Model") -> None:
    """Drop all other outputs (keys, values and hidden states), and what says from which line of Python a node came."""
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    graph = program.graph
    graph.outputs[:] = [value for value in graph.outputs if value.name == "logits"]
    RemoveUnusedNodesPass()(program)
    for part in (program, graph, *graph.all_nodes(), *graph.inputs, *graph.initializers.values()):
        part.metadata_props.clear()
    for node in graph.all_nodes():
        for value in node.outputs:
            value.metadata_props.clear()


def _hold_integers(graph: "ir.Graph", layers: Mapping[str, Packed]) -> None:
    """Replace the float weights of quantized layers by their integers and a ``DequantizeLinear``.

    Weights lose their names while a graph is optimized, and many are transposed. They are found by their values: what
    is replaced is bit for bit what the integers stand for.

    Raises:
        ValueError: The graph has no such weight of a layer.
    """
    of: dict[bytes, tuple[str, bool]] = {}
    for name, packed in layers.items():
        weight = _dequantized(packed)
        for transposed in (True, False):  # one that is its own transpose counts as it is
            of[_digest(weight.T if transposed else weight)] = (name, transposed)
    found = set()
    for value in list(graph.initializers.values()):
        if value.const_value is None or len(value.const_value.shape) != 2:
            continue
        digest = _digest(value.const_value.numpy())
        if digest in of:
            name, transposed = of[digest]
            _replace(graph, value, name, layers[name], transposed=transposed)
            found.add(digest)
    kept = {of[digest][0] for digest in found}
    held = {_digest(_dequantized(layers[name])) for name in kept}
    for name, packed in layers.items():
        if name not in kept and _digest(_dequantized(packed)) not in held:  # else it has the values of another
            raise ValueError(f"the graph holds no weight of the quantized layer '{name}': its integers would be lost")


def _dequantized(packed: Packed) -> NDArray[np.float32]:
    """The weight [out, in] as PyTorch computes it."""
    groups = packed.scale.shape[1]
    numbers = packed.numbers.float().unflatten(1, (groups, -1))
    if packed.zero is not None:
        numbers = numbers - packed.zero.float().unsqueeze(-1)
    weight: NDArray[np.float32] = (numbers * packed.scale.unsqueeze(-1)).flatten(1).numpy()
    return weight


def _digest(array: NDArray[Any]) -> bytes:
    shape = f"{array.dtype}{array.shape}".encode()
    return hashlib.sha256(shape + np.ascontiguousarray(array).tobytes()).digest()


def _replace(graph: "ir.Graph", value: "ir.Value", name: str, packed: Packed, *, transposed: bool) -> None:
    """Put integers in place of the weight ``value`` [out, in], or [in, out] where it is transposed."""
    import ml_dtypes
    import onnx_ir as ir

    kind: Any = ml_dtypes.int4 if packed.bits == 4 else np.int8
    name = f"{name}.weight.transposed" if transposed else f"{name}.weight"
    rows, groups = packed.scale.shape
    axis = int(transposed)
    attributes = {"axis": axis}
    if groups > 1:
        attributes = {"axis": 1 - axis, "block_size": packed.numbers.shape[1] // groups}

    def tensor(suffix: str, numbers: torch.Tensor, kind: Any) -> ir.Value:
        array = numbers.numpy().astype(kind)
        array = np.ascontiguousarray(array.T if transposed else array)
        if suffix and groups == 1:
            array = array.reshape(rows)
        held = ir.Value(name=f"{name}{suffix}", const_value=ir.tensor(array, name=f"{name}{suffix}"))
        held.shape, held.dtype = held.const_value.shape, held.const_value.dtype
        graph.register_initializer(held)
        return held

    inputs = [tensor("", packed.numbers, kind), tensor("_scale", packed.scale, np.float32)]
    if packed.zero is not None:
        inputs.append(tensor("_zero_point", packed.zero, kind))
    node = ir.node("DequantizeLinear", inputs, attributes)
    output = node.outputs[0]
    output.name, output.shape, output.dtype = f"{name}_dequantized", value.shape, value.dtype
    graph.insert_before(graph[0], node)
    ir.convenience.replace_all_uses_with(value, output)
    del graph.initializers[value.name]
