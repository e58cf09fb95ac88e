"""Mixtures of experts: which numbers of experts their router can choose between."""

from torch import Tensor
from transformers import PreTrainedConfig

from slimexp.architecture.base import EXPERTS
from slimexp.architecture.model_type import size


def check_experts(config: PreTrainedConfig, count: int) -> None:
    """Refuse fewer experts than a token is routed to, or a number that the router's groups cannot share equally.

    Args:
        config: Config of the larger model.
        count: Number of experts retained per mixture.

    Raises:
        ValueError: States the rule and the value.
    """
    groups, active, per_token = router_groups(config), config.num_experts_per_tok, _router_groups_per_token(config)
    reachable = count // groups * per_token
    least = 2 if config.model_type == "deepseek_v3" else 1  # it scores a group by the sum of the two best experts
    if count % groups or count // groups < least or reachable < active:
        raise ValueError(
            f"experts must be a multiple of n_group={groups}, at least {least} in each group, and at least "
            f"num_experts_per_tok={active} in the {per_token} groups that a token may go to; got "
            f"{count} of {size(config, EXPERTS)}: keep more"
        )


def check_router_groups(config: PreTrainedConfig, name: str, indices: Tensor) -> None:
    """Refuse to retain more experts of one of the router's groups than of another.

    Args:
        config: Config of the larger model.
        name: Scope of the mixture, for messages.
        indices: Experts retained, [n], ascending.

    Raises:
        ValueError: States the rule and the numbers per group.
    """
    groups = router_groups(config)
    per_group = (indices.cpu() // (size(config, EXPERTS) // groups)).bincount(minlength=groups)
    if len(per_group.unique()) > 1:
        raise ValueError(
            f"experts of '{name}' must be as many in each of the n_group={groups} groups that its router chooses "
            f"between; got {per_group.tolist()}: choose within each group"
        )


def router_groups(config: PreTrainedConfig) -> int:
    """Number of groups of experts that the router chooses between; 1 where it has none."""
    limited = config.model_type != "deepseek_v2" or config.topk_method == "group_limited_greedy"
    return int(getattr(config, "n_group", None) or 1) if limited else 1


def _router_groups_per_token(config: PreTrainedConfig) -> int:
    """Number of groups that the experts of one token come from."""
    return config.topk_group if router_groups(config) > 1 and config.topk_group else 1
