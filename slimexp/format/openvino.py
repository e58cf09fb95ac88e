"""OpenVINO: a graph of the whole model for Intel's runtime, packed weights as integers in it.

The graph reads ``input_ids`` and ``attention_mask`` [B, S] (and ``decoder_input_ids`` [B, T] of an encoder-decoder), of
any batch and length, and gives ``logits``. That of a causal language model keeps keys and values as state, as OpenVINO
GenAI wants it: each call reads on from the last, ``attention_mask`` is of all tokens, and ``beam_idx`` [B] says which
row goes on in which.
"""

import sys
from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from slimexp.format.base import Artifact, Facts, Format, Ids, Logits, Running
from slimexp.format.by_value import ByValue
from slimexp.format.tracing import copy_beside, quiet, sample, sample_with_cache
from slimexp.host import extra
from slimexp.kernel.base import Packed
from slimexp.model.serving import stored_type
from slimexp.serialization.unpack import unpacked

if TYPE_CHECKING:
    import openvino

GRAPH = "openvino_model.xml"
_FLOAT32 = {  # what the CPU would round by itself
    "INFERENCE_PRECISION_HINT": "f32",
    "KV_CACHE_PRECISION": "f32",
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
}


class Openvino(Format):
    """A folder with ``openvino_model.xml``, its weights (``.bin``), ``config.json`` and the tokenizer.

    Weights of up to 4 and up to 8 bits are integers of 4 and 8 in the graph, without a sign where they have zero
    points, in the form in which the runtime multiplies them without making floats of them first.

    What layers read is not rounded in the graph. On a CPU with VNNI or AMX the runtime rounds it itself, by default in
    groups of 32 that have a step each, and multiplies integers: finer than an artifact that has one for a token. On
    others it multiplies floats.
    """

    noise = 4.0

    def require(self) -> None:
        # OpenVINO would report each conversion to its makers, by processes that it forks off this one.
        sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
        for module in ("openvino", "transformers.exporters"):
            extra.require(module, extra="openvino", by="format=openvino")

    def refusal(self, model: Artifact) -> str | None:
        if model.content["cache_bits"] is not None:
            return "its keys and values are rounded, in other steps than those of the runtime"
        if model.is_float8:
            return "its weights are float8, and only integers are written"
        if model.experts is not None:
            return model.experts
        return None

    def write(self, model: Artifact, folder: Path) -> Facts:
        import openvino
        from transformers.exporters import OpenVINOConfig, OpenVINOExporter

        with quiet():
            config = OpenVINOConfig(dynamic=True)
            inputs = sample_with_cache(model) if model.task == "causal_lm" else sample(model)
            graph, _ = OpenVINOExporter().export_program(model.unrounded, inputs, config)
        _keep_logits(graph)
        by_value = ByValue(unpacked(model.folder))
        floats = stored_type(model.folder)
        for node in [node for node in graph.get_ops() if node.get_type_name() == "Constant"]:
            if len(node.get_output_shape(0)) == 2 and node.get_element_type() == openvino.Type.f32:
                _shorten(node, by_value, floats)
        by_value.check_all_found()
        openvino.save_model(graph, folder / GRAPH, compress_to_fp16=False)
        copy_beside(model, folder)
        operators = Counter(node.get_type_name() for node in graph.get_ops())
        integers = Counter(
            node.get_element_type().get_type_name() for node in graph.get_ops() if node.get_type_name() == "Constant"
        )
        return {
            "dynamic_shapes": True,
            "keeps_state": model.task == "causal_lm",
            "constants": dict(integers.most_common()),
            "operators": dict(operators.most_common()),
        }

    def load(self, model: Artifact, folder: Path) -> Running:
        return Runtime(folder / GRAPH, _FLOAT32)

    def as_run(self, model: Artifact, folder: Path) -> Running | None:
        return Runtime(folder / GRAPH, {})


class Runtime(Running):
    """A graph that OpenVINO runs on the CPU.

    Args:
        path: Its file.
        options: Properties of the runtime, beside the number of threads.
    """

    def __init__(self, path: Path, options: dict[str, str]) -> None:
        threads = {"INFERENCE_NUM_THREADS": str(torch.get_num_threads())}
        model = core().compile_model(path, "CPU", options | threads)
        self.request = model.create_infer_request()
        self.decodes = any("beam_idx" in port.get_names() for port in model.inputs)

    def logits(self, source: Ids, target: Ids) -> Logits:
        if self.decodes:
            self.request.reset_state()
        return self._step(source, len(source), target)

    def _step(self, source: Ids, seen: int, target: Ids = ()) -> Logits:
        """Logits of tokens that end a row of ``seen``."""
        inputs: dict[str, NDArray[Any]] = {
            "input_ids": np.array([source], np.int64),
            "attention_mask": np.ones((1, seen), np.int64),
        }
        if self.decodes:
            inputs["beam_idx"] = np.zeros(1, np.int32)
        if target:
            inputs["decoder_input_ids"] = np.array([target], np.int64)
        array: Logits = self.request.infer(inputs)["logits"][0].copy()
        return array

    def greedy(self, source: Ids, start: Ids, count: int) -> list[int]:
        if not self.decodes:
            return super().greedy(source, start, count)
        written = [int(self.logits(source, [])[-1].argmax())]
        while len(written) < count:
            written.append(int(self._step(written[-1:], len(source) + len(written))[-1].argmax()))
        return written


@cache
def core() -> "openvino.Core":
    """The runtime, one for the whole process.

    On a CPU with AVX-512 each has signals handled on a stack of its own, and puts back the one before when it ends. Of
    two that end in the order in which they began the last puts back one that is gone, and the next signal is a crash.
    """
    import openvino

    return openvino.Core()


def _keep_logits(graph: "openvino.Model") -> None:
    for result in graph.get_results():
        if "logits" not in result.output(0).get_names() and "logits" not in result.input_value(0).get_names():
            graph.remove_result(result)


def _shorten(node: Any, by_value: ByValue, floats: torch.dtype) -> None:
    """Put packed integers, or floats of 16 bits that are the same numbers, in place of a weight in float32."""
    from openvino import opset14 as ops

    weight, users = node.data, list(node.output(0).get_target_inputs())
    if found := by_value.find(weight):
        new = _integers(found.packed)
        if found.transposed:
            new = ops.transpose(new, ops.constant(np.array([1, 0], np.int64)))
    else:
        tensor = torch.from_numpy(np.array(weight))
        if floats == torch.float32 or not torch.equal(tensor.to(floats).float(), tensor):
            return
        kind = "bf16" if floats == torch.bfloat16 else "f16"
        new = ops.convert(_constant(tensor.to(floats).view(torch.uint8).numpy(), weight.shape, kind), "f32")
    new.set_friendly_name(f"{node.get_friendly_name()}/float")
    for user in users:
        user.replace_source_output(new.output(0))


def _integers(packed: Packed) -> Any:
    """A weight [out, in] as what is multiplied: integers, from which zero points are taken, times scales."""
    from openvino import opset14 as ops

    rows, columns = packed.numbers.shape
    groups = packed.scale.shape[1]
    shape = [rows, columns] if groups == 1 else [rows, groups, columns // groups]
    weight = ops.convert(_packed(packed.numbers, packed, shape), "f32")
    beside = [rows, 1] if groups == 1 else [rows, groups, 1]
    if packed.zero is not None:
        weight = ops.subtract(weight, ops.convert(_packed(packed.zero, packed, beside), "f32"))
    weight = ops.multiply(weight, _constant(packed.scale.contiguous().view(torch.uint8).numpy(), beside, "f32"))
    if groups == 1:
        return weight
    return ops.reshape(weight, ops.constant(np.array([rows, columns], np.int64)), special_zero=False)


def _packed(numbers: torch.Tensor, packed: Packed, shape: Sequence[int]) -> Any:
    """Integers of 4 or 8 bits; without a sign, and as much larger, where the layer has zero points."""
    bits, signed = (4 if packed.bits <= 4 else 8), packed.zero is None
    array = (numbers.int() + (0 if signed else 2 ** (packed.bits - 1))).numpy().astype(np.uint8).reshape(-1)
    if bits == 4:
        array = np.pad(array & np.uint8(15), (0, len(array) % 2))
        array = array[::2] | np.left_shift(array[1::2], np.uint8(4))
    return _constant(array, shape, f"{'i' if signed else 'u'}{bits}")


def _constant(content: NDArray[np.uint8], shape: Sequence[int], kind: str) -> Any:
    """A constant of some type from its bytes, which it holds itself."""
    import openvino
    from openvino import opset14 as ops

    tensor = openvino.Tensor(getattr(openvino.Type, kind), openvino.Shape(shape))
    tensor.data.reshape(-1).view(np.uint8)[:] = content.reshape(-1)
    return ops.constant(tensor)
