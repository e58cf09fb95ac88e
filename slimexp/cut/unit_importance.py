"""Importance of whole units of a model: feed-forward neurons, attention heads and channels.

The importance of a neuron is its mean activation times the norm of the weights that read it (Muralidharan et al. 2024,
"Compact language models via pruning and knowledge distillation", section 2.2); without calibration batches, the norm
alone.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from slimexp.architecture.base import HIDDEN, Architecture, scope
from slimexp.cut.shape import norms, readers
from slimexp.host.progress import counted
from slimexp.model.base import Batch, Family


def activity(family: Family, axes: Iterable[str], batches: Sequence[Batch]) -> dict[str, Tensor]:
    """Layer or norm that reads one of some axes -> mean |input| of its channels, [in]: one pass for all axes.

    Empty without batches.
    """
    modules: dict[str, nn.Module] = {}
    for axis in axes:
        modules |= norms(family.model, HIDDEN) if axis == HIDDEN else readers(family.model, axis)
    return sum_over_batches(
        family, modules if batches else {}, batches, lambda _, inputs: inputs[0].detach().abs().flatten(0, -2).mean(0)
    )


def reader_importance(family: Family, axis: str, activity: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Importance of every input channel of the layers that read an axis: mean |input| times the norm of their weights.

    Args:
        family: The model.
        axis: What the inputs count: neurons, or the channels of heads.
        activity: As the function of this name gives it; empty for the norms alone.

    Returns:
        Layer name -> importance, [in].
    """
    layers = readers(family.model, axis)
    sizes = {
        name: module.get_parameter("weight").detach().norm(dim=1 if isinstance(module, Conv1D) else 0)
        for name, module in layers.items()
    }
    return {name: norm * activity[name] for name, norm in sizes.items()} if activity else sizes


def hidden_importance(family: Family, activity: Mapping[str, Tensor]) -> Tensor:
    """Importance of every channel of the residual stream, [hidden]: its share of mean |input|, summed over the norms.

    Without ``activity``, the norm of the channel's input embeddings.
    """
    if not activity:
        return family.model.get_input_embeddings().weight.detach().norm(dim=0)
    channels = [activity[name] for name in norms(family.model, HIDDEN)]
    return torch.stack([each / each.mean() for each in channels]).sum(0)


def by_scope(scores: Mapping[str, Tensor], axis: str, architecture: Architecture) -> dict[str, Tensor]:
    """Scores of layers, layer name -> [n], as scores of their scopes of ``axis``, scope -> [n].

    Where several layers share a scope, each is divided by its mean, so that all count alike, and they are added up.
    """
    parts = defaultdict(list)
    for name, score in scores.items():
        parts[scope(name, axis, architecture)].append(score)
    return {
        name: shares[0] if len(shares) == 1 else torch.stack([share / share.mean() for share in shares]).sum(0)
        for name, shares in parts.items()
    }


@torch.no_grad()
def sum_over_batches(
    family: Family,
    modules: Mapping[str, nn.Module],
    batches: Iterable[Batch],
    statistic: Callable[[nn.Module, tuple[Tensor, ...]], Tensor],
) -> dict[str, Tensor]:
    """Module name -> sum over ``batches`` of a statistic of the module's inputs."""
    totals: dict[str, Tensor] = {}
    if not modules:
        return totals

    def register(name: str) -> torch.utils.hooks.RemovableHandle:
        def add(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            value = statistic(module, inputs)
            totals[name] = totals[name] + value if name in totals else value

        return modules[name].register_forward_pre_hook(add)

    handles = [register(name) for name in modules]
    was_training = family.model.training
    family.model.eval()
    try:
        for batch in counted(batches, "choosing what stays: batch"):
            family.run({name: tensor.to(family.device) for name, tensor in batch.items()})
    finally:
        family.model.train(was_training)
        for handle in handles:
            handle.remove()
    return totals
