"""How much may be brought ahead at once, by what became of what was brought before. Pure."""

from __future__ import annotations

MOST_DOUBLINGS = 6
LEAST_SHARE = 2.0**-MOST_DOUBLINGS
USEFUL, WASTED = 2.0, 2.0**-0.5
"""What the share is multiplied by: it grows while a third or more of what is brought is read."""
DOUBLES_S = 10.0
"""So it comes back by itself: whoever brings nothing learns nothing."""


class PrefetchBudget:
    """Tokens on their way, or here and not read yet: all that the pool holds, and less of it the more was in vain.

    Feedback as in feedback-directed prefetching (Srinath et al., HPCA 2007), with a share in the place of levels.
    """

    def __init__(self, pool_tokens: int) -> None:
        self._pool_tokens = pool_tokens
        self._share = 1.0
        self._at_s = 0.0

    def date(self, now_s: float) -> None:
        """Times are seconds on the owner's clock, never less than before."""
        doublings = min((now_s - self._at_s) / DOUBLES_S, MOST_DOUBLINGS)
        self._share = min(1.0, self._share * 2.0**doublings)
        self._at_s = now_s

    @property
    def num_tokens(self) -> int:
        return int(self._share * self._pool_tokens)

    def useful(self) -> None:
        """A call has read what was brought."""
        self._share = min(1.0, USEFUL * self._share)

    def wasted(self) -> None:
        """It went, was given up or did not come."""
        self._share = max(LEAST_SHARE, WASTED * self._share)
