"""The integers of an artifact, for kernels that multiply them as they are."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from torch import Tensor

from slimexp.quantizer.packing import INPUT_SCALE, SCALE, WEIGHT, ZERO

if TYPE_CHECKING:
    from compressed_tensors.quantization import QuantizationConfig, QuantizationScheme


class Unpacked(NamedTuple):
    """A quantized layer: ``y = round(x) W^T + bias`` with ``W = (integers - zero) * scale``.

    Attributes:
        integers: Weight, int8 [out, in].
        scale: float32 [out, groups]; a group is ``in / groups`` neighbours in a row.
        zero: Integer that stands for zero, int8 [out, groups]; ``None`` where it is 0.
        bits: Width of the integers.
        bias: float32 [out], or ``None``.
        activation: How the input is rounded to 8 bits: ``"token"`` for a scale per token, a number for that scale,
            ``None`` where it is not.
    """

    integers: Tensor
    scale: Tensor
    zero: Tensor | None
    bits: int
    bias: Tensor | None
    activation: Literal["token"] | float | None


def unpacked(folder: Path) -> dict[str, Unpacked]:
    """Layer name -> its integers, of every quantized layer in an artifact; empty where none is.

    Args:
        folder: With ``config.json`` and ``model.safetensors``.
    """
    from compressed_tensors.quantization import QuantizationConfig
    from safetensors.torch import load_file

    stored = json.loads((folder / "config.json").read_text()).get("quantization_config")
    if stored is None:
        return {}
    config = QuantizationConfig.model_validate({key: value for key, value in stored.items() if key != "dequantize"})
    state = load_file(folder / "model.safetensors")
    names = [name.removesuffix(f".{SCALE}") for name in state if name.endswith(f".{SCALE}")]
    return {name: _layer(name, state, _scheme(name, config)) for name in names}


def _scheme(name: str, config: "QuantizationConfig") -> "QuantizationScheme":
    """The one that names the layer, or the only one."""
    groups = list(config.config_groups.values())
    return next((group for group in groups if name in group.targets), groups[0])


def _layer(name: str, state: dict[str, Tensor], scheme: "QuantizationScheme") -> Unpacked:
    from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32

    assert scheme.weights is not None
    bits = scheme.weights.num_bits
    scale, zero, bias = (state.get(f"{name}.{key}") for key in (SCALE, ZERO, "bias"))
    assert scale is not None
    packed = state.get(f"{name}.weight_packed")
    if packed is None:
        integers = state[f"{name}.{WEIGHT}"]
    else:
        integers = unpack_from_int32(packed, bits, state[f"{name}.weight_shape"])
        zero = None if zero is None else unpack_from_int32(zero, bits, scale.shape, packed_dim=0)
    inputs = scheme.input_activations
    activation: Literal["token"] | float | None = None
    if inputs is not None:
        activation = "token" if inputs.dynamic else state[f"{name}.{INPUT_SCALE}"].item()
    return Unpacked(integers, scale.float(), zero, bits, None if bias is None else bias.float(), activation)
