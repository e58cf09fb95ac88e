"""Quantized models as files that plain transformers loads: the compressed-tensors format.

The integers are really packed (densely into int32 words, or as int8 at 8 bits), and every packed weight
is unpacked again and compared bit for bit with the one that was trained.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from slimexp.host.progress import counted
from slimexp.quantizer.base import Quantizer
from slimexp.quantizer.grid import Granularity
from slimexp.weight.attachment import INPUT, attached

if TYPE_CHECKING:
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

WEIGHT = "weight"
SCALE = "weight_scale"
ZERO = "weight_zero_point"
INPUT_SCALE = "input_scale"
_ATTACHED = ("parametrizations", "input_attachment")


def pack(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """State dict and ``quantization_config`` of a model with quantizers attached.

    Casting what is part of a grid (``is_fixed``) changes it; casting any other floating-point tensor does not.

    Returns:
        state: Name -> tensor as transformers expects them in ``model.safetensors``: packed integers
            and scales for quantized layers, plain tensors (masks applied) elsewhere, tied weights once.
        config: The value of ``quantization_config`` in ``config.json``.

    Raises:
        ValueError: No quantizer sits on a weight, or a grid does not survive packing.
    """
    layers = _quantized(model)
    if not layers:
        raise ValueError("pack needs a quantizer on a weight, found none: run the quantize technique first")
    unpacked = _is_encoder_decoder(model)
    schemes = {name: _scheme(quantizers, unpacked=unpacked) for name, quantizers in layers.items()}
    state = plain_state(model)
    for name, quantizers in counted(layers.items(), "packing layer"):
        module = model.get_submodule(name)
        weight = state.pop(f"{name}.{WEIGHT}")
        if (first := _first_of_tied(name, model, layers)) != name:
            if not torch.equal(weight, model.get_submodule(first).weight):  # type: ignore[arg-type]
                raise ValueError(f"'{name}' and '{first}' share a weight, so they need the same grid")
            continue
        packed = _pack_layer(name, module, quantizers, schemes[name])
        state |= {f"{name}.{key}": value for key, value in packed.items()}
    return state, _config(model, schemes)


@torch.no_grad()
def plain_state(model: nn.Module) -> dict[str, Tensor]:
    """State dict with attachments folded in: the names and values of a model that never had any; tied weights once."""
    state = {name: tensor for name, tensor in model.state_dict().items() if not _is_attached(name)}
    for name, module in model.named_modules():
        for tensor in getattr(module, "parametrizations", {}):
            state[f"{name}.{tensor}"] = getattr(module, tensor)
    seen: set[tuple[int, torch.Size]] = set()
    unique = {}
    for name, tensor in state.items():
        key = (tensor.data_ptr(), tensor.shape)
        if key not in seen:
            unique[name] = tensor.detach()
        seen.add(key)
    return unique


def decompress(model: nn.Module) -> None:
    """Dequantize at once what transformers would dequantize on the first forward pass; else do nothing.

    Until then a model loaded with quantized activations holds integers where others hold weights, and
    an encoder-decoder cannot generate: ``generate`` calls the encoder before the whole model. Without
    slimexp, ``model.hf_quantizer.compressor.decompress_model(model)`` does the same.
    """
    if hasattr(model, "ct_decompress_hook"):
        model.hf_quantizer.compressor.decompress_model(model)  # type: ignore[operator,union-attr]


def before(module: nn.Module, quantizer: Quantizer) -> Tensor:
    """The weight that ``quantizer`` reads: the latent weight after the attachments before it."""
    chain = module.get_submodule(f"parametrizations.{WEIGHT}")
    assert isinstance(chain, parametrize.ParametrizationList)
    weight: Tensor = chain.original
    for attachment in chain:
        if attachment is quantizer:
            break
        weight = attachment(weight)
    return weight


def is_fixed(name: str, tensor: Tensor) -> bool:
    """Whether a tensor of an artifact is part of a grid, so that its type must stay."""
    return not tensor.is_floating_point() or tensor.dtype.itemsize == 1 or name.endswith((SCALE, INPUT_SCALE))


def _is_attached(name: str) -> bool:
    return any(part in _ATTACHED for part in name.split("."))


def _quantized(model: nn.Module) -> dict[str, dict[str, Quantizer]]:
    """Name of the layer -> its quantizers by tensor (``weight``, ``input``), of layers with a quantized weight."""
    layers: dict[str, dict[str, Quantizer]] = {}
    for place, attachment in attached(model):
        if isinstance(attachment, Quantizer):
            layers.setdefault(place.module, {})[place.tensor] = attachment
    return {name: quantizers for name, quantizers in layers.items() if WEIGHT in quantizers}


def _first_of_tied(name: str, model: nn.Module, layers: Mapping[str, Any]) -> str:
    """The first of the quantized layers that share the weight of layer ``name``."""
    weight = _latent(model.get_submodule(name))
    return next(other for other in layers if _latent(model.get_submodule(other)) is weight)


def _latent(module: nn.Module) -> Tensor:
    return module.get_parameter(f"parametrizations.{WEIGHT}.original")


def _is_encoder_decoder(model: nn.Module) -> bool:
    return bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))


def _scheme(quantizers: Mapping[str, Quantizer], *, unpacked: bool) -> "QuantizationScheme":
    """The layer's scheme for compressed-tensors; 8 bits as int8 tensors if ``unpacked``."""
    from compressed_tensors.config import CompressionFormat
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    weight, activation = quantizers[WEIGHT], quantizers.get(INPUT)
    as_int8 = weight.bits == 8 and (activation is not None or unpacked)
    kind = CompressionFormat.int_quantized if as_int8 else CompressionFormat.pack_quantized
    if weight.stored.is_floating_point:
        kind = CompressionFormat.float_quantized
    return QuantizationScheme(
        targets=[],
        weights=QuantizationArgs(**_number(weight), symmetric=weight.symmetric, **_strategy(weight.granularity)),
        input_activations=None if activation is None else _activation_args(activation),
        format=kind.value,
    )


def _number(quantizer: Quantizer) -> dict[str, Any]:
    return {"num_bits": quantizer.bits, "type": "float" if quantizer.stored.is_floating_point else "int"}


def _strategy(granularity: Granularity) -> dict[str, Any]:
    if granularity.per_tensor:
        return {"strategy": "tensor"}
    size = granularity.group_size
    return {"strategy": "channel"} if size is None else {"strategy": "group", "group_size": size}


def _activation_args(activation: Quantizer) -> "QuantizationArgs":
    from compressed_tensors.quantization import QuantizationArgs

    strategy = "token" if activation.dynamic else "tensor"
    return QuantizationArgs(**_number(activation), symmetric=True, strategy=strategy, dynamic=activation.dynamic)


@torch.no_grad()
def _pack_layer(
    name: str, module: nn.Module, quantizers: Mapping[str, Quantizer], scheme: "QuantizationScheme"
) -> dict[str, Tensor]:
    """Packed integers and scales of one layer, the scales in the smallest type that unpacks to the very same weight."""
    from compressed_tensors.compressors import BaseCompressor

    quantizer, activation = quantizers[WEIGHT], quantizers.get(INPUT)
    weight = getattr(module, WEIGHT).detach()
    grid = quantizer.grid(before(module, quantizer))
    compressor = BaseCompressor.get_value_from_registry(str(scheme.format))
    exact = {WEIGHT: weight.float(), SCALE: grid.scale} | ({} if grid.zero is None else {ZERO: grid.zero})
    packed: dict[str, Tensor] = compressor.compress(exact, scheme)
    if activation is not None and not activation.dynamic:
        packed[INPUT_SCALE] = activation.grid(weight).scale
    for dtype in (torch.bfloat16, torch.float32):
        packed[SCALE] = grid.scale.to(dtype)
        if torch.equal(compressor.decompress(packed, scheme)[WEIGHT].to(weight.dtype), weight):
            return packed
    raise ValueError(
        f"layer '{name}' is off the grid of its {quantizer.bits}-bit quantizer, so packing would change it: "
        "nothing but masks may follow a quantizer, and its grid must be exact in float32"
    )


def _config(model: nn.Module, schemes: Mapping[str, "QuantizationScheme"]) -> dict[str, Any]:
    """``quantization_config``; layers left in float are listed in ``ignore``, those of unlike schemes by name."""
    from compressed_tensors.quantization import QuantizationConfig, QuantizationStatus

    groups = _groups(schemes)
    if len(groups) > 1 and _is_encoder_decoder(model):
        raise ValueError(
            "transformers loads an encoder-decoder under one scheme alone: give all layers the same bits and "
            "group_size, and either none or all of them quantized activations"
        )
    if len(groups) == 1:
        groups[0].targets = ["Linear"]
    config = QuantizationConfig(
        config_groups={f"group_{number}": group for number, group in enumerate(groups)},
        format=str(groups[0].format) if len({group.format for group in groups}) == 1 else "mixed-precision",
        quantization_status=QuantizationStatus.COMPRESSED,
        ignore=[
            name
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear | nn.Embedding) and name not in schemes
        ],
    )
    # Left compressed, weights are dequantized by a hook on the first forward of the whole model (see decompress).
    # Dequantized at load, layers run at dense speed, but transformers >= 5.21 then leaves activations unrounded,
    # and knows but one scheme.
    at_load = len(groups) == 1 and groups[0].input_activations is None
    return config.model_dump(mode="json") | {"dequantize": at_load}


def _groups(schemes: Mapping[str, "QuantizationScheme"]) -> "list[QuantizationScheme]":
    """Distinct schemes, each with the names of its layers as targets."""
    groups: list[QuantizationScheme] = []
    for name, scheme in schemes.items():
        group = next((group for group in groups if group.model_copy(update={"targets": []}) == scheme), None)
        if group is None:
            groups.append(group := scheme.model_copy())
        group.targets = [*group.targets, name]
    return groups
