"""What a search found for one budget, and why each candidate that it did not promote lost."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from slimexp.candidate.choice import Candidate


@dataclass
class Found:
    """What was found for one budget.

    Attributes:
        limits: Budget -> largest cost, in the units of the config.
        losses: Candidate -> loss of the whole model before training, nats per token, best first; all keep the budgets.
        over: The same of candidates that were measured and exceed a budget.
        added: Candidate -> added-up loss of its choices.
        composed: Candidate -> budget -> composed cost.
        solved: The solver's own solutions; evolution found the others.
        costs: Candidate that is measured -> budget -> composed and measured cost.
        trained: Candidate -> figures after a short training.
        promoted: Candidate -> figures after the full training.
        failed: Candidate -> ``short`` or ``full``, the training that failed.
    """

    limits: dict[str, float]
    losses: dict[Candidate, float] = field(default_factory=dict)
    over: dict[Candidate, float] = field(default_factory=dict)
    added: dict[Candidate, float] = field(default_factory=dict)
    composed: dict[Candidate, dict[str, float]] = field(default_factory=dict)
    solved: list[Candidate] = field(default_factory=list)
    costs: dict[Candidate, dict[str, tuple[float, float]]] = field(default_factory=dict)
    trained: dict[Candidate, dict[str, float]] = field(default_factory=dict)
    promoted: dict[Candidate, dict[str, float]] = field(default_factory=dict)
    failed: dict[Candidate, str] = field(default_factory=dict)

    def why_lost(self, candidate: Candidate) -> str | None:
        """Why a candidate was not promoted; ``None`` where it was."""
        if candidate in self.promoted:
            return None
        if candidate in self.over:
            return "over the budget as measured"
        if candidate in self.failed:
            return f"its {self.failed[candidate]} training failed"
        if candidate in self.trained:
            return "worse after a short training"
        if not (self.trained or self.promoted or self.failed):
            return "nothing was trained"
        tried = [one for one in self.costs if one in self.losses]
        if any(self.losses[one] >= self.losses[candidate] for one in tried):
            return "like a better one in depth and widths"
        return "worse as a whole before training"


class OverAsMeasured(ValueError):
    """Candidates that keep a budget by what was composed of it do not as they are measured.

    Args:
        limits: The budget.
    """

    def __init__(self, limits: Mapping[str, float]) -> None:
        words = ", ".join(f"budget.{name}={value:g}" for name, value in limits.items())
        super().__init__(
            f"no candidate keeps {words} as it is measured, though it was aimed lower: raise the budget, or measure "
            "on a quieter machine"
        )


def like(candidate: Candidate) -> tuple[object, ...]:
    """What candidates of the same depths and widths have in common."""
    stacks = Counter(place.stack for place in candidate.bits)
    return tuple(sorted(stacks.items())), tuple(candidate.widths.values())


def unlike_first(losses: Mapping[Candidate, float]) -> list[Candidate]:
    """Candidates, best first, but the best of each number of blocks and widths before all others.

    Training changes the order of unlike models more than that of models that are nearly the same.
    """
    first: dict[object, Candidate] = {}
    for candidate in losses:
        first.setdefault(like(candidate), candidate)
    return [*first.values(), *(candidate for candidate in losses if candidate not in first.values())]
