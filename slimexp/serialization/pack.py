"""Quantized models as files that plain transformers loads: the compressed-tensors format.

The integers are really packed (densely into int32 words, or as int8 at 8 bits), and every packed weight
is unpacked again and compared bit for bit with the one that was trained.
"""

import copy
from collections.abc import Iterator, Mapping
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
_BYTES_A_WEIGHT = 40  # at most, of a GPU, while one is packed and unpacked again


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
    layers = quantized(model)
    if not layers:
        raise ValueError("pack needs a quantizer on a weight, found none: run the quantize technique first")
    schemes = _schemes(model, layers)
    return {name: tensor for name, tensor, _ in packed_tensors(model)}, _config(model, schemes)


def packed_tensors(model: nn.Module, device: torch.device | None = None) -> Iterator[tuple[str, Tensor, bool]]:
    """Name and tensor, one by one, of the state dict that ``pack`` returns; and whether it is the model's own of it.

    Args:
        model: With its attachments; it stays where it is.
        device: Where a layer is packed: a GPU is ten times as fast as a CPU. ``None``, and one without room for a
            layer, for where the layer is.

    Raises:
        ValueError: A grid does not survive packing.
    """
    layers = quantized(model)
    schemes = _schemes(model, layers)
    for name in counted(plain_names(model), "packing tensor"):
        layer, _, tensor = name.rpartition(".")
        if tensor != WEIGHT or layer not in layers:
            yield name, plain_tensor(model, name), True
            continue
        module = model.get_submodule(layer)
        if (first := _first_of_tied(layer, model, layers)) != layer:
            if not torch.equal(plain_tensor(model, name), plain_tensor(model, f"{first}.{WEIGHT}")):
                raise ValueError(f"'{layer}' and '{first}' share a weight, so they need the same grid")
            continue
        for key, value in _pack_layer(layer, module, layers[layer], schemes[layer], device).items():
            yield f"{layer}.{key}", value, False


def quantization_config(model: nn.Module) -> dict[str, Any]:
    """The value of ``quantization_config`` that ``pack`` returns."""
    return _config(model, _schemes(model, quantized(model)))


def plain_names(model: nn.Module) -> list[str]:
    """Names in the state dict of a model that never had attachments, tied weights once; no tensor is made."""
    first: dict[tuple[Any, ...], str] = {}
    folded = {f"{name}.{tensor}" for name, module in model.named_modules() for tensor in _parametrized(module)}
    for name, tensor in latents(model).items():
        first.setdefault((name,) if name in folded else (tensor.data_ptr(), tensor.shape), name)
    return list(first.values())


def latents(model: nn.Module) -> dict[str, Tensor]:
    """Every name in the state dict of a model that never had attachments -> its tensor, or the one beneath them."""
    state = {name: tensor for name, tensor in model.state_dict().items() if not _is_attached(name)}
    for name, module in model.named_modules():
        for tensor, chain in _parametrized(module).items():
            state[f"{name}.{tensor}"] = chain.original.detach()
    return state


def _parametrized(module: nn.Module) -> Mapping[str, Any]:
    parametrized: Mapping[str, Any] = getattr(module, "parametrizations", {})
    return parametrized


@torch.no_grad()
def plain_tensor(model: nn.Module, name: str) -> Tensor:
    """One tensor of it, with attachments folded in."""
    module, _, tensor = name.rpartition(".")
    value: Tensor = getattr(model.get_submodule(module), tensor)
    return value.detach()


def decompress(model: nn.Module) -> None:
    """Dequantize at once what transformers would dequantize on the first forward pass; else do nothing.

    Until then a model loaded with quantized activations holds integers where others hold weights, and
    an encoder-decoder cannot generate: ``generate`` calls the encoder before the whole model. Without
    slimexp, ``model.hf_quantizer.compressor.decompress_model(model)`` does the same.
    """
    if hasattr(model, "ct_decompress_hook"):
        model.hf_quantizer.compressor.decompress_model(model)  # type: ignore[operator,union-attr]


def before(module: nn.Module, quantizer: Quantizer) -> Tensor:
    """The weight that ``quantizer`` reads, in float32: the latent weight after the attachments before it."""
    chain = _attachments(module)
    weight: Tensor = chain.original.float()  # 16 bits do not hold a mean of what has 16 bits
    for attachment in chain:
        if attachment is quantizer:
            break
        weight = attachment(weight)
    return weight


def _attachments(module: nn.Module) -> parametrize.ParametrizationList:
    chain = module.get_submodule(f"parametrizations.{WEIGHT}")
    assert isinstance(chain, parametrize.ParametrizationList)
    return chain


def _chain(module: nn.Module, device: torch.device | None) -> parametrize.ParametrizationList:
    """The attachments on the weight of a layer, and what is beneath them: copies on ``device``, if that has room."""
    chain = _attachments(module)
    if device is None or device == chain.original.device or not _has_room(device, chain.original):
        return chain
    tensors = (*chain.parameters(), *chain.buffers())
    moved = {id(tensor): nn.Parameter(tensor.detach().to(device), requires_grad=False) for tensor in tensors}
    return copy.deepcopy(chain, moved)  # which copies what it does not find there


def _has_room(device: torch.device, weight: Tensor) -> bool:
    return device.type != "cuda" or _BYTES_A_WEIGHT * weight.numel() < torch.cuda.mem_get_info(device)[0]


def is_fixed(name: str, tensor: Tensor) -> bool:
    """Whether a tensor of an artifact is part of a grid, so that its type must stay."""
    return not tensor.is_floating_point() or tensor.dtype.itemsize == 1 or name.endswith((SCALE, INPUT_SCALE))


def _is_attached(name: str) -> bool:
    return any(part in _ATTACHED for part in name.split("."))


def quantized(model: nn.Module) -> dict[str, dict[str, Quantizer]]:
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


def _schemes(model: nn.Module, layers: Mapping[str, Mapping[str, Quantizer]]) -> "dict[str, QuantizationScheme]":
    unpacked = _is_encoder_decoder(model)
    return {name: _scheme(quantizers, unpacked=unpacked) for name, quantizers in layers.items()}


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
    name: str,
    module: nn.Module,
    quantizers: Mapping[str, Quantizer],
    scheme: "QuantizationScheme",
    device: torch.device | None,
) -> dict[str, Tensor]:
    """Packed integers and scales of one layer, the scales in the smallest type that unpacks to the very same weight."""
    from compressed_tensors.compressors import BaseCompressor

    quantizer, activation = quantizers[WEIGHT], quantizers.get(INPUT)
    chain = _chain(module, device)
    weight: Tensor = chain.original.detach().float()  # 16 bits do not hold every point of a grid of 8
    for attachment, here in zip(_attachments(module), chain, strict=True):
        if attachment is quantizer:
            assert isinstance(here, Quantizer)
            grid = here.grid(weight)
        weight = here(weight)
    compressor = BaseCompressor.get_value_from_registry(str(scheme.format))
    exact = {WEIGHT: weight, SCALE: grid.scale} | ({} if grid.zero is None else {ZERO: grid.zero})
    packed: dict[str, Tensor] = compressor.compress(exact, scheme)
    if activation is not None and not activation.dynamic:
        packed[INPUT_SCALE] = activation.grid(weight).scale
    packed[SCALE] = grid.scale.float()
    on_grid = compressor.decompress(packed, scheme)[WEIGHT].float()
    if torch.equal(on_grid, weight):
        short = {**packed, SCALE: grid.scale.bfloat16()}
        return short if torch.equal(compressor.decompress(short, scheme)[WEIGHT].float(), on_grid) else packed
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
