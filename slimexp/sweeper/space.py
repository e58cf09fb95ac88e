"""What a sweep goes through: swept overrides of a command line as an Optuna search space."""

import itertools
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, IntervalSweep, Override, RangeSweep
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    distribution_to_json,
)


@dataclass(frozen=True)
class Space:
    """Swept and fixed overrides.

    Attributes:
        fixed: Overrides of every trial.
        swept: Key, as written before the ``=``, -> what it goes through. The choices of a categorical
            distribution are the words that an override would hold.
    """

    fixed: tuple[str, ...]
    swept: Mapping[str, BaseDistribution]

    @classmethod
    def parse(cls, overrides: Sequence[str]) -> "Space":
        """Read a command line: ``a=1,2`` and ``range(0,9,3)`` are discrete, ``interval(0,0.9)`` is continuous.

        ``tag(log, interval(1e-5, 1e-2))`` is drawn on a logarithmic scale, ``int(interval(2, 8))`` holds whole numbers.

        Raises:
            ValueError: Nothing is swept, or a range is empty or contradicts itself.
        """
        fixed, swept, seen = [], {}, Counter[str]()
        for override in OverridesParser.create().parse_overrides(list(overrides)):
            if override.is_sweep_override():
                swept[_key(override)] = _distribution(override)
            else:
                fixed.append(str(override.input_line))
            seen[_key(override).lstrip("+")] += 1
        if twice := [key for key, values in swept.items() if seen[key.lstrip("+")] > 1]:
            raise ValueError(f"{twice[0]} is given more than once: leave the swept or the other values out")
        if not swept:
            raise ValueError("nothing is swept: give a key several values, e.g. pipeline.prune.sparsity=0.25,0.5")
        return cls(tuple(fixed), swept)

    def overrides(self, values: Mapping[str, Any]) -> list[str]:
        """The command line of one trial."""
        return [*self.fixed, *(f"{key}={value}" for key, value in values.items())]

    @property
    def size(self) -> int | None:
        """Number of combinations; ``None`` where a key is continuous."""
        counts = [_count(distribution) for distribution in self.swept.values()]
        return None if None in counts else math.prod(count for count in counts if count is not None)

    def grid(self) -> Iterator[dict[str, Any]]:
        """Every combination, the last key fastest.

        Raises:
            ValueError: A key is continuous.
        """
        for key, distribution in self.swept.items():
            if _count(distribution) is None:
                raise ValueError(f"{key} has an interval, which a grid cannot go through: give choices or a sampler")
        for values in itertools.product(*map(_values, self.swept.values())):
            yield dict(zip(self.swept, values, strict=True))

    def singles(self) -> Iterator[dict[str, Any]]:
        """Combinations in which every value of every key occurs at least once: what a check must see."""
        ends = {key: _ends(distribution) for key, distribution in self.swept.items()}
        first = {key: values[0] for key, values in ends.items()}
        yield first
        for key, values in ends.items():
            yield from ({**first, key: value} for value in values[1:])

    def described(self) -> dict[str, str]:
        """Key -> its values as text, to compare with another sweep."""
        return {key: distribution_to_json(distribution) for key, distribution in self.swept.items()}


def _key(override: Override) -> str:
    """As written before the ``=``."""
    return str(override.input_line).partition("=")[0]


def _distribution(override: Override) -> BaseDistribution:
    value, key = override.value(), _key(override)
    if isinstance(value, Glob):
        raise ValueError(f"{key}=glob(...) is not taken here: write its values out, as {key}=a,b")
    if isinstance(value, IntervalSweep):
        low, high, log = value.start, value.end, "log" in value.tags
        assert low is not None and high is not None
        if not low < high or (log and low <= 0):
            need = "0 < low < high" if log else "low < high"
            raise ValueError(f"{key} needs an interval with {need}, got interval({low}, {high})")
        if isinstance(low, int) and isinstance(high, int):
            return IntDistribution(low, high, log=log)
        return FloatDistribution(low, high, log=log)
    if isinstance(value, RangeSweep):
        values = list(value.range())
        if not values:
            raise ValueError(f"{key} goes through nothing: range({value.start}, {value.stop}, {value.step}) is empty")
        return CategoricalDistribution([f"{one:.15g}" for one in sorted(values)])
    words = list(override.sweep_string_iterator())
    if twice := {word for word in words if words.count(word) > 1}:
        raise ValueError(f"{key} has {', '.join(sorted(twice))} twice: give each value once")
    return CategoricalDistribution(words)


def _count(distribution: BaseDistribution) -> int | None:
    if isinstance(distribution, FloatDistribution):
        return None
    return len(_values(distribution))


def _values(distribution: BaseDistribution) -> Sequence[Any]:
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices
    assert isinstance(distribution, IntDistribution)
    return range(distribution.low, distribution.high + 1)


def _ends(distribution: BaseDistribution) -> Sequence[Any]:
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices
    assert isinstance(distribution, IntDistribution | FloatDistribution)
    return distribution.low, distribution.high
