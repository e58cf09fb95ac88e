"""Linear maps of low rank in the place of attention or feed-forward layers, fitted to what those compute on text.

A sublayer becomes ``x -> U V x`` at each token, x being what it gets, after its norm (Bercovich et al. 2024, "Puzzle:
distillation-based NAS for inference-optimized LLMs", section 2, has a linear layer of full rank). Of all maps of a rank
it has the least squared error, with a ridge (reduced-rank regression, Izenman 1975).
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from slimexp.architecture.base import EXPERTS, HEADS
from slimexp.architecture.model_type import architecture_of
from slimexp.cut.constraints import resized
from slimexp.host.progress import counted
from slimexp.model.base import Batch, Family, parameter_count, positions
from slimexp.model.widths import AXES, REPLACEMENTS, can_drop, sublayers

DAMPENING = 0.01  # added to the diagonal of the Gram matrix of inputs, as a share of its mean, as by GPTQ
_AT_ONCE = 2**30  # bytes of the sums of one pass over the text; more sublayers take further passes
WORDS = {HEADS: "attention", "ffn": "feed-forward layers"}


class LowRank(NamedTuple):
    """A linear map in the place of a sublayer.

    Attributes:
        to_rank: [rank, channels].
        from_rank: [channels, rank].
    """

    to_rank: Tensor
    from_rank: Tensor

    def first(self, rank: int) -> "LowRank":
        """The best map of a lower rank."""
        return LowRank(self.to_rank[:rank], self.from_rank[:, :rank])

    @property
    def state(self) -> dict[str, Tensor]:
        """Its parameters, by their names in a ``Replacement``."""
        return {f"{part}.weight": tensor for part, tensor in self._asdict().items()}


Maps = Mapping[str, LowRank]  # name of a sublayer -> what is in its place


def regression(xx: Tensor, xy: Tensor, *, rank: int, dampening: float = DAMPENING) -> LowRank:
    """The map of least ``sum |y - U V x|^2 + dampening * mean(diag(xx)) * |U V|^2``.

    It is the ridge regression, projected on the first principal axes of its fit.

    Args:
        xx: Sum of ``x x^T`` over tokens, [channels, channels].
        xy: Sum of ``x y^T`` over tokens, [channels, channels].
        rank: Rank of the map.
        dampening: Share of the mean of the diagonal that is added to it.

    Returns:
        The map in float32; its first ranks are the best maps of those ranks.
    """
    xx, xy = xx.double().clone(), xy.double()
    xx.diagonal().add_(dampening * xx.diagonal().mean().clamp_min(torch.finfo(torch.float32).tiny))
    lower = torch.linalg.cholesky(xx)
    fit = torch.linalg.solve_triangular(lower, xy, upper=False)  # whose Gram matrix is that of the fitted outputs
    axes = torch.linalg.eigh(fit.T @ fit).eigenvectors.flip(-1)[:, :rank]  # [channels, rank]
    ridge = torch.linalg.solve_triangular(lower.T, fit @ axes, upper=True)  # of the outputs' first components
    return LowRank(ridge.T.float().contiguous(), axes.float().contiguous())


@torch.no_grad()
def low_rank(family: Family, ranks: Mapping[str, int], batches: Sequence[Batch]) -> dict[str, LowRank]:
    """Maps in the place of sublayers, fitted on all tokens but padding.

    Args:
        family: The model.
        ranks: Name of a sublayer -> rank of its map.
        batches: Calibration text; not empty.
    """
    found: dict[str, LowRank] = {}
    names, channels = list(ranks), family.model.config.hidden_size
    step = max(1, _AT_ONCE // (2 * 8 * channels**2))
    for start in range(0, len(names), step):
        sums = _sums(family, names[start : start + step], batches)
        for name in counted(list(sums), "linear map in the place of a sublayer"):
            found[name] = regression(*sums.pop(name), rank=ranks[name])
    return found


def _sums(family: Family, names: Sequence[str], batches: Sequence[Batch]) -> dict[str, tuple[Tensor, Tensor]]:
    """Sublayer -> sums of ``x x^T`` and of ``x y^T`` over tokens, [channels, channels] in float64."""
    channels = family.model.config.hidden_size
    zeros = partial(torch.zeros, channels, channels, dtype=torch.float64, device=family.device)
    sums = {name: (zeros(), zeros()) for name in names}
    real: list[Tensor] = []  # places of the tokens of a batch that are no padding

    def add(name: str, _: nn.Module, inputs: tuple[Any, ...], named: Mapping[str, Any], output: Any) -> None:
        x = inputs[0] if inputs else named["hidden_states"]
        y = output[0] if isinstance(output, tuple) else output
        x, y = (tensor.flatten(0, -2).index_select(0, real[-1]).float() for tensor in (x, y))
        for total, other in zip(sums[name], (x, y), strict=True):
            total.add_(x.T @ other)

    was_training = family.model.training
    family.model.eval()
    try:
        with ExitStack() as hooks:
            for name in names:
                module = family.model.get_submodule(name)
                hooks.callback(module.register_forward_hook(partial(add, name), with_kwargs=True).remove)
            for rows in counted(batches, "what sublayers compute: batch"):
                batch = {name: tensor.to(family.device) for name, tensor in rows.items()}
                real.append(positions(batch, "attention_mask"))
                family.run(batch)
    finally:
        family.model.train(was_training)
    return sums


@contextmanager
def in_place(model: PreTrainedModel, maps: Maps) -> Iterator[None]:
    """A context in which maps are in the place of sublayers."""
    kinds = {name: REPLACEMENTS[axis] for axis in AXES for name in sublayers(model, axis).values()}
    before = {name: model.get_submodule(name) for name in maps}
    try:
        for name, low in maps.items():
            module = kinds[name](model.config.hidden_size, len(low.to_rank))
            module.load_state_dict(low.state)
            nn.Module.to(module, model.device, model.dtype)
            model.set_submodule(name, module)
        yield
    finally:
        for name, whole in before.items():
            model.set_submodule(name, whole)


def check_rank(config: PreTrainedConfig, axis: str, rank: int, setting: str, *, hidden: int | None = None) -> None:
    """Refuse a rank that no map in the place of a sublayer of this model can have, or that saves nothing.

    Args:
        config: Config of the model.
        axis: ``heads`` for attention, or ``ffn``.
        rank: Rank of the map.
        setting: Who asks, for the message.
        hidden: Channels of the residual stream that stay; ``None`` for all.

    Raises:
        ValueError: States the rule and the value.
    """
    if not can_drop(config, axis) or (axis != HEADS and architecture_of(config).can_cut(EXPERTS, config)):
        raise ValueError(
            f"{setting} must be left out: blocks of this {config.model_type} cannot do without their {WORDS[axis]}"
        )
    channels, parameters = config.hidden_size, _parameters(config, axis)
    most = min(hidden or channels, (parameters - 1) // (2 * channels))
    if not 1 <= rank <= most:
        raise ValueError(
            f"{setting} must have ranks from 1 to {most}, got {rank}: a map of rank r has 2 * {channels} * r "
            f"parameters, which must be fewer than the {parameters} of the {WORDS[axis]}, and r at most the "
            f"{hidden or channels} channels that stay"
        )


def _parameters(config: PreTrainedConfig, axis: str) -> int:
    """Parameters of the attention, or of the feed-forward layers, of a block that has all units."""
    first = {stack: [0] for stack in architecture_of(config).depths}
    with init_empty_weights():
        model = AutoModelForCausalLM.from_config(resized(config, first, {}), trust_remote_code=False)
    return parameter_count(model.get_submodule(next(iter(sublayers(model, axis).values()))))
