"""What audited calls of one kind came to, and how far their mean can be from the truth.

The unit is a call: the mean KL of its tokens is one number. Sums only, so tallies of several processes add up.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

MIN_CALLS = 20
"""With fewer nothing is concluded: the bounds below hold for means, which few numbers do not make."""

ALPHA = 0.05
"""How often a bound may be wrong, at any of all the times that it is looked at."""

MOST = 10**12
"""Of any count or sum: they are added up in a database."""

TIGHTEST_CALLS = 50
"""The bound is tightest for about so many calls."""


@dataclass(frozen=True, slots=True)
class Tally:
    """`kl_sum` and `kl_squares` are over calls, of each one's mean KL in nats a token."""

    num_calls: int = 0
    kl_sum: float = 0.0
    kl_squares: float = 0.0
    num_tokens: int = 0
    num_agreed: int = 0  # tokens that both levels like best
    num_decisions: int = 0
    num_flips: int = 0

    @classmethod
    def of_call(cls, kl: Sequence[float], agrees: Sequence[bool]) -> Tally:
        """Of one call; nothing of one without tokens."""
        if not kl:
            return cls()
        mean = math.fsum(kl) / len(kl)
        return cls(1, mean, mean * mean, len(kl), sum(agrees))

    def plus(self, other: Tally) -> Tally:
        return Tally(*(getattr(self, each.name) + getattr(other, each.name) for each in fields(self)))

    @property
    def is_possible(self) -> bool:
        """Whether calls can come to this."""
        counts = (self.num_calls, self.num_tokens - self.num_agreed, self.num_agreed, self.num_flips)
        sums = (self.kl_sum, self.kl_squares)
        if min(counts) < 0 or self.num_flips > self.num_decisions or not all(map(math.isfinite, sums)):
            return False
        if max(self.num_calls, self.num_tokens, self.num_decisions, *sums) > MOST:
            return False
        return self.kl_sum >= 0 and self.kl_squares * self.num_calls >= self.kl_sum**2 * (1 - 1e-6)

    @property
    def kl_mean(self) -> float:
        """Nats a token; 0 if there is none."""
        return self.kl_sum / self.num_calls if self.num_calls else 0.0

    @property
    def flip_risk(self) -> float:
        """How likely the next decision flips, by Laplace's rule of succession; 0 where nothing is decided."""
        return (self.num_flips + 1) / (self.num_decisions + 2) if self.num_decisions else 0.0

    @property
    def is_enough(self) -> bool:
        return self.num_calls >= MIN_CALLS

    @property
    def kl_at_least(self) -> float:
        """A lower bound of the mean, however often one has looked."""
        return max(0.0, self.kl_mean - self._deviation * reach(self.num_calls)) if self.num_calls else 0.0

    def is_outside(self, tolerance: float) -> bool:
        """Whether the mean is above the tolerance, surely enough."""
        return self.is_enough and self.kl_at_least > tolerance

    def is_within(self, tolerance: float) -> bool:
        """Whether the mean is at most the tolerance, surely enough, and the risk of a flip, too.

        The standard deviation counts as no smaller than the tolerance: where the rare large numbers have not come yet
        both the mean and the deviation look smaller than they are.
        """
        if not self.is_enough or self.flip_risk > tolerance:
            return False
        return self.kl_mean + max(self._deviation, tolerance) * reach(self.num_calls) <= tolerance

    @property
    def _deviation(self) -> float:
        return math.sqrt(max(0.0, self.kl_squares / self.num_calls - self.kl_mean**2))


def reach(num: int) -> float:
    """How far, in standard deviations, the mean of `num` numbers is from the truth at most: on one side, for all
    numbers of them at once, but with probability ALPHA.

    The asymptotic confidence sequence of Waudby-Smith and others (arXiv 2103.06476): unlike an interval for a fixed
    number it may be looked at after each call, and acted on at the first that leaves the tolerance.
    """
    log = -2.0 * math.log(ALPHA)
    scale = (log + math.log(log) + 1.0) / TIGHTEST_CALLS
    grown = num * scale + 1.0
    return math.sqrt(2.0 * grown / (num * num * scale) * math.log(1.0 + math.sqrt(grown) / (2.0 * ALPHA)))
