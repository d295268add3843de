"""An eviction and a routing policy of one's own. From the repository's root, with its environment active:

    laban run examples/parallel_debate.yaml --eviction examples.policies.frequent:KeepReturning
    python benchmarks/simulate.py --workload mixed --eviction lru,cost,examples.policies.frequent:KeepReturning
    python benchmarks/simulate.py --workers 8 --routing cost,examples.policies.frequent:NearestUnlessBusy

Names are found from the folder that Laban is started in.
"""

from laban.cluster.routing.call_view import CallView
from laban.cluster.routing.policy import WorkerView
from laban.kvstore.eviction import Evictable


class KeepReturning:
    """What was read longest ago goes first, as with `lru`; but what is known to be read next within a minute goes last,
    and each time that a use was announced anew counts for ten seconds of age."""

    def key(self, item: Evictable, now_s: float) -> tuple[float, ...]:
        soon = item.next_use_s is not None and item.next_use_s < now_s + 60.0
        return (float(soon), item.last_use_s + 10.0 * item.num_returns)


class NearestUnlessBusy:
    """Where the least is missing, among those whose queue is under a tenth of a second; then the shortest queue."""

    key_names = ("busy", "tokens_missing", "queue_ms")

    def key(self, worker: WorkerView, call: CallView) -> tuple[float, ...]:
        return (float(worker.queue_ms > 100), worker.tokens_missing, worker.queue_ms)
