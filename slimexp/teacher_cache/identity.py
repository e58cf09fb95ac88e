"""What tells one teacher from another: its weights and its configuration, whatever folder it lies in."""

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from slimexp.model.base import Family

_OF_FILES = {"_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version"}


def digest(family: Family) -> str:
    """Digest of a model's weights, in the type that they have, and of its configuration."""
    tensors = family.model.state_dict()
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        digests = dict(zip(tensors, pool.map(_digest, tensors.values()), strict=True))
    config = {name: value for name, value in family.model.config.to_dict().items() if name not in _OF_FILES}
    content = json.dumps({"weights": digests, "config": config}, sort_keys=True, default=str)
    return hashlib.sha256(content.encode()).hexdigest()


def _digest(tensor: Tensor) -> str:
    flat = tensor.detach().cpu().contiguous().flatten()
    content: Any = flat.view(torch.uint8).numpy()
    return f"{tensor.dtype} {tuple(tensor.shape)} {hashlib.sha256(content).hexdigest()}"
