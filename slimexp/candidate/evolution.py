"""Evolution around solutions: small changes that keep the budgets, each judged by the loss of the whole model.

Sieberling et al. 2025, "EvoPress: accurate dynamic model compression via evolutionary search", section 3: (1 + lambda)
with level switches. Here a switch that breaks a budget is not judged at all, and all rows judge all offspring.
"""

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from slimexp.candidate.choice import Candidate, Choices, Place
from slimexp.candidate.precision import Precision
from slimexp.host.progress import counted

TRIES = 200  # to find a change that is new and keeps the budgets


def evolve(
    losses: Mapping[Candidate, float],
    choices: Choices,
    *,
    fits: Callable[[Candidate], bool],
    loss: Callable[[Candidate], float],
    steps: int,
    seed: int,
) -> dict[Candidate, float]:
    """Losses of what was given and of its offspring, each a change of the best until then.

    Args:
        losses: Candidate -> loss; at least one.
        choices: What a block may become.
        fits: Whether a candidate keeps the budgets.
        loss: Loss of a candidate as a whole.
        steps: Number of offspring whose loss is taken.
        seed: Seed of the changes.
    """
    found, chance = dict(losses), random.Random(seed)
    seen = {str(candidate) for candidate in found}
    for _ in counted(range(steps), "step of evolution"):
        best = min(found, key=lambda candidate: found[candidate])
        child = next((c for c in _children(best, choices, chance) if str(c) not in seen and fits(c)), None)
        if child is None:
            break
        seen.add(str(child))
        found[child] = loss(child)
    return found


def _children(parent: Candidate, choices: Choices, chance: random.Random) -> Iterator[Candidate]:
    """Changes of a candidate: a removed block comes back for another, two blocks change bits, or one width grows."""
    for _ in range(TRIES):
        child = _switched(parent, choices, chance)
        if child.bits and {place.stack for place in child.bits} == set(choices.stacks) and _is_possible(child, choices):
            yield child


def _switched(parent: Candidate, choices: Choices, chance: random.Random) -> Candidate:
    how = parent.precisions
    unlike = {name: {place: parent.widths_at(place)[name] for place in how} for name in choices.unlike}
    gone = [place for place in choices.places if place not in how]
    may_go = [place for place in how if place in choices.removable]
    kind = chance.choice(["swap", "bits", "width", "depth"])
    if kind == "swap" and gone and may_go:
        back = chance.choice(gone)
        out = chance.choice([place for place in may_go if place.stack == back.stack] or may_go)
        how[back] = how.pop(out)
    elif kind == "bits" and len(choices.precisions) > 1 and not choices.one_width and len(how) > 1:
        one, other = chance.sample(sorted(how), 2)
        how[one], how[other] = chance.choice(choices.precisions), chance.choice(choices.precisions)
    elif kind == "width" and choices.widths:
        name = chance.choice(sorted(choices.widths))
        how = _again(how, choices, chance)
        if name in unlike:
            for place in chance.sample(sorted(how), min(2, len(how))):
                unlike[name][place] = chance.choice(choices.widths[name])
        else:
            changed: dict[str, Any] = {name: chance.choice(choices.widths[name])}
            parent = replace(parent, **changed)
    elif kind == "depth":
        if gone and (chance.random() < 0.5 or not may_go):
            how[chance.choice(gone)] = chance.choice(sorted(set(how.values())))
        elif may_go:
            del how[chance.choice(may_go)]
        how = _again(how, choices, chance)
    child = parent.rounded(dict(sorted(how.items())))
    for name, units in unlike.items() if how else ():
        child = child.keeping(name, {place: units.get(place, parent.widths[name]) for place in how})
    return child


def _again(how: dict[Place, Precision], choices: Choices, chance: random.Random) -> dict[Place, Precision]:
    """Precision of one block, or the shared one of all, chosen again: a depth or width that fits may need another."""
    if choices.one_width:
        return dict.fromkeys(how, chance.choice(choices.precisions))
    return {**how, chance.choice(sorted(how)): chance.choice(choices.precisions)} if how else how


def _is_possible(child: Candidate, choices: Choices) -> bool:
    depth = {stack: sum(place.stack == stack for place in child.bits) for stack in choices.stacks}
    if any(widths not in choices.combinations for widths in [child.widths, *map(child.widths_at, child.bits)]):
        return False
    return not choices.paired or depth["decoder"] <= depth["encoder"]
