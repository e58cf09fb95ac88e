"""Models written to a folder: the weights that plain transformers loads, and those that training resumes from."""

import copy
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion
from transformers.modeling_utils import remove_tied_weights_from_state_dict

from slimexp.model.restore import DEPLOYED, DTYPE, METADATA, latent_name
from slimexp.quantizer.base import Quantizer
from slimexp.serialization.pack import (
    is_fixed,
    latents,
    packed_tensors,
    plain_tensor,
    quantization_config,
)
from slimexp.serialization.shards import Reader, Writer
from slimexp.weight.attachment import attached
from slimexp.weight.mask import Mask, packed_bits

MAX_SHARD = 2_000_000_000  # bytes: while a file is brought to the disk, and its digest taken, the next one is written
_BLOCK = re.compile(r".*?\.\d+\.")  # of a tensor's name: up to the number of its block


def save_weights(
    model: PreTrainedModel,
    folder: Path,
    dtype: torch.dtype,
    *,
    device: torch.device | None = None,
    max_shard_bytes: int = MAX_SHARD,
) -> None:
    """Write config, weights and generation settings as plain transformers loads them; ``model`` stays as it is.

    Tensors are folded, packed, cast and written one after another, so that no second model is held.

    Args:
        model: With its attachments: quantized weights are packed, masks applied.
        folder: An existing folder.
        dtype: Type of the stored floating-point weights.
        device: Where quantized weights are packed; ``None`` for where the model is.
        max_shard_bytes: Most bytes of a file of weights; a larger model is written in shards with an index.

    Raises:
        ValueError: A weight is beyond the range of ``dtype``, or a grid does not survive packing.
    """
    packs = any(isinstance(attachment, Quantizer) for _, attachment in attached(model))
    tensors = packed_tensors(model, device) if packs else _plain_tensors(model)
    names = 4 * sum(1 for _ in model.named_parameters())
    with Writer(folder, max_bytes=max_shard_bytes, names=names) as writer:
        for name, tensor in tensors:
            if tensor.is_floating_point() and not (packs and is_fixed(name, tensor)):
                _check_range(name, tensor, dtype)
                tensor = tensor.to(dtype)
            writer.add(name, tensor)
    _save_settings(model, folder, dtype, quantization_config(model) if packs else None)


def _plain_tensors(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """Name and tensor, one by one, that ``save_pretrained`` would write of it without attachments.

    transformers renames, splits and stacks weights when it loads some architectures, and undoes that when it saves;
    what belongs together is in one block.
    """
    with init_empty_weights():
        plain: PreTrainedModel = _plain_class(model)(copy.deepcopy(model.config))
    blocks: dict[str, list[str]] = {}
    for name in remove_tied_weights_from_state_dict(latents(model), plain):
        if name not in (plain._keys_to_ignore_on_save or ()):
            blocks.setdefault(match[0] if (match := _BLOCK.match(name)) else name, []).append(name)
    for names in blocks.values():
        yield from revert_weight_conversion(plain, {name: plain_tensor(model, name) for name in names}).items()


def _save_settings(model: PreTrainedModel, folder: Path, dtype: torch.dtype, quantization: Any) -> None:
    """Write ``config.json`` and the generation settings."""
    config = copy.deepcopy(model.config)
    config.dtype, config.architectures = dtype, [_plain_class(model).__name__]
    config.save_pretrained(folder)
    if model.can_generate():
        model.generation_config.save_pretrained(folder)
    if quantization is not None:
        path = folder / "config.json"
        path.write_text(
            json.dumps(json.loads(path.read_text()) | {"quantization_config": quantization}, indent=2) + "\n"
        )


def _check_range(name: str, tensor: Tensor, dtype: torch.dtype) -> None:
    """Refuse a weight beyond the range of ``dtype``, before it is infinite in a file.

    Raises:
        ValueError: It is finite and beyond the range.
    """
    if tensor.dtype.itemsize <= 1 or tensor.dtype == dtype or not tensor.numel():
        return
    most = torch.finfo(dtype).max
    largest = max(abs(float(end)) for end in tensor.aminmax())
    if most < largest < math.inf:
        kind = str(dtype).removeprefix("torch.")
        raise ValueError(
            f"'{name}' holds {largest:.4g}, and {kind} at most {most:.0f}: set save_dtype=bfloat16 or float32"
        )


def save_training(model: PreTrainedModel, path: Path, deployed: Path | None = None) -> None:
    """Write the latent weights and the state of the attachments, what ``restore`` reads.

    Every tensor is stored once, by the first of its names: ``safetensors.torch.save_model`` lists the others in an
    order that differs from call to call, and so does the file's digest. Masks take a bit for each weight.

    Args:
        model: With its attachments.
        path: The file.
        deployed: Folder with the deployable weights: those that it holds as training has them are not stored again. A
            masked weight counts as such where what the mask leaves is the same: nothing reads what it hides.
    """
    state = model.state_dict()
    first: dict[Any, str] = {}
    for name in sorted(state):
        tensor = state[name]
        place = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype) if tensor.numel() else name
        first.setdefault(place, name)
    there = _deployed_as_they_are(model, deployed) if deployed is not None else set()
    masks = {f"{name}.mask" for name, module in model.named_modules() if isinstance(module, Mask)}
    tensors = {
        name: packed_bits(state[name]) if name in masks else state[name].contiguous()
        for name in first.values()
        if name not in there
    }
    kinds = {tensor.dtype for tensor in latents(model).values() if tensor.is_floating_point()}
    dtype = max(kinds, key=lambda kind: kind.itemsize)
    metadata = {DTYPE: str(dtype).removeprefix("torch."), DEPLOYED: sorted(there)}
    save_file(tensors, path, {METADATA: json.dumps(metadata)})


def _deployed_as_they_are(model: PreTrainedModel, folder: Path) -> set[str]:
    """Names in the state dict of weights that can be read from the deployable files."""
    rounded = {(place.module, place.tensor) for place, item in attached(model) if isinstance(item, Quantizer)}
    state = model.state_dict()
    found: set[str] = set()
    with Reader(folder) as reader:
        for name in reader:
            module, _, tensor = name.rpartition(".")
            latent = name if name in state else latent_name(name)
            if latent not in state or (module, tensor) in rounded:
                continue
            value = plain_tensor(model, name)
            if reader[name].shape == value.shape and torch.equal(reader[name].to(value.device, value.dtype), value):
                found.add(latent)
    return found


def _plain_class(model: nn.Module) -> type:
    """The class before parametrizations changed it."""
    return next(c for c in type(model).__mro__ if c.__module__.startswith("transformers"))
