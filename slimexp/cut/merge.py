"""Merging experts: those of a mixture that give like outputs become one, the mean of all.

Experts are clustered by their mean outputs (Chen et al. 2024, "Retraining-free merging of sparse MoE via hierarchical
clustering", HC-SMoE), and the mean is weighted by the tokens that they see, with their neurons brought into one order
before (Li et al. 2023, "Merge, then compress: demystify efficient SMoE with hints from its routing policy", M-SMoE).
Both papers leave the router its rows, several of which lead to one expert then; a plain config has as many rows as
experts, so rows are averaged with the same weights.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from slimexp.architecture.base import EXPERTS
from slimexp.architecture.model_type import architecture_of
from slimexp.cut.constraints import ScopeIndices
from slimexp.cut.expert_use import ExpertUse, scope_of
from slimexp.cut.experts import router_groups
from slimexp.cut.remove import remove
from slimexp.model.base import Family

_GATE_UP = "gate_up_proj"  # [experts, 2 neurons, hidden], the gates first
_DOWN = "down_proj"  # [experts, hidden, neurons]


def merge(
    family: Family,
    layers: Mapping[str, Sequence[int]],
    retained: Mapping[str, ScopeIndices],
    use: Mapping[str, ExpertUse],
) -> Family:
    """What ``remove`` gives, with as many experts, each the mean of a cluster of them.

    Args:
        family: The larger model; it stays unchanged.
        layers: As ``remove`` takes them.
        retained: As ``remove`` takes them; of experts, their numbers count.
        use: Scope -> what its experts do with calibration text, with their mean outputs.
    """
    groups = router_groups(family.model.config)
    leaders = {name: cluster(use[name], len(some), groups) for name, some in retained[EXPERTS].items()}
    unique = {name: of.unique() for name, of in leaders.items()}
    return remove(family, layers, {**retained, EXPERTS: unique}, values=_means(family, leaders, use))


def cluster(use: ExpertUse, count: int, groups: int) -> Tensor:
    """Index of the expert that leads each expert's cluster, the one of most tokens, [experts].

    Clusters of the least mean distance between outputs are joined until ``count`` are left (average linkage).

    Args:
        use: What the experts do, with their mean outputs.
        count: Number of clusters.
        groups: Number of groups that the router chooses between; each has as many clusters.
    """
    from scipy.cluster.hierarchy import cut_tree, linkage

    total = len(use.tokens)
    leaders, each = torch.arange(total), total // groups
    if count == total:
        return leaders
    for first in range(0, total, each):
        members = slice(first, first + each)
        tree = linkage(use.means[members].double().cpu().numpy(), "average")
        labels = torch.from_numpy(cut_tree(tree, n_clusters=count // groups)[:, 0]).long()
        tokens = use.tokens[members].cpu()
        for label in labels.unique():
            inside = torch.where(labels == label)[0]
            leaders[first + inside] = first + inside[tokens[inside].argmax()]
    return leaders


def _means(
    family: Family, leaders: Mapping[str, Tensor], use: Mapping[str, ExpertUse]
) -> Callable[[str, Tensor], Tensor]:
    """A function from a parameter's name and values to values whose leaders are the means of their clusters."""
    architecture = architecture_of(family.model.config)
    orders: dict[str, dict[int, Tensor]] = {}

    def values(name: str, tensor: Tensor) -> Tensor:
        if architecture.of(name)[0] != EXPERTS:
            return tensor
        part = scope_of(family, name)
        lead = leaders[part].to(tensor.device)
        module, _, own = name.rpartition(".")
        if own in (_GATE_UP, _DOWN):
            if part not in orders:
                gate_up, down = (family.model.get_parameter(f"{module}.{one}").detach() for one in (_GATE_UP, _DOWN))
                orders[part] = aligned(gate_up, down, leaders[part])
            tensor = _reordered(tensor, own, orders[part])
        share = _shares(use[part].tokens.to(tensor.device), lead)
        weighted = tensor.float() * share.float().view(-1, *[1] * (tensor.ndim - 1))
        return torch.zeros_like(weighted).index_add_(0, lead, weighted).to(tensor.dtype)

    return values


def aligned(gate_up: Tensor, down: Tensor, leaders: Tensor) -> dict[int, Tensor]:
    """Expert that is led by another -> its neurons in the order of the leader's that they are most alike, [neurons].

    Alike is the sum of the scalar products of what a neuron reads by gate and up projection and of what it writes; the
    order of the greatest total is an assignment problem.

    Args:
        gate_up: [experts, 2 neurons, hidden].
        down: [experts, hidden, neurons].
        leaders: Index of each expert's leader, [experts].
    """
    from scipy.optimize import linear_sum_assignment

    def neurons(expert: int) -> Tensor:
        gate, up = gate_up[expert].float().chunk(2)
        return torch.cat([gate, up, down[expert].float().T], 1)

    orders = {}
    for expert, leader in enumerate(leaders.tolist()):
        if expert != leader:
            likeness = neurons(leader) @ neurons(expert).T
            orders[expert] = torch.from_numpy(linear_sum_assignment(likeness.cpu().numpy(), maximize=True)[1])
    return orders


def _reordered(tensor: Tensor, own: str, orders: Mapping[int, Tensor]) -> Tensor:
    """The experts' projection ``own`` with the neurons of some experts in another order."""
    tensor = tensor.clone()
    for expert, order in orders.items():
        order = order.to(tensor.device)
        if own == _DOWN:
            tensor[expert] = tensor[expert][:, order]
        else:
            tensor[expert] = torch.cat([half[order] for half in tensor[expert].chunk(2)])
    return tensor


def _shares(tokens: Tensor, leaders: Tensor) -> Tensor:
    """Share of its cluster's tokens that each expert sees, [experts]; equal where none sees any."""
    totals = torch.zeros_like(tokens).index_add_(0, leaders, tokens)[leaders]
    counts = torch.zeros_like(tokens).index_add_(0, leaders, torch.ones_like(tokens))[leaders]
    return torch.where(totals > 0, tokens / totals.clamp(min=1), 1 / counts)
