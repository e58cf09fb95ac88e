"""Disk: megabytes of the files that are deployed."""

import tempfile
from pathlib import Path

import torch

from slimexp.budget.base import Budget, Cost, SearchSpace
from slimexp.model.tokenizer import save_tokenizer

MB = 1e6
_PER_TENSOR = 120  # bytes of an entry in a safetensors header beside the name: type, shape, offsets


class Disk(Budget):
    """Bytes of weights, config and tokenizer as the artifact of this stage holds them (``disk_mb`` of measure size).

    Later stages may store them in fewer bits. Names of all tensors of the whole model are counted, so that the artifact
    is some kilobytes smaller than the cost.

    Args:
        megabytes: The largest size allowed, in 10^6 bytes.
        dtype: Name of the torch type of the stored weights.
    """

    unit = "MB"

    def __init__(self, *, megabytes: float, dtype: str) -> None:
        if not megabytes > 0:
            raise ValueError(f"budget.megabytes must be > 0, got {megabytes}")
        if not isinstance(kind := getattr(torch, dtype, None), torch.dtype):
            raise ValueError(f"budget.dtype must be a torch type such as bfloat16, got '{dtype}'")
        self.limit = megabytes
        self.bytes_per_weight = kind.itemsize

    def cost(self, space: SearchSpace) -> Cost:
        model = space.family.model
        with tempfile.TemporaryDirectory() as folder:
            save_tokenizer(space.family.tokenizer, Path(folder))
            model.config.save_pretrained(folder)
            if model.can_generate():
                model.generation_config.save_pretrained(folder)
            files = sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())
        header = sum(len(name) + _PER_TENSOR for name, _ in model.named_parameters())
        return lambda shape: (space.count(shape) * self.bytes_per_weight + files + header) / MB
