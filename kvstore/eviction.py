"""What goes first when a tier is full: policies, each a sort key over what is known of one encoding.

The key of `cost`, ours, is written down at `CostPolicy`. A policy of your own is any class with a `key` method,
named as `package.module:Class`; it serves and simulates alike.
"""

from __future__ import annotations

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
    withdrawn: bool = False  # a use was expected, and is no more: without a `next_use_s`, by no one
    num_returns: int = 0  # how often one was expected again after that
    since_s: float = 0.0  # first seen


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
    """Least worth its room first: `bring_back_s / num_bytes * chance of a read, a second`, then recency.

    The chance has two parts, and they add up:

    - `likelihood / wait`, of the reader that is known. `wait` is the time until it is expected. Once it is overdue,
      `wait` is the time since: a read that did not come counts for as much as one that came then, and fades likewise.
    - `UNANNOUNCED / age`, of one that nobody announced: the longer it has not been read, the less it will be.

    Where all cost the same to bring back, what is declared goes by farthest next use, what is not by least recent one.
    """

    UNANNOUNCED = 0.05
    """How much being read a second ago says of being read again, next to a sure reader in one second."""
    INSTANT_S = 1e-3

    def key(self, item: Evictable, now_s: float) -> tuple[float, ...]:
        a_second = self.UNANNOUNCED / (abs(now_s - item.last_use_s) + self.INSTANT_S)
        if item.next_use_s is not None:
            a_second += item.likelihood / (abs(item.next_use_s - now_s) + self.INSTANT_S)
        return (item.bring_back_s / item.num_bytes * a_second, item.last_use_s)


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
