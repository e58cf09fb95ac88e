"""What structured pruning refuses and says of experts."""

from collections.abc import Collection

from transformers import PreTrainedConfig

from slimexp.architecture.base import EXPERTS
from slimexp.budget.base import Budget
from slimexp.cut.experts import rule
from slimexp.cut.ranking import EXPERT_RANKS


def check_choice(experts: str) -> None:
    """Refuse a way to choose experts that there is none of.

    Raises:
        ValueError: Names those that there are.
    """
    if experts not in EXPERT_RANKS:
        raise ValueError(f"experts must be one of {', '.join(EXPERT_RANKS)}, got '{experts}'")


def check_counted(budget: Budget, axes: Collection[str]) -> None:
    """Refuse axes that a budget does not count: nothing would say how much of them should go.

    Raises:
        ValueError: Names them, and the way out.
    """
    if budget.axes is not None and (others := [axis for axis in axes if axis not in budget.axes]):
        raise ValueError(
            f"a budget of a share {budget.unit} counts {', '.join(budget.axes)} alone, and axes hold "
            f"{', '.join(others)} too: set axes=null, or choose another budget"
        )


def least(config: PreTrainedConfig, axes: Collection[str]) -> str:
    """Why a mixture must retain some experts, for the message of a budget that is out of reach; else empty."""
    return f" (experts must be {rule(config)})" if EXPERTS in axes else ""
