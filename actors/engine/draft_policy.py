"""How many tokens to draft: what they are expected to bring, against what a wider forward was measured to take.

Pure: from the same tokens and the same measured costs all shards of a worker decide alike.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field

WIDTHS = (1, 2, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
"""Tokens of a forward that are told apart; wider ones are not drafted for."""
MOST_DRAFTED = 64
"""Tokens drafted for one forward, of all its calls."""
MIN_GAIN = 1.05
"""Expected tokens a second over those without drafts, from which on drafting is worth its risk."""
MIN_CHANCE = 0.05
"""Of a drafted token to be taken; less likely ones are left out."""

_WEIGHT = 0.2  # of a new measurement
_PULL = 0.01  # of each measurement on what was not measured just now
_MAX_JUMP = 3.0  # what took longer than so many times its usual was held up by something else

_LENGTHS = (2, 4, 8)  # tokens alike: up to 2, to 4, to 8, more
_FIRST_CHANCES = (0.15, 0.35, 0.6, 0.85)
_TRUST = 4.0  # observations that what is believed from elsewhere counts for
_FADE = 0.985  # of what was observed, with each new observation: a half is gone after 46


class WidthCosts:
    """Seconds that a forward of decodes takes by its number of tokens, as moving averages."""

    def __init__(self, second: float, later: float) -> None:
        """Until measured a second token is taken to add `second` of what the first takes, each one more `later`."""
        self._second, self._later = second, later
        self.known: tuple[float, ...] = (0.0,) * len(WIDTHS)
        """By WIDTHS; 0 is not known."""

    def observe(self, num_tokens: int, seconds: float) -> None:
        at = bisect_left(WIDTHS, num_tokens)
        if at == len(WIDTHS) or seconds <= 0:
            return
        values = list(self.known)
        if any(values):
            expected = self._expected(at)
            values[at] = expected + (_WEIGHT if values[at] else 0.5) * (min(seconds, _MAX_JUMP * expected) - expected)
        else:
            values[at] = seconds
        for other, value in enumerate(values):  # so that one bad moment, or another context, is not believed for ever
            if value and other != at:
                usual = values[at] * self._shape(other) / self._shape(at)
                values[other] = value + _PULL * (usual - value)
        self.known = tuple(values)

    def adopt(self, known: tuple[float, ...]) -> None:
        """Those of the worker's first shard, by which all decide."""
        if known:
            self.known = known

    def expected(self, num_tokens: int) -> float:
        """Seconds, or multiples of a single token's forward while nothing is measured. For up to WIDTHS[-1] tokens."""
        return self._expected(bisect_left(WIDTHS, num_tokens))

    def _expected(self, at: int) -> float:
        nearest = min((i for i, value in enumerate(self.known) if value), key=lambda i: abs(i - at), default=None)
        if nearest is None:
            return self._shape(at)
        return self.known[nearest] * self._shape(at) / self._shape(nearest)

    def _shape(self, at: int) -> float:
        return 1.0 if at == 0 else 1.0 + self._second + self._later * (WIDTHS[at] - 2)


@dataclass(slots=True)
class Chances:
    """How often the token that followed at an earlier place was the next one here, by how many were alike."""

    believed: Chances | None = None  # of others of its kind; what is observed here counts there, too
    _hits: list[float] = field(default_factory=lambda: [0.0] * len(_FIRST_CHANCES))
    _tries: list[float] = field(default_factory=lambda: [0.0] * len(_FIRST_CHANCES))

    def observe(self, length: int, hit: bool) -> None:
        at = bisect_left(_LENGTHS, length)
        self._hits[at] = _FADE * self._hits[at] + hit
        self._tries[at] = _FADE * self._tries[at] + 1
        if self.believed is not None:
            self.believed.observe(length, hit)

    def chance(self, length: int) -> float:
        """Of the next token, if `length` are alike."""
        return self._chance(bisect_left(_LENGTHS, length))

    def of_following(self, length: int, most: int) -> list[float]:
        """Of each of the next `most` tokens, that it and all before it are as drafted."""
        found, together = [], 1.0
        for ahead in range(most):
            together *= self._chance(bisect_left(_LENGTHS, length + ahead))
            if together < MIN_CHANCE:
                break
            found.append(together)
        return found

    def _chance(self, at: int) -> float:
        before = _FIRST_CHANCES[at] if self.believed is None else self.believed._chance(at)
        return (self._hits[at] + _TRUST * before) / (self._tries[at] + _TRUST)


def choose(offers: Sequence[Sequence[float]], num_calls: int, costs: Sequence[float], *, waits: bool) -> list[int]:
    """How many tokens to draft of each offer, so that the forward's expected tokens a second are the most.

    An offer's items never rise: the chance of each drafted token to be taken. `num_calls` decode in the forward, those
    that offer among them; `costs[n]` is what it takes with n drafted tokens, in any unit. With `waits` a call whose
    tokens are drafted misses a forward while others go on: it has to know what was taken before it goes on itself.
    """
    counts = [0] * len(offers)
    price = 1.0 if waits and num_calls > 1 else 0.0  # in tokens
    ranked = sorted(
        (-chance, number) for number, chances in enumerate(offers) if sum(chances) > price for chance in chances
    )
    best, best_rate = 0, MIN_GAIN * num_calls / costs[0]
    expected, drafting = float(num_calls), set[int]()
    for taken, (minus_chance, number) in enumerate(ranked[: len(costs) - 1], start=1):
        expected -= minus_chance
        if number not in drafting:
            drafting.add(number)
            expected -= price
        if expected / costs[taken] > best_rate:
            best, best_rate = taken, expected / costs[taken]
    for _, number in ranked[:best]:
        counts[number] += 1
    return counts
