"""The packed weights of an artifact, for kernels that multiply integers and float8."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from torch import Tensor

from slimexp.file.bounded import read_object
from slimexp.kernel.base import Packed
from slimexp.serialization.pack import INPUT_SCALE, SCALE, ZERO
from slimexp.serialization.scheme import WEIGHT
from slimexp.serialization.shards import Reader

if TYPE_CHECKING:
    from compressed_tensors.quantization import QuantizationConfig, QuantizationScheme


def unpacked(folder: Path) -> dict[str, Packed]:
    """Name -> weight of every quantized layer in an artifact, its integers unpacked; empty where no layer is quantized.

    Args:
        folder: A model folder with ``config.json`` and the weights, whole or in shards.
    """
    from compressed_tensors.quantization import QuantizationConfig

    stored = read_object(folder / "config.json").get("quantization_config")
    if stored is None:
        return {}
    config = QuantizationConfig.model_validate({key: value for key, value in stored.items() if key != "dequantize"})
    with Reader(folder) as state:
        names = [name.removesuffix(f".{SCALE}") for name in state if name.endswith(f".{SCALE}")]
        return {name: _layer(name, state, _scheme(name, config)) for name in names}


def _scheme(name: str, config: "QuantizationConfig") -> "QuantizationScheme":
    """The scheme of the group that names the layer, or of the only group."""
    groups = list(config.config_groups.values())
    return next((group for group in groups if name in group.targets), groups[0])


def _layer(name: str, state: Mapping[str, Tensor], scheme: "QuantizationScheme") -> Packed:
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
        packs_zero = scheme.weights.strategy != "tensor"
        zero = unpack_from_int32(zero, bits, scale.shape, packed_dim=0) if zero is not None and packs_zero else zero
    if scheme.weights.strategy == "tensor":
        scale, zero = scale.expand(len(integers), 1), None if zero is None else zero.expand(len(integers), 1)
    inputs = scheme.input_activations
    activation: Literal["token"] | float | None = None
    if inputs is not None:
        activation = "token" if inputs.dynamic else state[f"{name}.{INPUT_SCALE}"].item()
    return Packed(integers, scale.float(), zero, bits, None if bias is None else bias.float(), activation)
