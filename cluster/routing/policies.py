"""Where calls go: the policies that come with Laban, and how one is found by its name."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from laban.cluster.routing.call_view import CallView
from laban.cluster.routing.policy import RoutingPolicy, WorkerView, ranking
from laban.kvstore import plugins


class _Ranked:
    """By what a worker's view says, one after the other."""

    ranked_by: tuple[str, ...]

    def key(self, worker: WorkerView, call: CallView) -> tuple[float, ...]:
        return tuple(getattr(worker, name) for name in self.ranked_by)


class CostPolicy(_Ranked):
    """Where the first token comes soonest, this call's and, as far as it is known what they will read, those of the
    workflow's later calls: so fan-outs stay by the messages that they share and joins do not straddle, unless the queue
    is longer than that is worth. Encoding again what another worker has counts once more in a busy fleet, for whoever
    waits meanwhile. Of places as good, where most of what later calls may read lies; of these, where the
    fewest calls are."""

    key_names = ("cost_ms", "tokens_left_elsewhere", "calls")
    ranked_by = ("cost_ms", "left_tokens", "num_calls")


class PrefixAffinityPolicy(_Ranked):
    """Where the least has to be encoded or brought, however long the queue there."""

    key_names = ("tokens_missing", "queue_ms", "calls")
    ranked_by = ("tokens_missing", "queue_ms", "num_calls")


class LeastLoadedPolicy(_Ranked):
    """Where the queue is shortest, whatever lies there."""

    key_names = ("queue_ms", "calls")
    ranked_by = ("queue_ms", "num_calls")


class RoundRobinPolicy(_Ranked):
    """Each worker in its turn. Whose it is stands in the view, so nothing is counted here."""

    key_names = ("turns",)
    ranked_by = ("turns",)


POLICIES: dict[str, Callable[[], RoutingPolicy]] = {
    "cost": CostPolicy,
    "prefix_affinity": PrefixAffinityPolicy,
    "least_loaded": LeastLoadedPolicy,
    "round_robin": RoundRobinPolicy,
}


def load_routing(name: str) -> RoutingPolicy:
    """The policy of that name, or one of your own as package.module:Class, made without arguments.

    Raises ValueError, naming what there is or what is wrong with yours.
    """
    if name in POLICIES:
        return POLICIES[name]()
    if ":" not in name:
        raise ValueError(f"routing policy {name!r}: expected {', '.join(POLICIES)} or package.module:Class")
    policy = cast(RoutingPolicy, plugins.make(name, "routing policy"))
    ranking(policy)
    return policy
