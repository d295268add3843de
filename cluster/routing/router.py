"""Picks a call's worker. Needs no event loop and makes no remote call: it reads the directory's view and the ledger."""

from __future__ import annotations

from typing import NamedTuple

from laban.actors.calls import Source
from laban.cluster.routing.accounts import Account, Sent
from laban.cluster.routing.call_view import CallView, bits
from laban.cluster.routing.estimate import Estimate, Estimator
from laban.cluster.routing.holdings import Group, HolderView, Holdings, Left
from laban.cluster.routing.ledger import Ledger
from laban.cluster.routing.policy import RoutingPolicy, WorkerView
from laban.cluster.routing.replication import MIN_TOKENS, Replication

Candidate = tuple[tuple[float, ...], WorkerView]
"""With its key."""

_Looked = tuple[Account, tuple[int, int, str, int], int, Estimator, Group, int, int]
"""A worker looked at: its place and how busy its link was then, what estimates for it, its group, the tokens that it
leaves elsewhere and the time to bring them."""


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
    looked: list[_Looked]
    turns: tuple[int, int]  # the place of the worker whose turn it is, and how many workers there are

    def candidates(self) -> list[Candidate]:
        """The workers looked at, as the policy sees them, with the key of each."""
        views = [_view(each, self.call.own_tokens, self.turns) for each in self.looked]
        return [(self.policy.key(view, self.call), view) for view in views]


class Router:
    """Looks at few workers and chooses as if it had looked at all.

    Workers are grouped: in a group they are as fast as each other (rates.py sees to it that paces are few), hold the
    same of what the call needs, and as many tokens of what its successors will read. So within a group the estimate
    without queues and `left_tokens` are one and the same; workers that hold nothing differ by their queues alone.

    The policy `cost` has the key (cost_ms, left_tokens, num_calls), then the id, and of two workers of a group:
    cost_ms = queue_ms + round(max(link + bring, encode) + own + left), all but queue and link theirs in common. If A
    comes before B in the order (queue_ms, num_calls, id) and its link is no busier, then neither term of its cost_ms is
    larger. Either the sum is smaller, or both terms are the same, so the queues are equal and (num_calls, id) decides
    for A. So B is never chosen. `Ledger.front` leaves out none but such a B: the best worker of all is among the fronts
    of the groups. The same is true of any policy whose key, the rest being equal, grows with the queue and then the
    calls. For those that take turns, the worker whose turn is next is looked at besides.

    A policy whose key begins with `cost_ms` may say so, with an attribute `by_cost` that is true: then it is asked for
    the keys of those only whose cost is the least.
    """

    def __init__(
        self, policy: RoutingPolicy, view: HolderView, ledger: Ledger, replication: Replication | None = None
    ) -> None:
        """Without `replication` a copy is charged in full to the call that makes it."""
        self.policy = policy
        self.ledger = ledger
        self._holdings = Holdings(view, ledger)
        self._replication = replication
        self._by_cost = bool(getattr(policy, "by_cost", False))

    def choose(self, call: CallView, now_s: float = 0.0) -> Choice | None:
        """The best of the open workers; None if there is none. Changes nothing."""
        ledger = self.ledger
        if not ledger.open:
            return None
        question = self._holdings.ask(call)
        shares = self._shares(call, now_s)
        left = self._holdings.left(call)
        left_tokens, apart, by_bit = left.tokens, left.apart, ledger.by_bit
        looked: list[_Looked] = []
        best: list[_Looked] = []  # the cheapest of these
        least_ms = -1
        for pace, as_fast in ledger.paces.items():
            if not question.workers & as_fast:
                continue
            estimator = Estimator(call, pace, question.everywhere, question.sendable, question.peers, shares)
            own_ns = call.own_tokens * pace.encode_ns + 500_000  # to be rounded
            later_ns = min(pace.encode_ns, pace.peer_ns) if call.foreseen else 0
            for group in question.groups:
                members = group[0] & as_fast
                if not members:
                    continue
                bring_ns, encode_ns = estimator.times(group)
                if members & members - 1:
                    fronts = self._fronts(members, bring_ns > 0, left)
                else:
                    fronts = [(by_bit[members], left.at(members) if members & apart else left_tokens)]
                for account, tokens in fronts:
                    place, link_ns = account.place, account.link_ns
                    one = (account, place, link_ns, estimator, group, tokens, tokens * later_ns)
                    looked.append(one)
                    busy_ns = bring_ns + link_ns if bring_ns else 0
                    spent_ns = (busy_ns if busy_ns > encode_ns else encode_ns) + own_ns + tokens * later_ns
                    cost_ms = place[0] + spent_ns // 1_000_000
                    if cost_ms < least_ms or least_ms < 0:
                        least_ms, best = cost_ms, [one]
                    elif cost_ms == least_ms:
                        best.append(one)
        if not self._by_cost:
            best = looked
        turns = (ledger.turns(), len(ledger.accounts))
        chosen = best[0]
        if len(best) > 1 or not self._by_cost:
            keyed = [(self.policy.key(_view(each, call.own_tokens, turns), call), each[1][2]) for each in best]
            chosen = best[keyed.index(min(keyed))]
        account, estimate = chosen[0], Estimate._make(chosen[3].estimate(*chosen[4][1:]))
        sources, source_accounts = self._holdings.sources(call, account, estimate) if estimate.fetched else ((), ())
        found = call.tokens_read - sum([call.needs[at].num_read for at in bits(estimate.encoded)])
        return Choice(
            account.worker_id, account, estimate, sources, source_accounts, found, call, self.policy, looked, turns
        )

    def _fronts(self, members: int, loads: bool, left: Left) -> list[tuple[Account, int]]:
        """Of a group, those to be looked at, with the tokens that each leaves elsewhere."""
        ledger = self.ledger
        alike = members & ~left.apart
        found = [(account, left.tokens) for account in ledger.front(alike, loads)] if alike else []
        if members != alike:
            for among, tokens in left.parts:
                if members & among:
                    found += [(account, tokens) for account in ledger.front(members & among, loads)]
        next_turn = ledger.next_turn()
        if members & next_turn.bit and not any([account is next_turn for account, _ in found]):
            found.append((next_turn, left.at(next_turn.bit)))
        return found

    def send(self, call: CallView, choice: Choice, now_s: float = 0.0) -> Sent:
        """Take note that the call goes where `choice` says, in the ledger and for the choices to come."""
        if self._replication is not None:
            waited_ms = choice.account.queue_ms - self.ledger.shortest_queue_ms()
            if waited_ms > 0:
                missing = choice.estimate.missing
                hot = [
                    need.encoding_id
                    for at, need in enumerate(call.needs)
                    if need.num_tokens >= MIN_TOKENS and call.wanted >> at & 1 and not missing >> at & 1
                ]
                self._replication.read(hot, waited_ms, now_s)
        return self.ledger.sent(choice.account, call, choice.estimate, choice.source_accounts)

    def _shares(self, call: CallView, now_s: float) -> dict[int, float]:
        replication = self._replication
        if not replication:
            return {}
        token_ms = min(min(pace.encode_ns, pace.peer_ns) for pace in self.ledger.paces) / 1e6
        shares = {}
        for at, need in enumerate(call.needs):
            if need.num_tokens >= MIN_TOKENS:
                share = replication.share(need.encoding_id, need.num_tokens * token_ms, now_s)
                if share < 1.0:
                    shares[at] = share
        return shares


def _view(looked: _Looked, own_tokens: int, turns: tuple[int, int]) -> WorkerView:
    account, (queue_ms, num_calls, worker_id, _), link_ns, estimator, group, left_tokens, left_ns = looked
    told = Estimate._make(estimator.estimate(*group[1:]))
    bring_ns = told.load_ns + told.fetch_ns
    if bring_ns:
        bring_ns += link_ns
    slower_ns = max(bring_ns, told.encode_ns) + told.own_ns
    cheaper_ns = max(bring_ns - told.saved_bring_ns, told.encode_ns - told.saved_encode_ns) + told.own_ns + left_ns
    return WorkerView(
        worker_id=worker_id,
        ttft_ms=queue_ms + (slower_ns + 500_000) // 1_000_000,
        cost_ms=queue_ms + (cheaper_ns + 500_000) // 1_000_000,
        left_tokens=left_tokens,
        num_calls=num_calls,
        queue_ms=queue_ms,
        turns=(account.turn - turns[0]) % turns[1],
        free_pages=account.load.num_free_pages,
        load_ns=told.load_ns,
        fetch_ns=told.fetch_ns,
        encode_ns=told.encode_ns + told.own_ns,
        tokens_host=told.tokens_host,
        tokens_disk=told.tokens_disk,
        tokens_peer=told.tokens_peer,
        tokens_encode=told.tokens_encode + own_tokens,
    )
