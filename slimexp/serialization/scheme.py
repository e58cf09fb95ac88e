"""What an artifact says of its grids: the schemes of compressed-tensors, and which layers have which."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

from slimexp.quantizer.base import Quantizer
from slimexp.quantizer.grid import Granularity
from slimexp.weight.attachment import INPUT

if TYPE_CHECKING:
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

WEIGHT = "weight"
EXPERTS = r"re:.*\.experts\.\d+\..*"  # by which transformers finds the scheme of experts among several


def of_layers(model: nn.Module, layers: Mapping[str, Mapping[str, Quantizer]]) -> "dict[str, QuantizationScheme]":
    """Layer -> the scheme of its quantizers."""
    unpacked = _is_encoder_decoder(model)
    return {name: of_layer(quantizers, unpacked=unpacked) for name, quantizers in layers.items()}


def _is_encoder_decoder(model: nn.Module) -> bool:
    return bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))


def of_layer(quantizers: Mapping[str, Quantizer], *, unpacked: bool = False) -> "QuantizationScheme":
    """The scheme of a layer for compressed-tensors; 8 bits as int8 tensors if ``unpacked``.

    Args:
        quantizers: ``weight``, and ``input`` where it has one -> quantizer.
        unpacked: Whether integers of 8 bits stay bytes.
    """
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


def quantization_config(
    model: nn.Module,
    layers: "Mapping[str, QuantizationScheme]",
    experts: "Sequence[QuantizationScheme]",
    floats: Sequence[str],
) -> dict[str, Any]:
    """``quantization_config`` of a ``config.json``; layers of unlike schemes are listed by name.

    Args:
        model: The model.
        layers: Layer -> its scheme.
        experts: The scheme of each stack of experts; none where they are floats.
        floats: Modules that are no layers and stay floats where experts do not.

    Raises:
        ValueError: An encoder-decoder has several schemes, or experts have.
    """
    from compressed_tensors.quantization import QuantizationConfig, QuantizationStatus

    groups = _groups(layers)
    if len(groups) > 1 and _is_encoder_decoder(model):
        raise ValueError(
            "transformers loads an encoder-decoder under one scheme alone: give all layers the same bits and "
            "group_size, and either none or all of them quantized activations"
        )
    if any(scheme != experts[0] for scheme in experts):
        raise ValueError("transformers loads experts under one scheme alone: give all of them the same bits")
    if experts and not (len(groups) == 1 and _bare(groups[0]) == experts[0]):
        groups.append(experts[0].model_copy(update={"targets": [EXPERTS]}))
    elif len(groups) == 1:
        groups[0].targets = ["Linear"]
    config = QuantizationConfig(
        config_groups={f"group_{number}": group for number, group in enumerate(groups)},
        format=str(groups[0].format) if len({group.format for group in groups}) == 1 else "mixed-precision",
        quantization_status=QuantizationStatus.COMPRESSED,
        ignore=[
            *(
                name
                for name, module in model.named_modules()
                if isinstance(module, nn.Linear | nn.Embedding) and name not in layers
            ),
            *floats,
        ],
    )
    # Left compressed, weights are dequantized by a hook on the first forward of the whole model (see decompress).
    # Dequantized at load, layers run at dense speed, but transformers >= 5.21 then leaves activations unrounded,
    # and knows but one scheme. Experts are dequantized at load in any case.
    at_load = len(groups) == 1 and groups[0].input_activations is None
    return config.model_dump(mode="json") | {"dequantize": at_load}


def _groups(schemes: Mapping[str, "QuantizationScheme"]) -> "list[QuantizationScheme]":
    """Distinct schemes, each with the names of its layers as targets."""
    groups: list[QuantizationScheme] = []
    for name, scheme in schemes.items():
        group = next((group for group in groups if _bare(group) == scheme), None)
        if group is None:
            groups.append(group := scheme.model_copy())
        group.targets = [*group.targets, name]
    return groups


def _bare(group: "QuantizationScheme") -> "QuantizationScheme":
    """A scheme without names of layers."""
    return group.model_copy(update={"targets": []})
