"""A compressed model as it is served: its quantized layers on the kernels that are fastest here."""

import hashlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel

from slimexp.decode.fused import TYPES
from slimexp.decode.packed_linear import PackedLinear
from slimexp.file import integrity
from slimexp.file.bounded import one_line, read_object
from slimexp.kernel.autotune import replace_layers
from slimexp.kernel.base import ACTIVATION_BITS, FLOAT8, Kernel, Packed
from slimexp.kernel.scaled_mm import ScaledMM
from slimexp.model.base import Family
from slimexp.model.loading import bare, family_of, from_folder
from slimexp.model.reading import check_checkpoint, reach
from slimexp.model.vetting import SHAPES_MODEL, damaged, vet
from slimexp.serialization import manifest
from slimexp.serialization.experts import holds_experts
from slimexp.serialization.pack import SCALE
from slimexp.serialization.scheme import WEIGHT
from slimexp.serialization.shards import Reader, has_weights
from slimexp.serialization.unpack import unpacked

_WAY_OUT = "get the model anew"
_FORMATS = {"int-quantized", "pack-quantized", "float-quantized", "mixed-precision"}


def served(
    folder: str | Path,
    task: str,
    max_length: int,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Family:
    """A family from a model folder, its packed numbers multiplied as they are.

    Each layer runs on the fastest kernel (``kernel.autotune``); on a GPU, those of Llama-like models lie as the decode
    loop reads them. Weights that are not quantized, and models that no kernel here can run (``refusal``), are as
    ``from_folder`` loads them. No quantized layer exists as floats meanwhile.

    Args:
        folder: A model folder in the hub's format.
        task: The corpus task that the model serves.
        max_length: Longest sequence in tokens.
        device: Device that the model runs on.
        dtype: Type of the weights that are not quantized, and of the activations between layers.
    """
    folder, device = Path(folder), torch.device(device)
    vet(folder)
    if refusal(folder) is None and device.type in ("cpu", "cuda"):
        family = family_of(_packed(folder, task, max_length, device, dtype), folder, task, max_length)
    else:
        family = from_folder(folder, task, max_length, dtype=dtype, device=device)
    nn.Module.to(family.model, device)
    return family


def weights_digest(folder: Path) -> str:
    """Digest of what ``served`` reads: the same wherever the model lies, and whatever was done to make it.

    Files that say how a model was made, and what training goes on from, are left out.
    """
    beside = {manifest.NAME, manifest.TRAINING}
    files = [path for path in folder.iterdir() if path.suffix in SHAPES_MODEL and path.name not in beside]
    integrity.take_digests(files)
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(path.name.encode() + bytes.fromhex(integrity.digest(path)))
    return digest.hexdigest()


def stored_type(folder: Path) -> torch.dtype:
    """Type of the floating-point weights in ``folder``, by its config; float32 where the config has none."""
    config = read_object(folder / "config.json")
    dtype = getattr(torch, str(config.get("dtype") or config.get("torch_dtype")), None)
    return dtype if isinstance(dtype, torch.dtype) and dtype.is_floating_point else torch.float32


def _packed(
    folder: Path, task: str, max_length: int, device: torch.device, dtype: torch.dtype = torch.float32
) -> PreTrainedModel:
    make, config = bare(folder, task, max_length)
    try:
        layers = unpacked(folder)
        floats = _floats(folder, layers, dtype)
    except SafetensorError as error:
        raise damaged(folder, error) from error
    except Exception as error:  # tensors that are not what quantization_config says fail in every way
        raise ValueError(f"model '{folder}': its packed weights are damaged ({one_line(error)}): {_WAY_OUT}") from error
    scales = ((f"{name}.{SCALE}", packed.scale) for name, packed in layers.items())
    numbers = ((f"{name}.{WEIGHT}", packed.numbers) for name, packed in layers.items())
    check_checkpoint([*floats.items(), *scales, *numbers], folder)
    with init_empty_weights(include_buffers=False):  # buffers, as of positions, are in no file
        model = make(config).requires_grad_(False)
    _check_shapes(model, floats, layers, folder)
    linear = {name: packed for name, packed in layers.items() if isinstance(model.get_submodule(name), nn.Linear)}
    decodes = device.type == "cuda" and config.model_type in TYPES
    read = _read_by_decoding(linear, device) if decodes else None
    if read is None:
        replace_layers(model, {name: packed.to(device) for name, packed in linear.items()}, dtype)
    else:
        for name, packed in linear.items():
            model.set_submodule(name, kernel := read[name](packed))
            if isinstance(kernel, ScaledMM):
                kernel.label += ", decoding with inputs in float"
    floats |= {
        f"{name}.weight": packed.weight().to(dtype) for name, packed in layers.items() if name not in linear
    }  # embeddings
    model.load_state_dict(floats, strict=False, assign=True)  # tied weights are in it once
    model.tie_weights()
    if missing := [name for name, tensor in model.named_parameters() if tensor.is_meta]:
        raise ValueError(f"'{folder}' lacks {', '.join(missing[:3])}: it is not whole, save it again")
    if model.can_generate():
        model.generation_config = reach(GenerationConfig, folder)
    return model.eval()


def _check_shapes(
    model: PreTrainedModel, floats: Mapping[str, Tensor], layers: Mapping[str, Packed], folder: Path
) -> None:
    """Refuse tensors that the model does not have, or has in another shape."""
    expected = {name: tensor.shape for name, tensor in model.state_dict().items()}
    stored = {f"{name}.weight": packed.numbers.shape for name, packed in layers.items()}
    stored |= {f"{name}.bias": packed.bias.shape for name, packed in layers.items() if packed.bias is not None}
    stored |= {name: tensor.shape for name, tensor in floats.items() if name in expected}
    for name, shape in stored.items():
        if expected.get(name) != shape:
            raise ValueError(
                f"model '{folder}': '{name}' must have shape {list(expected.get(name, ()))} by its config.json, got "
                f"{list(shape)}: {_WAY_OUT}"
            )
    for name, packed in layers.items():
        rows, columns = packed.numbers.shape
        for grid in (packed.scale, packed.zero):
            if grid is not None and (grid.ndim != 2 or grid.shape[0] != rows or columns % max(grid.shape[1], 1)):
                raise ValueError(
                    f"model '{folder}': '{name}' must have a scale for each row or group, got {list(grid.shape)}: "
                    f"{_WAY_OUT}"
                )


def _read_by_decoding(layers: Mapping[str, Packed], device: torch.device) -> dict[str, type[Kernel]] | None:
    """Name -> kernel that the decode loop reads the layer as; ``None`` unless it reads all layers."""
    read: dict[str, type[Kernel]] = {
        name: ScaledMM if packed.numbers.dtype == FLOAT8 else PackedLinear for name, packed in layers.items()
    }
    return read if all(kernel.refusal(layers[name], device) is None for name, kernel in read.items()) else None


def _floats(folder: Path, layers: Collection[str], dtype: torch.dtype) -> dict[str, Tensor]:
    """Every tensor that belongs to none of ``layers``, floating-point ones in ``dtype``."""
    with Reader(folder) as file:
        state = {name: file[name] for name in file if name.rpartition(".")[0] not in layers}
    return {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in state.items()}


def refusal(folder: Path) -> str | None:
    """Why the layers in ``folder`` cannot run as they are packed; ``None`` if they can."""
    config = read_object(folder / "config.json").get("quantization_config")
    if config is None:
        return "its weights are floats"
    if config.get("quant_method") != "compressed-tensors":
        return f"its format is {config.get('quant_method')}, not compressed-tensors"
    if not has_weights(folder):
        return "its weights are in no safetensors file"
    if holds_experts(folder):
        return "experts among its packed weights are multiplied together, by no kernel here"
    try:
        return _format_refusal(config)
    except (AttributeError, KeyError, TypeError) as error:  # settings that are missing or of another type
        return f"what it says of its format is damaged ({type(error).__name__}: {one_line(error)})"


def _format_refusal(config: dict[str, Any]) -> str | None:
    groups = list(config["config_groups"].values())
    kinds = {config["format"], *(group.get("format") or config["format"] for group in groups)}
    if strange := kinds - _FORMATS:
        return f"its weights are stored as {', '.join(sorted(strange))}, not as {', '.join(sorted(_FORMATS))}"
    targets = [target for group in groups for target in group["targets"]]
    if len(groups) > 1 and any(target.startswith("re:") or hasattr(nn, target) for target in targets):
        return "which of its formats a layer has is told by patterns or classes, not by names"
    return next((why for group in groups if (why := _group_refusal(group))), None)


def _group_refusal(group: dict[str, Any]) -> str | None:
    weights, inputs = group["weights"], group.get("input_activations")
    kind = weights.get("type", "int")
    if weights["strategy"] not in ("tensor", "channel", "group"):
        return f"its weights are rounded per {weights['strategy']}, not per tensor, channel or group"
    if kind == "float" and weights["num_bits"] != 8:
        return f"its weights are floats of {weights['num_bits']} bits, not of 8"
    if weights.get("actorder"):
        return "its weights are reordered"
    if group.get("output_activations") is not None:
        return "its outputs are rounded"
    if inputs is None:
        return None
    if inputs.get("type", "int") != kind:
        return f"its weights are {kind}s and its inputs {inputs.get('type', 'int')}s"
    if inputs["num_bits"] != ACTIVATION_BITS or not inputs.get("symmetric", True):
        return f"its inputs are rounded to {inputs['num_bits']} bits, symmetric: {inputs.get('symmetric', True)}"
    if inputs["strategy"] != ("token" if inputs.get("dynamic") else "tensor"):
        return f"its inputs are rounded per {inputs['strategy']}"
    return None
