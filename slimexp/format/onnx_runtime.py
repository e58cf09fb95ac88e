"""A graph that ONNX Runtime runs, with the keys and values that it gives and reads."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from slimexp.format.base import Ids, Logits, Running

if TYPE_CHECKING:
    import onnx_ir as ir

PAST, PRESENT = "past_key_values", "present"  # names of the cache's inputs and outputs, as ONNX Runtime GenAI has them
_LAYER = re.compile(r"\blayers\.(\d+)\.(key|value)s$")  # of transformers' exporter


def keep_outputs(program: "ir.Model") -> int:
    """Keep the logits and, of a graph that reads keys and values, those with the new ones; number of layers with them.

    Raises:
        ValueError: The graph reads something else of earlier tokens.
    """
    import onnx_ir as ir

    graph = program.graph
    read, given = ([value for value in values if value.name != "logits"] for values in (graph.inputs, graph.outputs))
    read = [value for value in read if not re.fullmatch(r"(decoder_)?input_ids|attention_mask", str(value.name))]
    if not read:
        graph.outputs[:] = [value for value in graph.outputs if value.name == "logits"]
        return 0
    if wrong := [value.name for value in (*read, *given) if not _LAYER.search(str(value.name))]:
        raise ValueError(f"the model keeps more than keys and values ({wrong[0]}): take format.cache=false")
    for values, name in (read, PAST), (given, PRESENT):
        for value in values:
            layer, part = _LAYER.search(str(value.name)).groups()  # type: ignore[union-attr]
            value.name = f"{name}.{layer}.{part}"
            # heads and their width are numbers, which transformers 5.24 writes as names of unknown sizes
            sizes = [str(getattr(size, "value", size)) for size in value.shape or ()]
            value.shape = ir.Shape([int(size) if size.isdecimal() else size for size in sizes])
    return len(read) // 2


class OnnxRuntime(Running):
    """A graph that ONNX Runtime runs on the CPU.

    Args:
        path: Its file.
        entries: Of the session's configuration.
    """

    def __init__(self, path: Path, entries: Mapping[str, str]) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        for key, value in entries.items():
            options.add_session_config_entry(key, value)
        options.intra_op_num_threads = torch.get_num_threads()
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self._value_of = onnxruntime.OrtValue.ortvalue_from_numpy
        self.nothing = {  # [B, H, 0, D]: no token was read yet
            one.name: self._value_of(np.zeros((1, one.shape[1], 0, one.shape[3]), np.float32))
            for one in self.session.get_inputs()
            if one.name.startswith(f"{PAST}.")
        }
        self.decodes = bool(self.nothing)

    def logits(self, source: Ids, target: Ids) -> Logits:
        return self._step(source, len(source), self.nothing, target)[0]

    def greedy(self, source: Ids, start: Ids, count: int) -> list[int]:
        if not self.decodes:
            return super().greedy(source, start, count)
        written: list[int] = []
        step, past = list(source), self.nothing
        while len(written) < count:
            logits, past = self._step(step, len(source) + len(written), past)
            written.append(int(logits[-1].argmax()))
            step = written[-1:]
        return written

    def _step(self, ids: Ids, seen: int, past: Mapping[str, Any], target: Ids = ()) -> tuple[Logits, dict[str, Any]]:
        """Logits of tokens that end a row of ``seen``, and keys and values of all of it, which stay the engine's."""
        inputs = {"input_ids": np.array([ids]), "attention_mask": np.ones((1, seen), np.int64)}
        if target:
            inputs["decoder_input_ids"] = np.array([target])
        values = {name: self._value_of(array) for name, array in inputs.items()}
        names = ["logits", *(name.replace(PAST, PRESENT, 1) for name in past)]
        logits, *present = self.session.run_with_ort_values(names, {**values, **past})
        array: Logits = logits.numpy()[0]
        return array, dict(zip(past, present, strict=True))
