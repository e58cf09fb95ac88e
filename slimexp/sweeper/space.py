"""The search space of a sweep: overrides of a command line that have several values, as Optuna distributions."""

import itertools
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, IntervalSweep, Override, QuotedString, RangeSweep, Transformer
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    distribution_to_json,
)

MOST_VALUES = 10_000  # of one key: every line of a journal repeats them all
MOST_COMBINATIONS = 1_000_000
_CHECKED = 1000  # values of one key that are checked before the first trial
_WHOLE = 2**53  # beyond, not every whole number is a float
_PLACE = {"name": "names the folder of a sweep", "runs": "is where a sweep lies", "resume": "is said of a whole sweep"}


@dataclass(frozen=True)
class Space:
    """Swept and fixed overrides.

    Attributes:
        fixed: Overrides of every trial.
        swept: Key, as written before the ``=``, -> distribution of its values. The choices of a categorical
            distribution are words that can follow the ``=``.
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
                _check_key(_key(override))
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
        """The overrides of one trial."""
        return [*self.fixed, *(f"{key}={value}" for key, value in values.items())]

    def command_lines(
        self, values: Mapping[str, Any], seeds: Sequence[int], extra: Sequence[str] = ()
    ) -> tuple[tuple[str, ...], ...]:
        """The overrides of one trial, once for each seed; ``extra`` are further ones."""
        overrides = (*self.overrides(values), *extra)
        return tuple((*overrides, f"seed={seed}") for seed in seeds) or (overrides,)

    @property
    def size(self) -> int | None:
        """Number of combinations; ``None`` where a key is continuous."""
        counts = [_count(distribution) for distribution in self.swept.values()]
        return None if None in counts else math.prod(count for count in counts if count is not None)

    def check_grid(self, trials: int | None) -> None:
        """Refuse a space that a grid cannot enumerate, without enumerating it.

        Args:
            trials: Number of combinations, the first ones; ``None`` for all.

        Raises:
            ValueError: A key is continuous, or there are too many combinations.
        """
        for key, distribution in self.swept.items():
            count = _count(distribution)
            if count is None:
                raise ValueError(f"{key} has an interval, which a grid cannot go through: give choices or a sampler")
            if count > MOST_COMBINATIONS:
                raise ValueError(f"{key} has {count} values, a grid at most {MOST_COMBINATIONS}: choose a sampler")
        if trials is None and self.size is not None and self.size > MOST_COMBINATIONS:
            raise ValueError(
                f"a grid of {self.size} combinations is more than {MOST_COMBINATIONS}: give fewer values, "
                "hydra.sweeper.trials=N, or choose a sampler by hydra/sweeper/sampler=tpe"
            )

    def grid(self, trials: int | None = None) -> Iterator[dict[str, Any]]:
        """Every combination, the last key fastest, or the first ``trials`` of them.

        Raises:
            ValueError: As ``check_grid`` does.
        """
        self.check_grid(trials)
        for values in itertools.islice(itertools.product(*map(_values, self.swept.values())), trials):
            yield dict(zip(self.swept, values, strict=True))

    def singles(self) -> Iterator[dict[str, Any]]:
        """Combinations in which every value of every key occurs (of very many, some), to check them all beforehand."""
        ends = {key: _ends(distribution) for key, distribution in self.swept.items()}
        first = {key: values[0] for key, values in ends.items()}
        yield first
        for key, values in ends.items():
            yield from ({**first, key: value} for value in values[1:])

    def described(self) -> dict[str, str]:
        """Key -> its distribution as JSON, for comparison with another sweep."""
        return {key: distribution_to_json(distribution) for key, distribution in self.swept.items()}


def _key(override: Override) -> str:
    """The key, as written before the ``=``."""
    return str(override.input_line).partition("=")[0]


def _check_key(key: str) -> None:
    """Refuse to sweep a key that has one value for all trials."""
    bare = key.lstrip("+")
    if key.startswith("~"):
        raise ValueError(f"{key} takes something away, and cannot have several values: write it without any")
    if bare in _PLACE:
        raise ValueError(f"{bare} cannot be swept: it {_PLACE[bare]}; give it one value, and another key several")


def _distribution(override: Override) -> BaseDistribution:
    value, key = override.value(), _key(override)
    typed = str(override.input_line).partition("=")[2]
    if isinstance(value, Glob):
        raise ValueError(f"{key}=glob(...) is not taken here: write its values out, as {key}=a,b")
    if isinstance(value, IntervalSweep):
        return _between(key, typed, value)
    if isinstance(value, RangeSweep):
        return CategoricalDistribution(_range(key, typed, value))
    words = list(override.sweep_string_iterator())
    seen: dict[object, str] = {}
    for word, element in zip(words, override.sweep_iterator(transformer=Transformer.identity), strict=True):
        if (identity := _identity(element)) in seen:
            also = "" if seen[identity] == word else f" (as {seen[identity]} and {word})"
            raise ValueError(f"{key} has {word} twice{also}: give each value once")
        seen[identity] = word
    if len(words) > MOST_VALUES:
        raise ValueError(f"{key} has {len(words)} values, at most {MOST_VALUES} are taken")
    return CategoricalDistribution(words)


def _between(key: str, typed: str, value: IntervalSweep) -> BaseDistribution:
    low, high, log = value.start, value.end, "log" in value.tags
    assert low is not None and high is not None
    if not (math.isfinite(low) and math.isfinite(high) and low < high) or (log and low <= 0):
        need = "0 < low < high" if log else "low < high"
        whole = ", both whole numbers" if isinstance(low, int) else ""
        raise ValueError(f"{key} needs an interval with {need}{whole}, got {typed}")
    if isinstance(low, int) and isinstance(high, int):
        if max(abs(low), abs(high)) > _WHOLE:
            raise ValueError(f"{key} needs whole numbers of at most 2**53, got {typed}")
        return IntDistribution(low, high, log=log)
    return FloatDistribution(low, high, log=log)


def _range(key: str, typed: str, value: RangeSweep) -> list[str]:
    """Words of a range, in order; their number is checked before any is made."""
    bounds = (value.start, value.stop, value.step)
    start, stop, step = (math.nan if bound is None else float(bound) for bound in bounds)
    if not (math.isfinite(start) and math.isfinite(stop) and math.isfinite(step)) or step == 0:
        raise ValueError(f"{key} needs a range of finite numbers, and a step that is not 0, got {typed}")
    if (stop - start) / step > MOST_VALUES:
        raise ValueError(f"{key} goes through more than {MOST_VALUES} values: {typed}; give a larger step")
    words = [f"{number:.15g}" for number in sorted(value.range())]
    if not words:
        raise ValueError(f"{key} goes through nothing: {typed} is empty")
    if len(set(words)) < len(words):
        raise ValueError(f"{key} goes through the same value twice: {typed}; give a larger step")
    return words


def _identity(value: object) -> object:
    """A key that is equal for values which a run cannot tell apart: 0.5 and 0.50, x and 'x'; but not true and 1."""
    if isinstance(value, bool | None):
        return ("is", value)
    if isinstance(value, int | float):
        return value if value == value else ("is", "nan")
    if isinstance(value, QuotedString):
        return value.text
    if isinstance(value, Mapping):
        return ("dict", tuple((str(name), _identity(item)) for name, item in value.items()))
    return ("list", tuple(map(_identity, value))) if isinstance(value, list) else str(value)


def _count(distribution: BaseDistribution) -> int | None:
    if isinstance(distribution, FloatDistribution):
        return None
    if isinstance(distribution, IntDistribution):
        return int(distribution.high) - int(distribution.low) + 1
    assert isinstance(distribution, CategoricalDistribution)
    return len(distribution.choices)


def _values(distribution: BaseDistribution) -> Sequence[Any]:
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices
    assert isinstance(distribution, IntDistribution)
    return range(distribution.low, distribution.high + 1)


def _ends(distribution: BaseDistribution) -> Sequence[Any]:
    if isinstance(distribution, CategoricalDistribution):
        choices, last = distribution.choices, len(distribution.choices) - 1
        some = (round(place * last / (_CHECKED - 1)) for place in range(_CHECKED))
        return choices if last < _CHECKED else [choices[place] for place in some]
    assert isinstance(distribution, IntDistribution | FloatDistribution)
    return distribution.low, distribution.high
