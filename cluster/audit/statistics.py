"""Intervals for what an audit measures: shares by Wilson's, means by resampling whole inputs. Plain Python.

Tokens and steps of one input depend on each other, so inputs are what is drawn, each with all that was measured of it;
as every input is measured under both levels, what is resampled are pairs.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")

Z = 1.959963984540054  # of 95 %
NUM_RESAMPLES = 2000
SEED = 20_251_122

Interval = tuple[float, float]


def wilson(successes: int, trials: int) -> Interval:
    """The 95 % interval of a share; (0, 1) if nothing was tried.

    >>> low, high = wilson(0, 20)
    >>> round(low, 4), round(high, 4)
    (0.0, 0.1611)
    """
    if trials == 0:
        return 0.0, 1.0
    share, square = successes / trials, Z * Z
    centre = (share + square / (2 * trials)) / (1 + square / trials)
    half = Z * math.sqrt(share * (1 - share) / trials + square / (4 * trials * trials)) / (1 + square / trials)
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    return low, 1.0 if successes == trials else min(1.0, centre + half)


def bootstrap(units: Sequence[T], statistic: Callable[[Sequence[T]], float]) -> Interval | None:
    """The 95 % percentile interval of a statistic of `units`, resampled with a fixed seed; None for fewer than two."""
    if len(units) < 2:
        return None
    rng = random.Random(SEED)
    found = sorted(statistic(rng.choices(units, k=len(units))) for _ in range(NUM_RESAMPLES))
    return quantile(found, 0.025), quantile(found, 0.975)


def quantile(ordered: Sequence[float], share: float) -> float:
    """Of numbers in ascending order, between neighbours in proportion; 0 if there are none.

    >>> quantile([1.0, 2.0, 3.0], 0.25)
    1.5
    """
    if not ordered:
        return 0.0
    at = share * (len(ordered) - 1)
    low = math.floor(at)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (at - low)


def pooled_mean(units: Sequence[Sequence[float]]) -> float:
    """The mean of all numbers of all units; 0 if there are none."""
    count = sum(map(len, units))
    return sum(map(sum, units)) / count if count else 0.0


def ratio_of_sums(pairs: Sequence[tuple[float, float]]) -> float:
    """The first ones' sum over the second ones'; 0 if that is 0."""
    below = sum(second for _, second in pairs)
    return sum(first for first, _ in pairs) / below if below else 0.0
