"""Models written to a folder: the weights that plain transformers loads, and those that training resumes from."""

import copy
import json
import math
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion
from transformers.modeling_utils import remove_tied_weights_from_state_dict

from slimexp.model.restore import DEPLOYED, DTYPE, METADATA, latent_name
from slimexp.quantizer.base import Quantizer
from slimexp.serialization.experts import outline, plain_class
from slimexp.serialization.pack import (
    is_fixed,
    latents,
    packed_tensors,
    plain_tensor,
    quantization_config,
)
from slimexp.serialization.shards import Writer
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
) -> set[str]:
    """Write config, weights and generation settings as plain transformers loads them; ``model`` stays as it is.

    Tensors are folded, packed, cast and written one after another, so that no second model is held.

    Args:
        model: With its attachments: quantized weights are packed, masks applied.
        folder: An existing folder.
        dtype: Type of the stored floating-point weights.
        device: Where quantized weights are packed; ``None`` for where the model is.
        max_shard_bytes: Most bytes of a file of weights; a larger model is written in shards with an index.

    Returns:
        Names of the tensors whose values are those of the model, for ``save_training``.

    Raises:
        ValueError: A weight is beyond the range of ``dtype``, or a grid does not survive packing.
    """
    packs = any(isinstance(attachment, Quantizer) for _, attachment in attached(model))
    tensors = packed_tensors(model, device) if packs else _plain_tensors(model)
    names = 4 * sum(1 for _ in model.named_parameters())
    same = set()
    with Writer(folder, max_bytes=max_shard_bytes, names=names) as writer:
        for name, tensor, is_own in tensors:
            stored = tensor
            if tensor.is_floating_point() and not (packs and is_fixed(name, tensor)):
                _check_range(name, tensor, dtype)
                stored = tensor.to(dtype)
            writer.add(name, stored)
            if is_own and (stored is tensor or torch.equal(stored.to(tensor.dtype), tensor)):
                same.add(name)
    save_settings(model, folder, dtype, quantization_config(model) if packs else None)
    return same


def _plain_tensors(model: PreTrainedModel) -> Iterator[tuple[str, Tensor, bool]]:
    """Name and tensor, one by one, that ``save_pretrained`` would write of it without attachments.

    With each, whether it is the model's tensor of this name: transformers renames, splits and stacks weights when it
    loads some architectures, and undoes that when it saves; what belongs together is in one block.
    """
    plain = outline(model)
    blocks: dict[str, list[str]] = {}
    for name in remove_tied_weights_from_state_dict(latents(model), plain):
        if name not in (plain._keys_to_ignore_on_save or ()):
            blocks.setdefault(match[0] if (match := _BLOCK.match(name)) else name, []).append(name)
    for names in blocks.values():
        own = {name: plain_tensor(model, name) for name in names}
        for name, tensor in revert_weight_conversion(plain, dict(own)).items():
            yield name, tensor, own.get(name) is tensor


def save_settings(model: PreTrainedModel, folder: Path, dtype: torch.dtype, quantization: Any = None) -> None:
    """Write ``config.json`` and the generation settings."""
    config = copy.deepcopy(model.config)
    config.dtype, config.architectures = dtype, [plain_class(model).__name__]
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


def save_training(model: PreTrainedModel, path: Path, deployed: Collection[str] = ()) -> None:
    """Write the latent weights and the state of the attachments, what ``restore`` reads.

    Every tensor is stored once, by the first of its names: ``safetensors.torch.save_model`` lists the others in an
    order that differs from call to call, and so does the file's digest. Masks take a bit for each weight.

    Args:
        model: With its attachments.
        path: The file.
        deployed: What ``save_weights`` returned: weights that are in the deployable files beside it as training has
            them, and are not stored again. A masked one is among them: nothing reads what its mask hides.
    """
    state = model.state_dict()
    first: dict[Any, str] = {}
    for name in sorted(state):
        tensor = state[name]
        place = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype) if tensor.numel() else name
        first.setdefault(place, name)
    there = {latent for name in deployed if (latent := name if name in state else latent_name(name)) in state}
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
