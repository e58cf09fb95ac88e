"""The state that training resumes from: the attachments of a manifest on their model, over the latent weights."""

import json
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from slimexp.file.bounded import one_line, require_file
from slimexp.model.reading import check_checkpoint
from slimexp.quantizer.base import Quantizer
from slimexp.serialization.manifest import WAY_OUT
from slimexp.serialization.shards import Reader
from slimexp.weight.attachment import INPUT, Attachment, Place, attach, attached
from slimexp.weight.mask import unpacked_bits

_TYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}

_NAMES = {str(dtype).removeprefix("torch."): dtype for dtype in _TYPES.values()}
METADATA = "slimexp"  # one entry of JSON, since safetensors writes several in an order that differs from call to call
DTYPE, DEPLOYED = "dtype", "deployed"  # in it: type of the weights, and those not stored again


def restore(model: nn.Module, rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Put attachments on ``model`` and load the latent weights beneath them.

    Args:
        model: The model, with weights of any values.
        rows: ``attachments`` of a manifest that ``manifest.read`` checked.
        path: The ``training.safetensors`` beside it.

    Raises:
        ValueError: A row or a tensor does not fit the model, or the file is missing or damaged.
    """
    modules = dict(model.named_modules())
    for number, row in enumerate(rows):
        place = Place(row["module"], row["tensor"])
        try:
            _check_place(modules.get(place.module), place.tensor, row)
        except Exception as error:  # an attachment is tried on its weight at once, where anything may not fit
            raise ValueError(
                f"'{path.parent}': attachments[{number}] of its manifest, {row['class']}, must fit '{place.tensor}' of "
                f"'{place.module}' ({one_line(error)}): {WAY_OUT}"
            ) from error
    try:
        require_file(path)
        _load(model, path)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"'{path}' is missing, damaged or of another model ({one_line(error)}): {WAY_OUT}") from error
    check_checkpoint(model.named_parameters(), path)
    for place, attachment in attached(model):
        if isinstance(attachment, Quantizer):
            _check_grid(model, place, attachment, path)


def _load(model: nn.Module, path: Path) -> None:
    """Fill the model from a ``training.safetensors``, and from the deployable weights what that leaves to them."""
    expected = model.state_dict()
    state: dict[str, Tensor] = {}
    with safe_open(path, framework="pt") as file:
        left = _metadata(file).get(DEPLOYED, [])
        for name in file.keys():  # noqa: SIM118 (no mapping)
            tensor = file.get_tensor(name)
            packed = name in expected and expected[name].dtype == torch.bool and tensor.dtype == torch.uint8
            state[name] = unpacked_bits(tensor, expected[name].shape) if packed else tensor
    if left:
        with Reader(path.parent) as deployed:
            for name in deployed:
                if (latent := name if name in expected else latent_name(name)) in left:
                    state[latent] = deployed[name]
    missing, unexpected = model.load_state_dict(state, strict=False)
    filled = {tensor.data_ptr() for name, tensor in expected.items() if name in state}
    lost = [name for name in missing if expected[name].numel() and expected[name].data_ptr() not in filled]
    if lost or unexpected:
        raise ValueError(f"{'it lacks' if lost else 'the model has no'} '{min(lost or unexpected)}'")


def _metadata(file: Any) -> dict[str, Any]:
    """What ``save_training`` says of an opened file; empty where an earlier version wrote it."""
    content: dict[str, Any] = json.loads((file.metadata() or {}).get(METADATA, "{}"))
    return content


def latent_name(name: str) -> str:
    """Name in the state dict of the weight beneath the attachments on the weight ``name``."""
    module, _, tensor = name.rpartition(".")
    return f"{module}.parametrizations.{tensor}.original"


def training_type(path: Path) -> torch.dtype:
    """Type of the latent weights in a ``training.safetensors``: the widest there is; float32 where it has none."""
    try:
        require_file(path)
        with safe_open(path, framework="pt") as file:
            if (named := _metadata(file).get(DTYPE)) in _NAMES:
                return _NAMES[named]
            kinds = {file.get_slice(name).get_dtype() for name in file.keys() if not _is_state(name)}  # noqa: SIM118
    except (OSError, ValueError, SafetensorError):
        return torch.float32  # ``restore`` says what is wrong with the file
    kinds &= _TYPES.keys()
    return _TYPES[kinds.pop()] if len(kinds) == 1 else torch.float32


def _is_state(name: str) -> bool:
    """Whether a tensor is one of an attachment's, not a weight."""
    parts = name.split(".")
    return "input_attachment" in parts or ("parametrizations" in parts and parts[-1] != "original")


def _check_place(module: nn.Module | None, tensor: str, row: Mapping[str, Any]) -> None:
    if module is None:
        raise ValueError("the model has no such module")
    stored = {name for name, parameter in module._parameters.items() if parameter is not None}
    if tensor != INPUT and tensor not in stored | set(getattr(module, "parametrizations", ())):
        raise ValueError("the module has no such tensor")
    shape = row["arguments"].get("shape")
    if shape is not None and (tensor == INPUT or shape != list(getattr(module, tensor).shape)):
        raise ValueError(f"it is of shape {shape}")
    name, _, kind = row["class"].rpartition(".")
    attachment: Attachment = getattr(import_module(name), kind)(**row["arguments"])
    if tensor == INPUT and not (isinstance(attachment, Quantizer) and attachment.on_activations):
        raise ValueError("it is not for inputs")
    attach(module, tensor, attachment, tried=True)


def _check_grid(model: nn.Module, place: Place, quantizer: Quantizer, path: Path) -> None:
    """Refuse scales that are not finite, or not one for every group of a weight or one for an input."""
    shape = torch.Size([1])
    if place.tensor != INPUT:
        weight = model.get_parameter(f"{place.module}.parametrizations.{place.tensor}.original")
        shape = quantizer.granularity.split(weight).shape[:-1]
    for name, tensor in [*quantizer.named_buffers(), *quantizer.named_parameters()]:
        fits = tensor.shape == shape if name in ("scale", "zero") else tensor.numel() == shape.numel()
        if not fits or not tensor.isfinite().all() or (name == "scale" and not tensor.all()):
            raise ValueError(
                f"'{path}': '{name}' of the {type(quantizer).__name__} at '{place.tensor}' of '{place.module}' must be "
                f"finite and of shape {list(shape)}, got {list(tensor.shape)}: {WAY_OUT}"
            )
