"""Sensitivity of each layer to pruning: the loss on held-out text with one layer pruned at a time, without training."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import ClassVar

import torch
from torch import Tensor, nn

from slimexp.data.base import Corpus, Direction
from slimexp.host.out_of_memory import halving
from slimexp.host.progress import counted
from slimexp.importance.base import Calibrated, Importance
from slimexp.loss.base import IGNORE, Loss, Outputs
from slimexp.measure.base import Measure, Subject, spread, untouched
from slimexp.model.base import Batch, Family, Text
from slimexp.record.figures import OF_LAYER
from slimexp.weight.mask import keep_mask


class Sensitivity(Measure):
    """``sensitivity_nats/<layer>``: see ``sensitivity``, on rows of the validation split, never of the test split.

    A pruned model gets further zeros; of a quantized one, dequantized weights are set to zero.

    Args:
        sparsity: Share of a layer's weights that is set to zero, of those that are not zero yet; in (0, 1).
        rows: Number of rows of text, spread evenly over the split.
        batch_size: Number of rows at once.
        seed: Seed of the choice of rows: not the run's seed, so that runs compare on the same rows.
        importance: Scores the weights without calibration; the highest stay.
        loss: The loss whose increase is measured, in nats.
    """

    directions: ClassVar[Mapping[str, Direction]] = {f"sensitivity_nats{OF_LAYER}*": "min"}

    def __init__(
        self, *, sparsity: float, rows: int, batch_size: int, seed: int, importance: Importance, loss: Loss
    ) -> None:
        if not 0 < sparsity < 1:
            raise ValueError(f"sparsity must be in (0, 1), got {sparsity}")
        for name, value in (("rows", rows), ("batch_size", batch_size)):
            if value < 1:
                raise ValueError(f"{name} must be >= 1, got {value}")
        if loss.compares_blocks:
            raise ValueError(f"loss must be in nats, and {type(loss).__name__} is not: choose kl or cross_entropy")
        if isinstance(importance, Calibrated):
            name = type(importance).__name__
            raise ValueError(f"importance must score by weights alone, {name} reads training text: use magnitude")
        self.sparsity = sparsity
        self.rows = rows
        self.batch_size = batch_size
        self.seed = seed
        self.importance = importance
        self.loss = loss

    def measure(self, subject: Subject, baseline: Subject, corpus: Corpus) -> dict[str, float]:
        family, held_out = subject.family, corpus.splits["validation"]
        rows = [held_out[i] for i in spread(len(held_out), self.rows, self.seed)]
        texts = [(row.source, row.target, row.label) for row in rows]

        def at(batch_size: int) -> dict[str, float]:
            batches = _batches(family, texts, batch_size)
            with untouched(family.model, seed=self.seed):
                return sensitivity(family, batches, loss=self.loss, importance=self.importance, sparsity=self.sparsity)

        increase = halving(at, self.batch_size, "measure.sensitivity.batch_size")
        return {f"sensitivity_nats{OF_LAYER}{layer}": value for layer, value in increase.items()}


def _batches(family: Family, texts: Sequence[Text], batch_size: int) -> list[Batch]:
    """Batches of at most ``batch_size`` rows, fewer where their logits would be too large."""
    longest = family.encode(texts)["labels"].shape[-1]
    at_once = family.rows_at_once(longest, batch_size)
    return [family.encode(texts[start : start + at_once]) for start in range(0, len(texts), at_once)]


def sensitivity(
    family: Family, batches: Sequence[Batch], *, loss: Loss, importance: Importance, sparsity: float
) -> dict[str, float]:
    """Name of the layer -> increase of the loss when this layer alone is pruned, in the order of the model.

    The scan of Li et al. 2017, "Pruning filters for efficient ConvNets", section 3.2, for single weights. It does not
    see how layers interact: the increase of two pruned layers is in general not the sum of the single ones.

    Args:
        family: The model, in eval mode; it stays as it is.
        batches: Held-out text, on any device.
        loss: The loss whose increase is measured; the teacher of one that needs it is the model before pruning.
        importance: Scores the weights.
        sparsity: Share of the layer's weights that is set to zero, of those that are not zero yet; in [0, 1).

    Raises:
        ValueError: The weights of a layer are not plain floats.
    """
    teacher_outputs = [_outputs(family, batch, loss) if loss.needs_teacher else None for batch in batches]
    dense = mean_loss(family, batches, loss=loss, teacher_outputs=teacher_outputs)
    increase = {}
    for name, layer in counted(family.compressible().items(), "layer"):
        weight = _weight(name, layer)
        alive = int(torch.count_nonzero(weight)) / weight.numel()
        increase[name] = 0.0  # a layer that is all zeros cannot be pruned
        if alive:
            with pruned(family, importance=importance, sparsity={name: 1 - (1 - sparsity) * alive}):
                increase[name] = mean_loss(family, batches, loss=loss, teacher_outputs=teacher_outputs) - dense
    return increase


def mean_loss(
    family: Family, batches: Sequence[Batch], *, loss: Loss, teacher_outputs: Sequence[Outputs | None] | None = None
) -> float:
    """Mean loss of a model per real token.

    Args:
        family: The model.
        batches: Batches of text, on any device.
        loss: The loss.
        teacher_outputs: Outputs of a teacher for every batch; ``None`` for a loss without a teacher.
    """
    total, tokens = 0.0, 0
    for batch, teacher in zip(batches, teacher_outputs or [None] * len(batches), strict=True):
        real = int((batch["labels"] != IGNORE).sum())
        outputs = _outputs(family, batch, loss)
        with torch.inference_mode():
            total += real * float(loss(outputs, teacher, batch["labels"].to(outputs.logits.device), 1.0).mean())
        tokens += real
    return total / max(tokens, 1)


@contextmanager
def pruned(family: Family, *, importance: Importance, sparsity: Mapping[str, float]) -> Iterator[None]:
    """Prune layers in one shot; their weights are restored at the end.

    Args:
        family: The model.
        importance: Scores the weights; the highest stay.
        sparsity: Layer -> share of its weights that is zero, in [0, 1).

    Raises:
        ValueError: There is no such layer, its weights are not plain floats, or a share is out of range.
    """
    layers = family.compressible()
    if unknown := sparsity.keys() - layers.keys():
        raise ValueError(f"no compressible layer '{min(unknown)}'; there are {', '.join(list(layers)[:3])}, ...")
    if wrong := {name: share for name, share in sparsity.items() if not 0 <= share < 1}:
        raise ValueError(f"sparsity must be in [0, 1), got {wrong}")
    saved: dict[str, Tensor] = {}
    try:
        with torch.no_grad():
            for name, share in sparsity.items():
                weight = _weight(name, layers[name])
                saved[name] = weight.detach().clone()
                keep = weight.numel() - round(share * weight.numel())
                weight.mul_(keep_mask(importance.score(weight.detach()).float(), keep, weight == 0))
        yield
    finally:
        with torch.no_grad():
            for name, weight in saved.items():
                _weight(name, layers[name]).copy_(weight)


@torch.inference_mode()
def _outputs(family: Family, batch: Batch, loss: Loss) -> Outputs:
    on_device = {name: tensor.to(family.device) for name, tensor in batch.items()}
    return Outputs(*family.forward(on_device, hidden=loss.needs_hidden))


def _weight(name: str, layer: nn.Module) -> Tensor:
    """The weight of the layer, a plain float tensor."""
    weight = dict(layer.named_parameters(recurse=False)).get("weight")
    if weight is None or not weight.is_floating_point():
        raise ValueError(
            f"the weights of layer '{name}' are packed or carry a mask or a quantizer: only a model with plain "
            "weights, or one that slimexp saved and loaded again, can be pruned layer by layer"
        )
    return weight
