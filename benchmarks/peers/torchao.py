"""torchao rounds a model to integers: ``benchmarks.quantize_peers`` runs this in an environment of its own.

slimexp is installed there as well, so that predictions are made by its code, on torchao's own tensors and kernels.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torchao.quantization import (
    Int8DynamicActivationInt8WeightConfig,
    Int8WeightOnlyConfig,
    IntxWeightOnlyConfig,
    PerGroup,
    quantize_,
)
from torchao.quantization.quant_primitives import MappingType
from transformers import PreTrainedModel

from slimexp.model.loading import from_folder


def recipe(name: str, group: int) -> Any:
    """What torchao is asked for; every other setting is its own default.

    Its ``Int4WeightOnlyConfig`` has no layout that runs on a CPU (0.18); ``IntxWeightOnlyConfig`` has.
    """
    if name == "int8_dynamic":
        return Int8DynamicActivationInt8WeightConfig()
    if name == "int8_weight_only":
        return Int8WeightOnlyConfig()
    mapping = MappingType.SYMMETRIC if name == "int4_symmetric" else MappingType.ASYMMETRIC
    return IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(group), mapping_type=mapping)  # type: ignore[attr-defined]


def megabytes(model: PreTrainedModel) -> float:
    """Of its state dict, saved as torchao says; 10^6 bytes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.pt")
        torch.save(model.state_dict(), path)
        return path.stat().st_size / 1e6


def main() -> None:
    task = json.load(sys.stdin)

    def quantized(dtype: torch.dtype) -> Any:
        family = from_folder(task["model"], task["task"], task["max_length"])
        layers = {id(layer) for layer in family.compressible().values()}
        family.model.to(dtype)  # type: ignore[arg-type]
        quantize_(family.model, recipe(task["recipe"], task["group"]), filter_fn=lambda module, _: id(module) in layers)
        return family

    predictions = quantized(torch.float32).predict([tuple(row) for row in task["texts"]], batch_size=16)
    stored = megabytes(quantized(torch.bfloat16).model)
    Path(task["into"]).write_text(json.dumps({"predictions": predictions, "mb": stored}))


if __name__ == "__main__":
    main()
