"""What a student keeps of a larger model: layers, neurons, heads, channels, experts."""

import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.pytorch_utils import Conv1D

from slimexp.cut.architecture import (
    EXPERTS,
    FFN,
    HEADS,
    HIDDEN,
    Anatomy,
    anatomy_of,
    head_width,
    scope,
    size,
)
from slimexp.cut.constraints import (
    Kept,
    admits,
    check_blocks,
    check_experts,
    router_groups,
    with_queries,
)
from slimexp.cut.remove import _runs, remove
from slimexp.model.base import Batch, Family


@dataclass(frozen=True, kw_only=True)
class Cut:
    """What survives of a model; ``None`` keeps everything.

    Attributes:
        encoder_layers: Indices of the encoder blocks kept, rising.
        decoder_layers: Indices of the decoder blocks kept, rising.
        ffn: Feed-forward neurons kept per block.
        heads: Groups of attention heads kept per block: a key/value head with the query heads that share it.
        hidden: Channels of the residual stream kept.
        experts: Experts kept per mixture, of those that a router chooses between.
        calibration_batches: Batches of training text that the importance is taken from.
    """

    encoder_layers: Sequence[int] | None
    decoder_layers: Sequence[int] | None
    ffn: int | None
    heads: int | None
    hidden: int | None
    experts: int | None
    calibration_batches: int

    def __post_init__(self) -> None:
        if self.calibration_batches < 0:
            raise ValueError(f"cut.calibration_batches must be >= 0, got {self.calibration_batches}")

    def apply(self, family: Family, batches: Sequence[Batch]) -> Family:
        """The smaller model, with weights copied from ``family`` (which stays as it was).

        Args:
            family: The model cut from.
            batches: Calibration batches for the importance of neurons, heads and channels; may be empty.

        Raises:
            ValueError: A layer, width or architecture that cannot be cut; names what can.
        """
        config = family.model.config
        anatomy = self._anatomy(config)
        kept: dict[str, Kept] = {}
        if self.hidden is not None:
            kept[HIDDEN] = {"": _highest(self.hidden, hidden_importance(family, anatomy, batches), HIDDEN)}
        if self.ffn is not None:
            scores = by_scope(reader_importance(family, anatomy.neurons, batches), FFN, anatomy)
            kept[FFN] = {name: _highest(self.ffn, score, FFN) for name, score in scores.items()}
        if self.heads is not None:
            groups = size(config, anatomy.groups)
            scores = by_scope(reader_importance(family, anatomy.values, batches), HEADS, anatomy)
            best = {name: _highest(self.heads, s.view(groups, -1).sum(1), HEADS) for name, s in scores.items()}
            kept |= head_rows(config, best)
        if self.experts is not None:
            groups = router_groups(config)
            experts = expert_importance(family, anatomy, batches)
            kept[EXPERTS] = {name: _highest_per_group(self.experts, s, groups) for name, s in experts.items()}
        return remove(family, self._layers(config, anatomy), kept)

    def validate(self, config: PreTrainedConfig) -> None:
        """Refuse an architecture or an axis that cannot be cut, before anything is loaded.

        Raises:
            ValueError: Names what can be cut.
        """
        self._anatomy(config)

    def _anatomy(self, config: PreTrainedConfig) -> Anatomy:
        anatomy = anatomy_of(config)
        asked = {
            HIDDEN: (self.hidden, "hidden"),
            FFN: (self.ffn, "ffn"),
            anatomy.groups: (self.heads, "heads"),
            EXPERTS: (self.experts, "experts"),
        }
        units = {axis: count for axis, (count, _) in asked.items() if count is not None}
        for axis, count in units.items():
            word = asked[axis][1]
            if axis not in anatomy.sizes:
                why = anatomy.refusals.get(axis, "it has none")
                raise ValueError(f"cut.{word} must be null for a model of type {config.model_type}: {why}")
            if not 0 < count <= size(config, axis):
                raise ValueError(f"cut.{word} must be in 1..{size(config, axis)}, the model's own; got {count}")
        for stack in ("encoder", "decoder"):
            if stack not in anatomy.depths and getattr(self, f"{stack}_layers") is not None:
                raise ValueError(f"cut.{stack}_layers must be null: a model of type {config.model_type} has no {stack}")
        try:
            check_blocks(config, self._layers(config, anatomy))
        except ValueError as error:
            raise ValueError(f"cut: {error}") from error
        if self.experts is not None:
            check_experts(config, self.experts)
        if units and not admits(config, units):
            axis = anatomy.groups if anatomy.groups in units else next(iter(units))
            raise ValueError(_not_loaded(config, units, axis, asked[axis][1]))
        return anatomy

    def _layers(self, config: PreTrainedConfig, anatomy: Anatomy) -> dict[str, list[int]]:
        asked = {"encoder": self.encoder_layers, "decoder": self.decoder_layers}
        whole = {stack: range(getattr(config, key)) for stack, key in anatomy.depths.items()}
        return {stack: list(blocks if asked[stack] is None else asked[stack] or []) for stack, blocks in whole.items()}


def _not_loaded(config: PreTrainedConfig, units: Mapping[str, int], axis: str, word: str) -> str:
    fitting = (n for n in range(1, size(config, axis) + 1) if admits(config, {**units, axis: n}))
    nearest = sorted(sorted(fitting, key=lambda n: abs(n - units[axis]))[:2])
    return (
        f"cut.{word}={units[axis]} gives a model of type {config.model_type} that transformers does not load, for "
        "instance as its heads do not divide its hidden width: nearest that it does "
        f"{' and '.join(map(str, nearest)) or 'none'}"
    )


def head_rows(config: PreTrainedConfig, best: Kept) -> dict[str, Kept]:
    """Scope -> groups of heads that survive, as ``remove`` wants them: channels of key/value and of query heads."""
    width, whole = head_width(config), anatomy_of(config).groups
    share = with_queries(config, {whole: 1})[HEADS]
    rows: dict[str, Kept] = {whole: {name: _runs(groups, width) for name, groups in best.items()}}
    return rows | {HEADS: {name: _runs(groups, share * width) for name, groups in best.items()}}


def by_scope(scores: Mapping[str, Tensor], axis: str, anatomy: Anatomy) -> dict[str, Tensor]:
    """Scores of layers, layer name -> [n], as those of the scopes that they choose in; equal parts where several do."""
    parts = defaultdict(list)
    for name, score in scores.items():
        parts[scope(name, axis, anatomy)].append(score)
    return {
        name: shares[0] if len(shares) == 1 else torch.stack([share / share.mean() for share in shares]).sum(0)
        for name, shares in parts.items()
    }


def reader_importance(family: Family, reader: str, batches: Sequence[Batch]) -> dict[str, Tensor]:
    """Importance of what a layer reads, per input channel: mean |input| times the norm of its column.

    Args:
        family: The model.
        reader: Pattern of the names of the layers.
        batches: Calibration batches; empty for the norms alone.

    Returns:
        Layer name -> [in].
    """
    readers = {name: module for name, module in family.model.named_modules() if re.search(reader, name)}
    inputs_last = {name: not isinstance(module, Conv1D) for name, module in readers.items()}
    norms = {
        name: module.get_parameter("weight").detach().norm(dim=0 if inputs_last[name] else 1)
        for name, module in readers.items()
    }
    if not batches:
        return norms
    activity = _mean_absolute_input(family, readers, batches)
    return {name: norms[name] * activity[name] for name in norms}


def expert_importance(family: Family, anatomy: Anatomy, batches: Sequence[Batch]) -> dict[str, Tensor]:
    """Importance of every expert of a mixture: the sum of the weights that its router gave it.

    The soft counting of Muzio et al. 2024, "SEER-MoE: sparse expert efficiency through regularization for
    mixture-of-experts", of the experts that were chosen. Without batches, the norm of what it writes with.

    Returns:
        Scope -> [experts].
    """
    modules = {name: m for name, m in family.model.named_modules() if re.search(r"mlp\.experts$", name)}
    scopes = {name: scope(name, EXPERTS, anatomy) for name in modules}
    if not batches:
        return {
            scopes[name]: m.get_parameter("down_proj").detach().flatten(1).norm(dim=1) for name, m in modules.items()
        }

    def routed(module: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
        _, chosen, weights = inputs
        total = weights.new_zeros(len(module.get_parameter("down_proj")))
        return total.index_add(0, chosen.flatten(), weights.flatten())

    return {scopes[name]: total for name, total in _observed(family, modules, batches, routed).items()}


def hidden_importance(family: Family, anatomy: Anatomy, batches: Sequence[Batch]) -> Tensor:
    """Importance of every channel of the residual stream, [hidden]: its share of |input| of the norms."""
    if not batches:
        return family.model.get_input_embeddings().weight.detach().norm(dim=0)
    norms = {name: module for name, module in family.model.named_modules() if re.search(anatomy.norm, name)}
    activity = _mean_absolute_input(family, norms, batches)
    return torch.stack([channels / channels.mean() for channels in activity.values()]).sum(0)


def _mean_absolute_input(
    family: Family, modules: Mapping[str, nn.Module], batches: Sequence[Batch]
) -> dict[str, Tensor]:
    """Mean |x| of each module's input per channel over ``batches``."""
    return _observed(family, modules, batches, lambda _, inputs: inputs[0].detach().abs().flatten(0, -2).mean(0))


@torch.no_grad()
def _observed(
    family: Family,
    modules: Mapping[str, nn.Module],
    batches: Sequence[Batch],
    see: Callable[[nn.Module, tuple[Tensor, ...]], Tensor],
) -> dict[str, Tensor]:
    """Sum over ``batches`` of what ``see`` makes of each module's inputs."""
    totals: dict[str, Tensor] = {}

    def watch(name: str) -> torch.utils.hooks.RemovableHandle:
        def add(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            seen = see(module, inputs)
            totals[name] = totals[name] + seen if name in totals else seen

        return modules[name].register_forward_pre_hook(add)

    handles = [watch(name) for name in modules]
    was_training = family.model.training
    family.model.eval()
    try:
        for batch in batches:
            family.forward({name: tensor.to(family.device) for name, tensor in batch.items()})
    finally:
        family.model.train(was_training)
        for handle in handles:
            handle.remove()
    return totals


def _highest(count: int, importance: Tensor, axis: str) -> Tensor:
    assert count <= len(importance), axis
    return importance.topk(count).indices.sort().values


def _highest_per_group(count: int, importance: Tensor, groups: int) -> Tensor:
    """As many of each of the ``groups`` that the units fall into, in order."""
    best = importance.view(groups, -1).topk(count // groups).indices
    first = torch.arange(groups, device=best.device)[:, None] * (len(importance) // groups)
    return (best + first).flatten().sort().values
