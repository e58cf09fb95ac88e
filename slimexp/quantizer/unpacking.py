"""The integers of a packed artifact, as kernels take them: nothing is dequantized."""

import json
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor

from slimexp.kernel.base import ACTIVATION_BITS, Packed

_SCALE, _ZERO, _INPUT_SCALE = "weight_scale", "weight_zero_point", "input_scale"
_INTEGERS, _WORDS, _SHAPE = "weight", "weight_packed", "weight_shape"


class Unpacked(NamedTuple):
    """What a model folder holds.

    Attributes:
        layers: Name -> quantized linear layer or embedding.
        state: Name -> every other tensor.
    """

    layers: dict[str, Packed]
    state: dict[str, Tensor]


def refusal(folder: Path) -> str | None:
    """Why the layers of ``folder`` cannot run as integers; ``None`` if they can."""
    config = json.loads((folder / "config.json").read_text()).get("quantization_config")
    if config is None:
        return "its weights are floats"
    if config.get("quant_method") != "compressed-tensors":
        return f"its format is {config.get('quant_method')}, not compressed-tensors"
    if not (folder / "model.safetensors").exists():
        return "its weights are not in one model.safetensors"
    for group in config["config_groups"].values():
        weights, inputs = group["weights"], group.get("input_activations")
        if weights.get("type", "int") != "int" or weights["strategy"] not in ("channel", "group"):
            return f"its weights are {weights.get('type')} per {weights['strategy']}, not integers per channel or group"
        if weights.get("actorder"):
            return "its weights are reordered"
        if inputs is not None and not _known(inputs):
            return f"its inputs are rounded to {inputs['num_bits']} bits per {inputs['strategy']}"
        if group.get("output_activations") is not None:
            return "its outputs are rounded"
    return None


def _known(inputs: dict[str, Any]) -> bool:
    """Whether a kernel is told how to round inputs so: per token, or by a scale fixed beforehand."""
    wanted = (ACTIVATION_BITS, True, "int", "token" if inputs.get("dynamic") else "tensor")
    return (inputs["num_bits"], inputs.get("symmetric", True), inputs.get("type", "int"), inputs["strategy"]) == wanted


def unpack(folder: Path) -> Unpacked:
    """Read a folder that ``refusal`` has nothing against."""
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    state = load_file(folder / "model.safetensors")
    names = [name.removesuffix(f".{_SCALE}") for name in state if name.endswith(f".{_SCALE}")]
    groups = list(config["config_groups"].values())
    layers = {name: _layer(state, name, _group(groups, name)) for name in names}
    return Unpacked(layers, state)


def _group(groups: list[dict[str, Any]], name: str) -> dict[str, Any]:
    """The recipe of a layer: the group that names it, else the one for all linear layers."""
    return next((group for group in groups if name in group["targets"]), groups[0])


def _layer(state: dict[str, Tensor], name: str, group: dict[str, Any]) -> Packed:
    """Take the tensors of layer ``name`` out of ``state``."""
    from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32

    bits, inputs = group["weights"]["num_bits"], group.get("input_activations")
    scale, zero = state.pop(f"{name}.{_SCALE}"), state.pop(f"{name}.{_ZERO}", None)
    if (words := state.pop(f"{name}.{_WORDS}", None)) is not None:
        shape = torch.Size(state.pop(f"{name}.{_SHAPE}").tolist())
        integers = unpack_from_int32(words, bits, shape)
        zero = None if zero is None else unpack_from_int32(zero, bits, scale.shape, packed_dim=0)
    else:
        integers = state.pop(f"{name}.{_INTEGERS}")
    bias = state.pop(f"{name}.bias", None)
    activation: Literal["token"] | float | None = None
    if inputs is not None:
        activation = "token" if inputs["dynamic"] else state.pop(f"{name}.{_INPUT_SCALE}").item()
    return Packed(
        integers=integers.to(torch.int8),
        scale=scale.float(),
        zero=zero if zero is not None and zero.any() else None,
        bits=bits,
        bias=None if bias is None else bias.float(),
        activation=activation,
    )
