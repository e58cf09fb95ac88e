"""What the experts of a mixture do with calibration text: how many tokens they see, and what they add to them."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from slimexp.architecture.base import EXPERTS, scope
from slimexp.architecture.model_type import architecture_of
from slimexp.cut.unit_importance import sum_over_batches
from slimexp.model.base import Batch, Family

_PAIRS = 4096  # of a token and an expert, whose outputs are in memory at once


@dataclass(frozen=True)
class ExpertUse:
    """Sums over the tokens of calibration text, of one mixture.

    Attributes:
        seen: Number of tokens that the router saw.
        tokens: Number of tokens routed to each expert, [experts].
        norms: Sum over these of gate value times norm of the expert's output, [experts].
        means: Mean output of each expert over all tokens, routed to it or not, [experts, hidden]; empty unless asked
            for.
    """

    seen: float
    tokens: Tensor
    norms: Tensor
    means: Tensor

    @property
    def share(self) -> Tensor:
        """Share of the tokens that each expert sees, [experts]; all add up to the number of experts per token."""
        return self.tokens / max(self.seen, 1)

    @property
    def saliency(self) -> Tensor:
        """Mean over an expert's own tokens of gate value times norm of its output, [experts]; 0 where it has none.

        The router-weighted expert activation of Lasby et al. 2025, "REAP the experts: why pruning prevails for one-shot
        MoE compression", equation 9. Gate values are those that the model multiplies with: renormalized where it does
        so.
        """
        return self.norms / self.tokens.clamp(min=1)


def expert_use(family: Family, batches: Iterable[Batch], *, means: bool = False) -> dict[str, ExpertUse]:
    """Scope of every mixture -> what its experts do with ``batches``.

    Prints a line where some see no token: nothing is known of what they do.

    Args:
        family: The model.
        batches: Calibration text.
        means: Whether every expert also computes every token, for the mean outputs.
    """
    modules = mixtures(family)

    def statistic(experts: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
        x, chosen, gates = inputs
        count = len(experts.get_parameter("down_proj"))
        norms = _outputs(experts, x, chosen).float().norm(dim=1)
        sums = torch.zeros(3, count, dtype=torch.float64, device=x.device)
        sums[0].index_add_(0, chosen.flatten(), torch.ones_like(norms, dtype=torch.float64))
        sums[1].index_add_(0, chosen.flatten(), (norms * gates.flatten()).double())
        sums[2] = len(x)
        if not means:
            return sums
        every = [_outputs(experts, x, chosen.new_full((len(x), 1), expert)) for expert in range(count)]
        return torch.cat([sums, torch.stack([outputs.double().sum(0) for outputs in every], 1)])

    sums = sum_over_batches(family, modules, batches, statistic)
    found = {scope_of(family, name): _use(total) for name, total in sums.items()}
    seen = max((use.seen for use in found.values()), default=0)
    report_unseen(
        token_shares(found), seen, "calibrate on more rows (importance.rows, or calibration_batches of a cut)"
    )
    return found


def report_unseen(shares: Mapping[str, float], tokens: float, way_out: str) -> None:
    """Print a line where experts see no token.

    Args:
        shares: Name of every expert -> share of the tokens that it sees.
        tokens: Number of tokens of the calibration text.
        way_out: What to do about it.
    """
    if unseen := [name for name, share in shares.items() if not share]:
        print(
            f"  warning: {len(unseen)} of {len(shares)} experts saw none of {tokens:.0f} calibration tokens, such as "
            f"{unseen[0]}: {way_out}, or on text like that of the task",
            flush=True,
        )


def expert_importance(family: Family, batches: Iterable[Batch] | None) -> dict[str, Tensor]:
    """Scope of every mixture -> importance of its experts, [experts]: see ``ExpertUse.saliency``.

    Args:
        family: The model.
        batches: Calibration text; ``None`` for the norms of the experts' down projections instead.
    """
    if batches is not None:
        return {name: use.saliency for name, use in expert_use(family, batches).items()}
    return {
        scope_of(family, name): experts.get_parameter("down_proj").detach().flatten(1).norm(dim=1)
        for name, experts in mixtures(family).items()
    }


def mixtures(family: Family) -> dict[str, nn.Module]:
    """Name -> module that holds the experts of a mixture, as one tensor for each of their projections."""
    architecture = architecture_of(family.model.config)
    return {
        name: module
        for name, module in family.model.named_modules()
        if (weight := module._parameters.get("down_proj")) is not None
        and weight.ndim == 3
        and architecture.of(f"{name}.down_proj")[0] == EXPERTS
    }


def scope_of(family: Family, name: str) -> str:
    """The part of a module's name within which all parameters retain the same experts."""
    return scope(name, EXPERTS, architecture_of(family.model.config))


def per_group(importance: Tensor, groups: int) -> Tensor:
    """Order of the experts, the most important first, so that every prefix has as many of each of ``groups``.

    Args:
        importance: [experts], in groups of equal length, one after the other.
        groups: Number of groups; only prefixes of a multiple of it have as many of each.

    Returns:
        Indices, [experts].
    """
    order = importance.view(groups, -1).argsort(dim=1, descending=True, stable=True)
    first = torch.arange(groups, device=order.device)[:, None] * order.shape[1]
    return (order + first).T.flatten()


def token_shares(use: Mapping[str, ExpertUse]) -> dict[str, float]:
    """Name of every expert, as ``model.layers.1.experts.3`` -> share of the tokens that it sees."""
    return {
        f"{name}.experts.{expert}": float(share) for name, one in use.items() for expert, share in enumerate(one.share)
    }


def _use(total: Tensor) -> ExpertUse:
    tokens, norms, seen = total[:3]
    return ExpertUse(float(seen[0]), tokens, norms, (total[3:] / seen[0].clamp(min=1)).T)


def _outputs(experts: nn.Module, x: Tensor, chosen: Tensor) -> Tensor:
    """What the chosen experts make of each token, before gates: [N, hidden], [N, k] -> [N * k, hidden]."""
    pairs = chosen.flatten()[:, None]
    rows = torch.arange(len(x), device=x.device).repeat_interleave(chosen.shape[1])
    return torch.cat(
        [
            experts.forward(x[some], one, x.new_ones(len(one), 1))
            for some, one in zip(rows.split(_PAIRS), pairs.split(_PAIRS), strict=True)
        ]
    )
