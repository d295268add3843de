"""Where calls go: the policies that come with Laban, and how one is found by its name."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from laban.cluster.routing.call_view import CallView
from laban.cluster.routing.policy import RoutingPolicy, WorkerView
from laban.kvstore import plugins


class CostPolicy:
    """Where the first token comes soonest, this call's and, as far as it is known what they will read, those of the
    workflow's later calls: so fan-outs stay by the messages that they share and joins do not straddle, unless the queue
    is longer than that is worth. Encoding again what another worker has counts once more in a busy fleet, for whoever
    waits meanwhile. Of places as good, where most of what later calls may read lies; of these, where the
    fewest calls are."""

    key_names = ("cost_ms", "tokens_left_elsewhere", "calls")
    by_cost = True

    def key(self, worker: WorkerView, call: CallView) -> tuple[float, ...]:
        return (worker.cost_ms, worker.left_tokens, worker.num_calls)


class PrefixAffinityPolicy:
    """Where the least has to be encoded or brought, however long the queue there."""

    key_names = ("tokens_missing", "queue_ms", "calls")

    def key(self, worker: WorkerView, call: CallView) -> tuple[float, ...]:
        missing = worker.tokens_encode + worker.tokens_peer + worker.tokens_host + worker.tokens_disk
        return (missing, worker.queue_ms, worker.num_calls)


class LeastLoadedPolicy:
    """Where the queue is shortest, whatever lies there."""

    key_names = ("queue_ms", "calls")

    def key(self, worker: WorkerView, call: CallView) -> tuple[float, ...]:
        return (worker.queue_ms, worker.num_calls)


class RoundRobinPolicy:
    """Each worker in its turn. Whose it is stands in the view, so nothing is counted here."""

    key_names = ("turns",)

    def key(self, worker: WorkerView, call: CallView) -> tuple[float, ...]:
        return (worker.turns,)


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
    return cast(RoutingPolicy, plugins.make(name, "routing policy"))
