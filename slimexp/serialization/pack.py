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
from slimexp.quantizer.grid import Grid
from slimexp.serialization import scheme as schemes
from slimexp.serialization.experts import apart, outline, quantized_stacks, routers
from slimexp.serialization.scheme import WEIGHT
from slimexp.weight.attachment import INPUT, Place, attached

if TYPE_CHECKING:
    from compressed_tensors.quantization import QuantizationScheme
    from transformers import PreTrainedModel

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
    if not quantized(model) and not quantized_stacks(model):
        raise ValueError("pack needs a quantizer on a weight, found none: run the quantize technique first")
    return {name: tensor for name, tensor, _ in packed_tensors(model)}, quantization_config(model)


def packed_tensors(model: nn.Module, device: torch.device | None = None) -> Iterator[tuple[str, Tensor, bool]]:
    """Name and tensor, one by one, of the state dict that ``pack`` returns; and whether it is the model's own of it.

    Args:
        model: With its attachments; it stays where it is.
        device: Where a layer is packed: a GPU is ten times as fast as a CPU. ``None``, and one without room for a
            layer, for where the layer is.

    Raises:
        ValueError: A grid does not survive packing.
    """
    layers, stacks = quantized(model), quantized_stacks(model)
    of_layers = schemes.of_layers(model, layers)
    empty = outline(model) if stacks else None
    for name in counted(plain_names(model), "packing tensor"):
        layer, _, tensor = name.rpartition(".")
        if (stack := Place(layer, tensor)) in stacks:
            assert empty is not None
            yield from _pack_experts(model, empty, stack, stacks[stack], device)
            continue
        if tensor != WEIGHT or layer not in layers:
            plain = plain_tensor(model, name)
            renamed = apart(empty, name, plain) if empty is not None and plain.ndim < 3 else {name: plain}
            yield from ((key, value, key == name) for key, value in renamed.items())
            continue
        module = model.get_submodule(layer)
        if (first := _first_of_tied(layer, model, layers)) != layer:
            if not torch.equal(plain_tensor(model, name), plain_tensor(model, f"{first}.{WEIGHT}")):
                raise ValueError(f"'{layer}' and '{first}' share a weight, so they need the same grid")
            continue
        for key, value in _pack_layer(layer, module, layers[layer], of_layers[layer], device).items():
            yield f"{layer}.{key}", value, False


def quantization_config(model: nn.Module) -> dict[str, Any]:
    """The value of ``quantization_config`` that ``pack`` returns."""
    of_layers, stacks = schemes.of_layers(model, quantized(model)), quantized_stacks(model)
    of_experts = {name: schemes.of_layer({WEIGHT: quantizer}) for name, quantizer in stacks.items()}
    floats = routers(outline(model), stacks) if stacks else []
    return schemes.quantization_config(model, of_layers, list(of_experts.values()), floats)


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


def before(module: nn.Module, tensor: str, quantizer: Quantizer) -> Tensor:
    """The weight that ``quantizer`` reads, in float32: the latent weight after the attachments before it."""
    chain = _attachments(module, tensor)
    weight: Tensor = chain.original.float()  # 16 bits do not hold a mean of what has 16 bits
    for attachment in chain:
        if attachment is quantizer:
            break
        weight = attachment(weight)
    return weight


def _attachments(module: nn.Module, tensor: str) -> parametrize.ParametrizationList:
    chain = module.get_submodule(f"parametrizations.{tensor}")
    assert isinstance(chain, parametrize.ParametrizationList)
    return chain


def _chain(module: nn.Module, tensor: str, device: torch.device | None) -> parametrize.ParametrizationList:
    """The attachments on a weight, and what is beneath them: copies on ``device``, if that has room."""
    chain = _attachments(module, tensor)
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


@torch.no_grad()
def _pack_layer(
    name: str,
    module: nn.Module,
    quantizers: Mapping[str, Quantizer],
    scheme: "QuantizationScheme",
    device: torch.device | None,
) -> dict[str, Tensor]:
    """Packed integers and scales of one layer, and the scale of its inputs where that is fixed."""
    weight, grid = _on_grid(module, WEIGHT, quantizers[WEIGHT], device)
    packed = _pack_matrix(name, weight, grid, quantizers[WEIGHT], scheme)
    activation = quantizers.get(INPUT)
    if activation is not None and not activation.dynamic:
        packed[INPUT_SCALE] = activation.grid(weight).scale
    return packed


@torch.no_grad()
def _pack_experts(
    model: nn.Module, empty: "PreTrainedModel", place: Place, quantizer: Quantizer, device: torch.device | None
) -> Iterator[tuple[str, Tensor, bool]]:
    """Name and packed tensors of every expert in a stack, as ``packed_tensors`` gives them."""
    stack, grid = _on_grid(model.get_submodule(place.module), place.tensor, quantizer, device)
    weights, scales = (apart(empty, f"{place.module}.{place.tensor}", tensor) for tensor in (stack, grid.scale))
    scheme = schemes.of_layer({WEIGHT: quantizer})
    for name, weight in weights.items():
        layer = name.removesuffix(f".{WEIGHT}")
        scale = scales[name].view(len(weight), -1)  # transformers 5.17 drops dimensions of one entry
        for key, value in _pack_matrix(layer, weight.contiguous(), Grid(scale), quantizer, scheme).items():
            yield f"{layer}.{key}", value, False


def _on_grid(module: nn.Module, tensor: str, quantizer: Quantizer, device: torch.device | None) -> tuple[Tensor, Grid]:
    """A weight with its attachments folded in, in float32, and the grid that it is on."""
    chain = _chain(module, tensor, device)
    weight: Tensor = chain.original.detach().float()  # 16 bits do not hold every point of a grid of 8
    for attachment, here in zip(_attachments(module, tensor), chain, strict=True):
        if attachment is quantizer:
            assert isinstance(here, Quantizer)
            grid = here.grid(weight)
        weight = here(weight)
    return weight, grid


def _pack_matrix(
    name: str, weight: Tensor, grid: Grid, quantizer: Quantizer, scheme: "QuantizationScheme"
) -> dict[str, Tensor]:
    """Packed integers and scales of a matrix, the scales in the smallest type that unpacks to the very same weight."""
    from compressed_tensors.compressors import BaseCompressor

    compressor = BaseCompressor.get_value_from_registry(str(scheme.format))
    exact = {WEIGHT: weight, SCALE: grid.scale} | ({} if grid.zero is None else {ZERO: grid.zero})
    packed: dict[str, Tensor] = compressor.compress(exact, scheme)
    packed[SCALE] = grid.scale.float()
    on_grid = compressor.decompress(packed, scheme)[WEIGHT].float()
    if torch.equal(on_grid, weight):
        short = {**packed, SCALE: grid.scale.bfloat16()}
        return short if torch.equal(compressor.decompress(short, scheme)[WEIGHT].float(), on_grid) else packed
    raise ValueError(
        f"layer '{name}' is off the grid of its {quantizer.bits}-bit quantizer, so packing would change it: "
        "nothing but masks may follow a quantizer, and its grid must be exact in float32"
    )
