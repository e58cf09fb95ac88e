"""Which arithmetic a model in memory runs: the kernels of its linear layers, and the type that they compute in."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from slimexp.file.bounded import read_object
from slimexp.kernel.autotune import kernel_summary
from slimexp.weight.attachment import attached


def kernel(model: nn.Module, folder: Path | None = None) -> str:
    """Label of what executes in the linear layers of ``model``: no format is faster than its kernel.

    Loaded by ``model.serving``, packed numbers run on the kernels of ``slimexp.kernel``; by plain transformers, every
    format of compressed-tensors written here runs as a floating-point matmul on dequantized weights.

    Args:
        model: The model in memory.
        folder: Folder that it was loaded from, to name the stored format of weights that were dequantized at load.
    """
    bits = getattr(getattr(model, "config", None), "cache_bits", None)  # see model.cache
    cached = "" if bits is None else f"; keys and values cached in {bits} bits, dequantized at every step"
    return _matmul(model, folder) + cached


def _matmul(model: nn.Module, folder: Path | None) -> str:
    if (integers := kernel_summary(model)) is not None:
        return integers
    dtype = str(next(p.dtype for p in model.parameters() if p.is_floating_point())).removeprefix("torch.")
    if simulated := sorted({type(attachment).__name__ for _, attachment in attached(model)}):
        return f"{dtype} matmul, simulated by {', '.join(simulated)}"
    schemes = (getattr(module, "quantization_scheme", None) for module in model.modules())
    if executed := next((scheme for scheme in schemes if scheme is not None), None):
        activations = executed.input_activations
        rounding = (
            "" if activations is None else f", activations rounded to {_number_type(dict(activations))} in {dtype}"
        )
        return f"{_number_type(dict(executed.weights))} dequantized -> {dtype} matmul{rounding}"
    stored = read_object(folder / "config.json").get("quantization_config") if folder else None
    group = next(iter(((stored or {}).get("config_groups") or {}).values()), None)
    if group is None:
        return f"{dtype} matmul" + (" (zeros multiplied like all else)" if _has_zeros(model) else "")
    return f"{_number_type(group['weights'])} dequantized -> {dtype} matmul"


def _number_type(numbers: Mapping[str, Any]) -> str:
    """Name of a number type of compressed-tensors, such as ``int8``."""
    return f"{'fp' if numbers.get('type') == 'float' else 'int'}{numbers['num_bits']}"


def _has_zeros(model: nn.Module) -> bool:
    """Whether more than 1 % of the weights of any linear layer are zero: more than training leaves by chance."""
    weights = (module.weight for module in model.modules() if isinstance(module, nn.Linear))
    return any(torch.count_nonzero(weight) < 0.99 * weight.numel() for weight in weights)
