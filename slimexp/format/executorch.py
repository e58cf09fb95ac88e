"""ExecuTorch: a program of the whole model for phones and small machines, in floats.

The program reads ``input_ids`` and ``attention_mask`` [1, S] (and ``decoder_input_ids`` [1, T] of an encoder-decoder),
of any length up to that of the artifact, and gives ``logits``. It has no cache.
"""

from pathlib import Path
from typing import Any

import torch

from slimexp.format.base import Artifact, Facts, Format, Ids, Logits, Running
from slimexp.format.tracing import copy_beside, quiet, sample
from slimexp.host import extra

PROGRAM = "model.pte"


class Executorch(Format):
    """A folder with ``model.pte``, ``config.json`` and the tokenizer. Weights are float32 in it."""

    def require(self) -> None:
        for module in ("executorch", "transformers.exporters"):
            extra.require(module, extra="executorch", by="format=executorch")

    def refusal(self, model: Artifact) -> str | None:
        if model.bits or model.rounds_activations:
            return "its packed integers would become floats"
        if model.content["cache_bits"] is not None:
            return "its keys and values are rounded, and the program has no cache"
        return None

    def write(self, model: Artifact, folder: Path) -> Facts:
        from transformers.exporters import ExecutorchConfig, ExecutorchExporter

        inputs = sample(model)
        longest = model.family.max_length
        rows = {name: ids[:1] for name, ids in inputs.items() if isinstance(ids, torch.Tensor)}
        shapes = {name: {1: torch.export.Dim(_axis(name), min=1, max=longest)} for name in rows}
        with quiet():
            config = ExecutorchConfig(dynamic_shapes=shapes)
            program, _ = ExecutorchExporter().export_program(model.family.model, inputs | rows, config)
        (folder / PROGRAM).write_bytes(program.buffer)
        copy_beside(model, folder)
        return {"dynamic_shapes": ["length"], "batch": 1, "longest": longest}

    def load(self, model: Artifact, folder: Path) -> Running:
        return Program(folder / PROGRAM)


def _axis(name: str) -> str:
    """Name of a length: what the model reads has one, what its decoder reads another."""
    return "target" if name == "decoder_input_ids" else "source"


class Program(Running):
    """A program that ExecuTorch runs on the CPU.

    Args:
        path: Its file.
    """

    def __init__(self, path: Path) -> None:
        from executorch.runtime import Runtime

        self._program = Runtime.get().load_program(path)
        self._method: Any = self._program.load_method("forward")

    def logits(self, source: Ids, target: Ids) -> Logits:
        ids = torch.tensor([list(source)])
        inputs = [ids, torch.ones_like(ids)] + ([torch.tensor([list(target)])] if target else [])
        array: Logits = self._method.execute(inputs)[0][0].numpy().copy()
        return array
