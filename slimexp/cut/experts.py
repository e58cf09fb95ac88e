"""Mixtures of experts: which numbers of experts their router can choose between."""

from torch import Tensor
from transformers import PreTrainedConfig

from slimexp.architecture.base import EXPERT_FFN, EXPERTS
from slimexp.architecture.model_type import size

_SIZES = 32  # to choose from, where each is a cut to try
_ALIGNED = 8  # neurons: the grouped products of PyTorch, with which transformers runs experts, read rows of 16 bytes


def check_experts(config: PreTrainedConfig, count: int) -> None:
    """Refuse fewer experts than a token is routed to, or a number that the router's groups cannot share equally.

    Args:
        config: Config of the larger model.
        count: Number of experts retained per mixture.

    Raises:
        ValueError: States the rule and the value.
    """
    if not _are_enough(config, count):
        raise ValueError(f"experts must be {rule(config)}; got {count} of {size(config, EXPERTS)}: keep more")


def check_neurons(config: PreTrainedConfig, count: int) -> None:
    """Refuse rows of experts that PyTorch has no grouped product for.

    Args:
        config: Config of the larger model.
        count: Number of neurons retained per expert.

    Raises:
        ValueError: States the rule and the value.
    """
    if count % _ALIGNED and count != size(config, EXPERT_FFN):
        raise ValueError(
            f"{EXPERT_FFN} must be a multiple of {_ALIGNED}, which grouped products of 16 bits need, got {count} of "
            f"{size(config, EXPERT_FFN)}: keep more or fewer"
        )


def numbers_of_experts(config: PreTrainedConfig, *, coarse: bool) -> list[int]:
    """Numbers of experts that a mixture may retain, in descending order from all.

    Args:
        config: Config of the larger model.
        coarse: Whether about 32 numbers are enough; else all that the router can choose between.
    """
    most, groups = size(config, EXPERTS), router_groups(config)
    step = groups * (-(-most // (groups * _SIZES)) if coarse else 1)
    return [count for count in range(most, 0, -step) if _are_enough(config, count)]


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


def rule(config: PreTrainedConfig) -> str:
    """What the number of experts must be, for messages."""
    groups, active = router_groups(config), config.num_experts_per_tok
    if groups == 1:
        return f"at least num_experts_per_tok={active}, which the router picks for each token"
    return (
        f"a multiple of n_group={groups}, at least {_least_in_group(config)} in each group, and at least "
        f"num_experts_per_tok={active} in the {_router_groups_per_token(config)} groups that a token may go to"
    )


def _are_enough(config: PreTrainedConfig, count: int) -> bool:
    groups = router_groups(config)
    reachable = count // groups * _router_groups_per_token(config)
    return not count % groups and count // groups >= _least_in_group(config) and reachable >= config.num_experts_per_tok


def _least_in_group(config: PreTrainedConfig) -> int:
    return 2 if config.model_type == "deepseek_v3" else 1  # it scores a group by the sum of the two best experts


def experts_in(config: PreTrainedConfig, scope: str) -> int:
    """Number of experts whose neurons lie within a scope of ``EXPERT_FFN``: routed ones, or those all tokens share."""
    return int(config.n_shared_experts) if scope.endswith(".shared_experts") else size(config, EXPERTS)


def router_groups(config: PreTrainedConfig) -> int:
    """Number of groups of experts that the router chooses between; 1 where it has none."""
    limited = config.model_type != "deepseek_v2" or config.topk_method == "group_limited_greedy"
    return int(getattr(config, "n_group", None) or 1) if limited else 1


def _router_groups_per_token(config: PreTrainedConfig) -> int:
    """Number of groups that the experts of one token come from."""
    return config.topk_group if router_groups(config) > 1 and config.topk_group else 1
