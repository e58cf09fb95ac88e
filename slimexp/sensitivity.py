"""How much each layer minds being pruned: one layer at a time, nothing trained, the loss on held-out text."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from slimexp.importance.base import Importance
from slimexp.importance.mask import keep_mask
from slimexp.loss.base import IGNORE, Loss, Outputs
from slimexp.model.base import Batch, Family
from slimexp.technique.coverage import latent


def sensitivity(
    family: Family, batches: Sequence[Batch], *, loss: Loss, importance: Importance, sparsity: float
) -> dict[str, float]:
    """Layer -> by how much the loss grows when this layer alone is pruned.

    The scan of Li et al. 2017, "Pruning filters for efficient ConvNets", section 3.2, for single weights. It does not
    see what layers do together: the growth of two pruned layers is in general not the sum of theirs.

    Args:
        family: The model, in eval mode; it is left as it was.
        batches: Held-out text, on any device.
        loss: What grows; one that reads a teacher is given the model before pruning.
        importance: Scores the weights.
        sparsity: Share of the layer's weights that is set to zero, in [0, 1).
    """
    taught = [_outputs(family, batch, loss) if loss.needs_teacher else None for batch in batches]
    dense = mean_loss(family, batches, loss=loss, taught=taught)
    growth = {}
    for name in family.compressible():
        with pruned(family, importance=importance, sparsity={name: sparsity}):
            growth[name] = mean_loss(family, batches, loss=loss, taught=taught) - dense
    return growth


def mean_loss(
    family: Family, batches: Sequence[Batch], *, loss: Loss, taught: Sequence[Outputs | None] | None = None
) -> float:
    """The loss of a model per real token.

    Args:
        family: The model.
        batches: Text, on any device.
        loss: The loss.
        taught: What a teacher puts out for every batch, where the loss reads one.
    """
    total, tokens = 0.0, 0
    for batch, teacher in zip(batches, taught or [None] * len(batches), strict=True):
        real = int((batch["labels"] != IGNORE).sum())
        outputs = _outputs(family, batch, loss)
        with torch.inference_mode():
            total += real * float(loss(outputs, teacher, batch["labels"].to(outputs.logits.device), 1.0))
        tokens += real
    return total / max(tokens, 1)


@contextmanager
def pruned(family: Family, *, importance: Importance, sparsity: Mapping[str, float]) -> Iterator[None]:
    """Prune layers in one shot; their weights are put back at the end.

    Args:
        family: The model.
        importance: Scores the weights; the highest stay.
        sparsity: Layer -> share of its weights that is zero, in [0, 1).

    Raises:
        ValueError: There is no such layer, or a share is out of range.
    """
    layers = family.compressible()
    if unknown := sparsity.keys() - layers.keys():
        raise ValueError(f"no compressible layer '{min(unknown)}'; there are {', '.join(list(layers)[:3])}, ...")
    if wrong := {name: share for name, share in sparsity.items() if not 0 <= share < 1}:
        raise ValueError(f"sparsity must be in [0, 1), got {wrong}")
    kept: dict[str, Tensor] = {}
    try:
        with torch.no_grad():
            for name, share in sparsity.items():
                weight = latent(layers[name])
                kept[name] = weight.detach().clone()
                keep = weight.numel() - round(share * weight.numel())
                weight.mul_(keep_mask(importance.score(weight.detach()).float(), keep, weight == 0))
        yield
    finally:
        with torch.no_grad():
            for name, weight in kept.items():
                latent(layers[name]).copy_(weight)


@torch.inference_mode()
def _outputs(family: Family, batch: Batch, loss: Loss) -> Outputs:
    on_device = {name: tensor.to(family.device) for name, tensor in batch.items()}
    return Outputs(*family.forward(on_device, hidden=loss.needs_hidden))
