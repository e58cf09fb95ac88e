"""What tells the rows of a batch apart: a digest of their tokens, whatever batch, epoch or run they come in."""

from hashlib import blake2b

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from slimexp.loss.base import IGNORE
from slimexp.model.base import Batch

Keys = NDArray[np.uint64]


def row_keys(batch: Batch) -> Keys:
    """Keys of a batch's rows, [B]: 64 bits of a digest of what a model reads of them and is asked, without padding.

    Args:
        batch: Inputs and labels on the host, as a family encodes or packs them.
    """
    mask = batch.get("attention_mask")
    inputs = [batch["input_ids"], *([batch["position_ids"]] if "position_ids" in batch else [])]
    lengths = torch.full((len(inputs[0]),), inputs[0].shape[1]) if mask is None else mask.sum(1)
    labels = batch["labels"] if batch["labels"].ndim > 1 else batch["labels"][:, None]
    ends = _ends(labels)
    rows = zip(lengths.tolist(), ends.tolist(), strict=True)
    keys = [
        _digest([*(tensor[row, :length] for tensor in inputs), labels[row, :end]])
        for row, (length, end) in enumerate(rows)
    ]
    return np.array(keys, dtype=np.uint64)


def label_mask(batch: Batch) -> Tensor:
    """Which labels of a batch count: bool, of their shape."""
    return batch["labels"] != IGNORE


def _ends(labels: Tensor) -> Tensor:
    """One past the last label that counts, of every row."""
    places = torch.arange(1, labels.shape[1] + 1)
    return torch.where(labels != IGNORE, places, 0).amax(1)


def _digest(tensors: list[Tensor]) -> int:
    hasher = blake2b(digest_size=8)
    for tensor in tensors:
        hasher.update(len(tensor).to_bytes(4, "little") + tensor.to(torch.int32).numpy().tobytes())
    return int.from_bytes(hasher.digest(), "little")
