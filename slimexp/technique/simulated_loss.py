"""The loss of a smaller model before it is cut: of the whole one with units masked and blocks skipped."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from slimexp.cut.constraints import ScopeIndices
from slimexp.cut.simulate import simulated
from slimexp.data.base import Corpus
from slimexp.loss.base import IGNORE
from slimexp.model.base import Batch, Family
from slimexp.technique.batches import training_batches

ROWS_AT_ONCE, TOKENS_AT_ONCE = 16, 4096  # logits of a large vocabulary outweigh the model


class SimulatedLoss:
    """Cross-entropy per token on training text.

    Args:
        family: The whole model; it stays as it is.
        corpus: The text.
        rows: Number of its rows.
        seed: Seed of their order.
    """

    def __init__(self, family: Family, corpus: Corpus, *, rows: int, seed: int) -> None:
        self._family = family
        at_once = min(rows, ROWS_AT_ONCE, max(1, TOKENS_AT_ONCE // family.max_length))
        batches = training_batches(
            corpus, family, batch_size=at_once, seed=seed, start=0, stop=-(-rows // at_once), workers=0
        )
        self._batches = [{name: tensor.to(family.device) for name, tensor in batch.items()} for batch in batches]

    @torch.inference_mode()
    def __call__(self, layers: Mapping[str, Sequence[int]], retained: Mapping[str, ScopeIndices]) -> float:
        """Loss of what ``remove(family, layers, retained)`` would give."""
        with simulated(self._family, layers, retained):
            return sum(float(cross_entropy(self._family, batch)) for batch in self._batches) / len(self._batches)


def cross_entropy(family: Family, batch: Batch) -> Tensor:
    """Cross-entropy, the mean over the labels that count."""
    logits, _ = family.forward(batch)
    return functional.cross_entropy(logits.flatten(0, -2).float(), batch["labels"].flatten(), ignore_index=IGNORE)
