"""Medians, with intervals that assume nothing of the noise."""

import math
from collections.abc import Sequence

import torch

FEWEST_PAIRS = 6  # below, no two order statistics enclose the median with 95 % confidence


def median_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """Order statistics that enclose the median with at least ``confidence``, whatever the distribution.

    The k-th smallest and k-th largest of n values miss it with probability 2 P(Binomial(n, 1/2) < k). Where
    n is too small for any k, the smallest and the largest are given.
    """
    ordered = sorted(values)
    n, k, below = len(ordered), 0, 0.0
    while k < n // 2:
        below += math.comb(n, k) / 2**n
        if 2 * below > 1 - confidence:
            break
        k += 1
    k = max(k, 1)
    return ordered[k - 1], ordered[n - k]


def median_figures(name: str, values: Sequence[float]) -> dict[str, float]:
    """The median of values as the figure ``name``, and its interval as ``name_low`` and ``name_high``."""
    low, high = median_interval(values)
    return {name: quantile(values, 0.5), f"{name}_low": low, f"{name}_high": high}


def quantile(values: Sequence[float], q: float) -> float:
    """The quantile ``q`` of values."""
    return float(torch.tensor(values, dtype=torch.float64).quantile(q))
