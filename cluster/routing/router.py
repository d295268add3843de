"""Picks a call's worker. Needs no event loop and makes no remote call: it reads the directory's view and the ledger."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from laban.actors.calls import Source, WorkerInfo
from laban.cluster.routing.accounts import Account, Sent
from laban.cluster.routing.call_view import CallView, Need, bits
from laban.cluster.routing.comparison import Comparison, Fetch, Seen
from laban.cluster.routing.estimate import Estimate
from laban.cluster.routing.holdings import HolderView, Holdings
from laban.cluster.routing.ledger import Ledger
from laban.cluster.routing.policies import CostPolicy
from laban.cluster.routing.policy import RANKABLE, RoutingPolicy, WorkerView, ranking
from laban.cluster.routing.replication import MIN_TOKENS, Replication
from laban.kvstore import plugins
from laban.kvstore.encodings import EncodingId
from laban.kvstore.placements import PlacementState, Tier

NUM_CANDIDATES = 16
"""Workers that a choice can tell of, the best."""

COST = CostPolicy()
"""Decides where a policy of a user's own fails."""

Candidate = tuple[tuple[float, ...], WorkerView]
"""With its key."""


class Choice(NamedTuple):
    """Where a call goes. `account`, `estimate` and `source_accounts` are for the ledger."""

    worker_id: str
    account: Account
    estimate: Estimate
    sources: tuple[Source, ...]  # of what is to be fetched
    source_accounts: tuple[Account, ...]
    tokens_found: int  # of the call's view, expected not to be encoded again
    call: CallView
    policy: RoutingPolicy
    seen: Seen

    def candidates(self) -> list[Candidate]:
        """The best workers as the policy saw them, with the key of each, the chosen one first. Without keys if it has
        none for them now."""
        views = list(self.seen.views())
        try:
            return [(plugins.key_of(self.policy, view, self.call), view) for view in views]
        except plugins.PolicyFailed:
            return [((), view) for view in views]


class Router:
    """Estimates a call at all open workers at once (comparison.py), and takes the one whose key is the least.

    A policy that says by which numbers of a worker's view it ranks them is not asked; any other is shown every worker.
    """

    def __init__(
        self,
        policy: RoutingPolicy,
        view: HolderView,
        ledger: Ledger,
        replication: Replication | None = None,
        *,
        on_failure: Callable[[], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Without `replication` a copy is charged in full to the call that makes it. ValueError for a policy ranked by
        what no worker's view says. Where the policy has no key for a worker, or takes too long, `cost` decides for that
        call, and `on_failure` is called; without it PolicyFailed is raised, and time does not count."""
        self.policy = policy
        self._failures = (
            None if on_failure is None else plugins.Failures(policy, "cost decides for that call", on_failure)
        )
        self._patience = None if on_failure is None else plugins.Patience(clock)
        self.ledger = ledger
        self._replication = replication
        self._comparison = Comparison(ledger, Holdings(view, ledger), replication)
        self._fields = _fields(policy)

    def choose(self, call: CallView, now_s: float = 0.0, only: str | None = None) -> Choice | None:
        """The best of the open workers, or the one that it must be; None if there is none. Changes nothing."""
        ledger, comparison, policy = self.ledger, self._comparison, self.policy
        must = None if only is None else ledger.accounts.get(only)
        if not ledger.num_open or (only is not None and (must is None or not ledger.is_open(must))):
            return None
        comparison.compare(call, now_s)
        if must is not None:
            best = [must.number]
        elif len(self._fields):
            best = comparison.rank(self._fields, NUM_CANDIDATES)
        else:
            try:
                best = self._by_key(call)
            except plugins.PolicyFailed as error:
                if self._failures is None:
                    raise
                self._failures.note(error)
                policy, best = COST, comparison.rank(_fields(COST), NUM_CANDIDATES)
        account = ledger.by_number[best[0]]
        estimate, fetches = comparison.settle(account.number)
        sources, source_accounts = self._sources(call, account, fetches) if fetches else ((), ())
        encoded = estimate.encoded
        return Choice(
            account.worker_id,
            account,
            estimate,
            sources,
            source_accounts,
            call.tokens_read - sum([call.needs[at].num_read for at in bits(encoded)]) if encoded else call.tokens_read,
            call,
            policy,
            comparison.see(best),
        )

    def _by_key(self, call: CallView) -> list[int]:
        """The numbers of the best workers, by a policy that is asked for each. Raises PolicyFailed."""
        ledger, policy, patience = self.ledger, self.policy, self._patience
        if patience is not None:
            patience.begin()
        seen = self._comparison.see([account.number for account in ledger.accounts.values() if ledger.is_open(account)])
        views, keyed = list(seen.views()), []
        for num_asked, view in enumerate(views, 1):
            keyed.append((plugins.key_of(policy, view, call), view.worker_id))
            if patience is not None:
                patience.check(num_asked, len(views))
        keyed.sort()
        return [ledger.accounts[worker_id].number for _, worker_id in keyed[:NUM_CANDIDATES]]

    def _sources(
        self, call: CallView, chosen: Account, fetches: list[Fetch]
    ) -> tuple[tuple[Source, ...], tuple[Account, ...]]:
        """Whom the chosen worker is to fetch what from: who has it in memory, and of these who sends the fewest."""
        sources, accounts, pace = [], [], chosen.pace
        for at, number, num_sends, from_disk in fetches:
            encoding_id, num_tokens, _, _ = call.needs[at]
            account = self.ledger.by_number[number]
            token_ns = self.ledger.rates.fetch_ns(chosen.worker_id, account.worker_id)  # by the transport between them
            if from_disk:
                token_ns += pace.peer_disk_ns - pace.peer_ns
            transfer_s = num_tokens * token_ns * (1 + num_sends) / 1e9
            sources.append(Source(encoding_id, account.worker_id, account.epoch, transfer_s))
            accounts.append(account)
        return tuple(sources), tuple(accounts)

    def send(self, call: CallView, choice: Choice, now_s: float = 0.0) -> Sent:
        """Take note that the call goes where `choice` says, in the ledger and for the choices to come."""
        if self._replication is not None:
            waited_ms = choice.account.queue_ms - self.ledger.shortest_queue_ms()
            if waited_ms > 0:
                # Who waits for a message that is being made there would wait for it anywhere.
                missing = choice.estimate.missing
                hot = [
                    need.encoding_id
                    for at, need in enumerate(call.needs)
                    if need.num_tokens >= MIN_TOKENS
                    and call.wanted >> at & 1
                    and not missing >> at & 1
                    and not self.ledger.is_coming(need.encoding_id, choice.account)
                ]
                self._replication.read(hot, waited_ms, now_s)
        return self.ledger.sent(choice.account, call, choice.estimate, choice.source_accounts)


def _fields(policy: RoutingPolicy) -> NDArray[np.int64]:
    """Numbers of what it ranks workers by."""
    return np.array([RANKABLE.index(name) for name in ranking(policy)], np.int64)


def warm_up() -> None:
    """Compiles what chooses, which takes seconds, or loads it compiled: before the first call waits for it."""
    ledger = Ledger()
    ledger.add(WorkerInfo("worker", "epoch", "namespace", "model", 1, 1, 1, 1, 1, "none", "float32", "cpu"))
    call = CallView("warm-up/call", "warm-up", 0, (Need("context", 1, 0, 0), Need("read", 1, 1, 1)), 2, 1, 1, 1)
    Router(CostPolicy(), _Nothing(), ledger).choose(call)


class _Nothing:
    """Held by anybody."""

    def holders(self, encoding_id: EncodingId) -> Mapping[str, Sequence[tuple[Tier, PlacementState, int]]]:
        return {}

    def listen(self, changed: Callable[[EncodingId], None]) -> None:
        pass
