"""What goes first when a tier is full: policies, each a sort key over what is known of one encoding.

The key of `cost`, ours, is written down at `CostPolicy`. A policy of your own is any class with a `key` method,
named as `package.module:Class`; it serves and simulates alike.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from typing import Protocol, cast

from laban.kvstore import plugins
from laban.kvstore.encodings import EncodingId


@dataclass(frozen=True, slots=True)
class Evictable:
    """What a policy may know of an encoding that could leave its tier. Times in seconds on the owner's clock."""

    encoding_id: EncodingId
    num_tokens: int
    num_bytes: int
    last_use_s: float
    next_use_s: float | None  # expected; None: nobody is known to read it again
    steps: int | None  # steps-to-execution of that reader
    likelihood: float  # that it comes to that
    fixed: bool  # written before the run began
    bring_back_s: float  # what having it again would take: a reload, or encoding it and its evicted ancestors
    true_next_use_s: float | None = None  # simulation only
    withdrawn: bool = False  # who was expected to read it has, or will not: without a `next_use_s`, nobody will
    num_returns: int = 0  # how often somebody did, or was expected to, after that
    since_s: float = 0.0  # when it was withdrawn first


class EvictionPolicy(Protocol):
    def key(self, item: Evictable, now_s: float) -> tuple[float, ...]:
        """The lowest goes first. Pure: called for every candidate."""
        ...


class LruPolicy:
    """What was used longest ago."""

    def key(self, item: Evictable, now_s: float) -> tuple[float, ...]:
        return (item.last_use_s,)


class StepsPolicy:
    """KVFlow as published: varying parts first, whatever their age; then fixed ones, most steps-to-execution first.

    KVFlow leaves open which of several at equal distance goes first, and its code takes any; here the least recently
    used does.
    """

    def key(self, item: Evictable, now_s: float) -> tuple[float, ...]:
        if not item.fixed:
            return (0.0, 0.0, item.last_use_s)
        return (1.0, -inf if item.steps is None else -float(item.steps), item.last_use_s)


class CostPolicy:
    """Least worth its room goes first: `bring_back_s / num_bytes / wait_s * chance`, then recency.

    That is what keeping a byte for a second is expected to save. Of an announced use the chance is its likelihood. From
    the last use to the announced one is its `interval_s`; what is said of it may be off by some of that, so

    - before it is due, `wait_s` is the time until then, and DOUBT of the interval;
    - overdue by `late` intervals, `wait_s` is interval_s * (DOUBT + late / 5 + late^2 / 20): it should come any moment,
      and with time it more and more will not. Nothing is pinned by a use that never comes.

    Of what nobody announced `wait_s` is the age, the time since its last use: what has not been read for long will not
    be for long. The chance is UNANNOUNCED; WITHDRAWN if a use was announced and taken back, as it is when the last run
    that reads it ends, or a run said that it read its own for the last time; RETURNED if after that somebody came back
    to it before, as happens to what many runs read, and then `wait_s` is the time that it takes to come back, unless
    the age is longer.

    So where all cost the same to bring back, what is announced goes by farthest next use and what is not as with `lru`;
    where costs differ, what is cheap by the byte goes before it, as GreedyDual would have it.
    """

    DOUBT = 0.1
    UNANNOUNCED = 0.02
    WITHDRAWN = 0.0004
    RETURNED = 0.05
    INSTANT_S = 1e-3

    def key(self, item: Evictable, now_s: float) -> tuple[float, ...]:
        age_s = max(0.0, now_s - item.last_use_s) + self.INSTANT_S
        next_use_s = item.next_use_s
        if next_use_s is None:
            if not item.withdrawn:
                chance_a_second = self.UNANNOUNCED / age_s
            elif not item.num_returns:
                chance_a_second = self.WITHDRAWN / age_s
            else:
                chance_a_second = self.RETURNED / max(age_s, (now_s - item.since_s) / item.num_returns)
        else:
            since_s = item.last_use_s if item.last_use_s > -inf else now_s  # brought, and not used yet
            interval_s = abs(next_use_s - since_s) + self.INSTANT_S
            if next_use_s >= now_s:
                chance_a_second = item.likelihood / (next_use_s - now_s + self.DOUBT * interval_s)
            else:
                late = (now_s - next_use_s) / interval_s
                wait_s = interval_s * (self.DOUBT + late / 5 + late * late / 20)
                chance_a_second = item.likelihood / wait_s + self.UNANNOUNCED / age_s
        return (item.bring_back_s / item.num_bytes * chance_a_second, item.last_use_s)


class Guarded:
    """A policy of a user's own, in service: what it has no key for goes before all else, among itself as `cost` has it.
    So no key of one is compared with one of the other."""

    def __init__(self, policy: EvictionPolicy, counted: Callable[[], None] = lambda: None) -> None:
        """`counted` is called for each failure."""
        self._policy, self._else = policy, CostPolicy()
        self._failures = plugins.Failures(policy, "cost decides for that encoding", counted)

    def key(self, item: Evictable, now_s: float) -> tuple[float, ...]:
        try:
            return (1.0, *plugins.key_of(self._policy, item, now_s))
        except plugins.PolicyFailed as error:
            self._failures.note(error)
            return (0.0, *self._else.key(item, now_s))


class Checked:
    """A policy of a user's own, in simulations: its key raises plugins.PolicyFailed."""

    def __init__(self, policy: EvictionPolicy) -> None:
        self._policy = policy

    def key(self, item: Evictable, now_s: float) -> tuple[float, ...]:
        return plugins.key_of(self._policy, item, now_s)


class BeladyPolicy:
    """Farthest next use first, by the future itself: in simulation alone."""

    def key(self, item: Evictable, now_s: float) -> tuple[float, ...]:
        return (-inf if item.true_next_use_s is None else -item.true_next_use_s, item.last_use_s)


SERVING: dict[str, type[EvictionPolicy]] = {"cost": CostPolicy, "steps": StepsPolicy, "lru": LruPolicy}
SIMULATED: dict[str, type[EvictionPolicy]] = {**SERVING, "belady": BeladyPolicy}


def load_policy(name: str, *, simulated: bool = False) -> EvictionPolicy:
    """The policy called so, or one of a user's own as `package.module:Class`.

    Raises ValueError that names what there is, or what is wrong with the class.
    """
    known = SIMULATED if simulated else SERVING
    if name in known:
        return known[name]()
    if ":" in name:
        return cast(EvictionPolicy, plugins.make(name, "eviction policy"))
    why = ": it knows the future and serves in simulations only" if name in SIMULATED else ""
    raise ValueError(f"eviction policy {name!r}{why}; expected {', '.join(known)} or package.module:Class")
