"""Models written to a folder: the weights that plain transformers loads, and those that training resumes from."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from slimexp.format.pack import is_fixed, pack, plain_state
from slimexp.model.reading import without_bars
from slimexp.quantizer.base import Quantizer
from slimexp.weight.attachment import attached


def save_weights(model: PreTrainedModel, folder: Path, dtype: torch.dtype) -> None:
    """Write config, weights and generation settings as plain transformers loads them; ``model`` stays as it is.

    Args:
        model: With its attachments: quantized weights are packed, masks applied.
        folder: An existing folder.
        dtype: Type of the stored floating-point weights.

    Raises:
        ValueError: A weight is beyond the range of ``dtype``, or a grid does not survive packing.
    """
    if any(isinstance(attachment, Quantizer) for _, attachment in attached(model)):
        _save_packed(model, folder, dtype)
        return
    plain = folded(model)
    _check_range(plain.state_dict(), dtype)
    nn.Module.to(plain, dtype)
    with without_bars():
        plain.save_pretrained(folder)


def folded(model: PreTrainedModel) -> PreTrainedModel:
    """A plain copy of ``model`` with its attachments applied to the weights."""
    plain = _plain_class(model)(model.config)
    plain.load_state_dict(plain_state(model), strict=False)  # tied weights are in it once
    plain.tie_weights()
    if model.can_generate():
        plain.generation_config = model.generation_config
    return plain.eval()


def _save_packed(model: PreTrainedModel, folder: Path, dtype: torch.dtype) -> None:
    state, quantization = pack(model)
    _check_range({name: t for name, t in state.items() if not is_fixed(name, t)}, dtype)
    cast = {name: t if is_fixed(name, t) else t.to(dtype) for name, t in state.items()}
    save_file(
        {name: t.contiguous() for name, t in cast.items()}, folder / "model.safetensors", metadata={"format": "pt"}
    )
    model.config.save_pretrained(folder)
    if model.can_generate():
        model.generation_config.save_pretrained(folder)
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config |= {"quantization_config": quantization, "dtype": str(dtype).removeprefix("torch.")}
    config["architectures"] = [_plain_class(model).__name__]
    path.write_text(json.dumps(config, indent=2) + "\n")


def _check_range(state: Mapping[str, Tensor], dtype: torch.dtype) -> None:
    """Refuse weights beyond the range of ``dtype``, before they are infinite in a file.

    Raises:
        ValueError: A weight is finite and beyond the range; the message names the first.
    """
    most = torch.finfo(dtype).max
    for name, tensor in state.items():
        if not tensor.is_floating_point() or tensor.dtype.itemsize <= 1 or not tensor.numel():
            continue
        largest = float(tensor.abs().max())
        if most < largest < math.inf:
            kind = str(dtype).removeprefix("torch.")
            raise ValueError(
                f"'{name}' holds {largest:.4g}, and {kind} at most {most:.0f}: set save_dtype=bfloat16 or float32"
            )


def save_training(model: PreTrainedModel, path: Path) -> None:
    """Write the latent weights and the state of the attachments, what ``restore`` reads.

    Every tensor is stored once, by the first of its names: ``safetensors.torch.save_model`` lists the others in an
    order that differs from call to call, and so does the file's digest.
    """
    state = model.state_dict()
    first: dict[Any, str] = {}
    for name in sorted(state):
        tensor = state[name]
        place = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype) if tensor.numel() else name
        first.setdefault(place, name)
    save_file({name: state[name].contiguous() for name in first.values()}, path)


def _plain_class(model: nn.Module) -> type:
    """The class before parametrizations changed it."""
    return next(c for c in type(model).__mro__ if c.__module__.startswith("transformers"))
