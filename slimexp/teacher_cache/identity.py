"""What tells one teacher from another, and one text: their content, whatever folder they lie in."""

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from slimexp.data.base import Corpus
from slimexp.model.base import Family

_OF_FILES = {"_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version"}


def teacher_digest(family: Family) -> str:
    """Digest of a model's weights, in the type that they have, and of its configuration."""
    tensors = family.model.state_dict()
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        digests = dict(zip(tensors, pool.map(_digest, tensors.values()), strict=True))
    config = {name: value for name, value in family.model.config.to_dict().items() if name not in _OF_FILES}
    content = json.dumps({"weights": digests, "config": config}, sort_keys=True, default=str)
    return hashlib.sha256(content.encode()).hexdigest()


def text_digest(corpus: Corpus) -> str:
    """Digest of the training text of a corpus, before noise."""
    hasher = hashlib.sha256()
    for example in corpus.splits["train"]:
        hasher.update(repr((example.source, example.target, example.label)).encode())
    return hasher.hexdigest()


def _digest(tensor: Tensor) -> str:
    flat = tensor.detach().cpu().contiguous().flatten()
    content: Any = flat.view(torch.uint8).numpy()
    return f"{tensor.dtype} {tuple(tensor.shape)} {hashlib.sha256(content).hexdigest()}"
