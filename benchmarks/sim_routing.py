"""Routing in the simulator: the router, ledger and policies that serve."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from sim_costs import Costs
from sim_flows import Message
from sim_worker import SimCall

from laban.actors.calls import WorkerInfo, WorkerLoad, WorkerRates
from laban.cluster.routing.call_view import MAX_SUCCESSORS, CallView, Need
from laban.cluster.routing.ledger import Ledger
from laban.cluster.routing.policies import load_routing
from laban.cluster.routing.replication import Replication
from laban.cluster.routing.router import Choice, HolderView, Router, warm_up

PAGE_TOKENS = 16


class SimRouter:
    """`decisions_s` is what each took, of this process's time."""

    def __init__(self, policy: str, view: HolderView, costs: Costs, *, replicate: bool = True) -> None:
        warm_up()
        self._costs = costs
        self.ledger = Ledger()
        self.router = Router(load_routing(policy), view, self.ledger, Replication() if replicate else None)
        self.decisions_s: list[float] = []

    def join(self, worker_id: str, epoch: str) -> None:
        costs = self._costs
        pages = int(costs.device_bytes / costs.bytes_per_token / PAGE_TOKENS)
        info = WorkerInfo(
            worker_id, epoch, "sim", "sim", 1 << 20, pages, PAGE_TOKENS, costs.bytes_per_token, 1 << 16,
            "none", "none", "none", host_bytes=int(costs.host_bytes), fetches=True,
        )  # fmt: skip
        account = self.ledger.add(info)
        rates = WorkerRates(
            costs.encode_tokens_per_s,
            costs.iteration_s,
            costs.link_bytes_per_s,
            costs.disk_read_bytes_per_s,
            costs.peer_bytes_per_s,
        )
        self.ledger.report(account, WorkerLoad(num_free_pages=pages, num_pages=pages), rates)

    def leave(self, worker_id: str) -> None:
        self.ledger.remove(worker_id)

    def report(self, worker_id: str, num_running: int, num_blocked: int, free_bytes: float) -> None:
        account = self.ledger.accounts.get(worker_id)
        if account is not None:
            pages = int(free_bytes / self._costs.bytes_per_token / PAGE_TOKENS)
            load = WorkerLoad(num_running, num_blocked, 0, pages, account.load.num_pages, num_blocked=num_blocked)
            self.ledger.report(account, load, self.ledger.rates._members[worker_id].reported)

    def choose(self, view: CallView, now_s: float) -> Choice | None:
        began = time.thread_time()
        choice = self.router.choose(view, now_s)
        self.decisions_s.append(time.thread_time() - began)
        return choice


def view_of(
    call: SimCall, family: str, exists: Callable[[Message], bool], successors: Mapping[str, int], foreseen: bool
) -> CallView:
    """What the router is told of a call."""
    needs: list[Need] = []
    places: dict[str, int] = {}
    read = set(call.reads)

    def place(message: Message) -> int:
        at = places.get(message.name)
        if at is None:
            context = 0
            for need in message.needs:
                if exists(need):
                    context |= 1 << place(need)
            at = places[message.name] = len(needs)
            tokens = message.num_tokens
            needs.append(Need(message.name, tokens, context, tokens if message in read else 0))
        return at

    wanted = 0
    for message in call.reads:
        at = place(message)
        wanted |= 1 << at
    step = call.step
    return CallView(
        call_id=f"{family}/{call.number}",
        family=family,
        rank=call.rank,
        needs=tuple(needs),
        wanted=wanted,
        own_tokens=step.new_tokens,
        output_tokens=step.new_tokens + step.output_tokens,
        tokens_read=sum(message.num_tokens for message in call.reads),
        successors=tuple(item for item in successors.items() if item[0] not in places)[:MAX_SUCCESSORS],
        foreseen=foreseen,
    )
