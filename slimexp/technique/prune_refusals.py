"""What cannot be pruned as asked, said before anything is loaded."""

from slimexp.allocation.base import Allocation, SparsityAllocation
from slimexp.importance.base import Gated, Importance, Learned
from slimexp.pattern.base import Pattern


def check_learned(importance: Importance, *, sparsity: float, steps: int, regrow: float) -> None:
    """Refuse what leaves an importance that is learned in training without it."""
    name = type(importance).__name__
    if not isinstance(importance, Learned | Gated) or not sparsity:
        return
    if not steps:
        raise ValueError(f"{name} is learned while training: set steps, or choose another importance")
    if regrow and isinstance(importance, Gated):
        raise ValueError(f"gates of {name} open and shut by themselves: set regrow=0")


def check_allocation(allocation: Allocation, importance: Importance, pattern: Pattern, sparsity: float) -> None:
    """Refuse an allocation of something else, or one that has no scores or no freedom."""
    if not isinstance(allocation, SparsityAllocation):
        name = type(allocation).__name__
        raise ValueError(f"allocation must be sensitivity or null where weights are pruned, got {name}")
    if isinstance(importance, Learned | Gated):
        name = type(importance).__name__
        raise ValueError(f"allocation scans before {name} has scores: choose another importance, or allocation=null")
    if pattern.across_layers:
        raise ValueError("allocation needs layers that do not compete: set pattern.scope=layer, or allocation=null")
    if not pattern.any_share:
        raise ValueError(f"allocation needs a pattern that takes any sparsity, {type(pattern).__name__} does not")
    if sparsity > allocation.sparsities[-1]:
        raise ValueError(
            f"sparsity {sparsity} is more than the last of allocation.sparsities, {allocation.sparsities[-1]}: add one"
        )
