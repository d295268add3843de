"""Picks a call's worker. Needs no event loop and makes no remote call: it reads the directory's view and the ledger."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from laban.actors.calls import Source
from laban.cluster.routing.accounts import Account, Sent
from laban.cluster.routing.call_view import CallView, bits
from laban.cluster.routing.comparison import CLOSED_MS, Comparison, Costs
from laban.cluster.routing.estimate import Estimate, Estimator
from laban.cluster.routing.holdings import Group, HolderView, Holdings, Left, Survey
from laban.cluster.routing.ledger import Ledger
from laban.cluster.routing.policy import RoutingPolicy, WorkerView
from laban.cluster.routing.rates import Pace
from laban.cluster.routing.replication import MIN_TOKENS, Replication

NUM_TOLD = 16
"""Workers that a choice by cost can tell of, the cheapest."""

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
    look: Callable[[], list[_Looked]]
    turns: tuple[int, int]  # the place of the worker whose turn it is, and how many workers there are
    crowd: tuple[int, int]  # as Ledger.crowd says

    def candidates(self) -> list[Candidate]:
        """The workers looked at, as the policy sees them, with the key of each."""
        views = [_view(each, self.call.own_tokens, self.turns, self.crowd) for each in self.look()]
        return [(self.policy.key(view, self.call), view) for view in views]


class Router:
    """Chooses as if each worker had been looked at by itself, in one of two ways.

    A policy whose key is (cost_ms, left_tokens, num_calls), and so the worker's id, says so with an attribute `by_cost`
    that is true. For it the costs at all workers are worked out at once, as arrays (comparison.py); where one is but a
    lower bound the worker is looked at by itself, those with the lowest bounds first, until the bounds are above what
    was found.

    Any other policy is shown few workers. They are grouped: in a group they are as fast as each other (rates.py sees to
    it that paces are few), hold the same of what the call needs, and as many tokens of what its successors will read.
    So within a group the estimate without queues and `left_tokens` are one and the same; workers that hold nothing
    differ by their queues alone. If A comes before B in the order (queue_ms, num_calls, id) and its link is no busier,
    then no term of cost_ms = queue_ms + round(max(link + bring, encode) + crowd * encode + own + left) is larger, and
    B is not chosen by a policy whose key, the rest being equal, grows with the queue and then the calls. `Ledger.front`
    leaves out none but such a B: the best worker of all is among the fronts of the groups. For policies that take
    turns, the worker whose turn is next is looked at besides.
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
        self._comparison = Comparison(ledger, self._holdings)

    def choose(self, call: CallView, now_s: float = 0.0, only: str | None = None) -> Choice | None:
        """The best of the open workers, or the one that it must be; None if there is none. Changes nothing."""
        if only is not None:
            account = self.ledger.accounts.get(only)
            if account is None or not self.ledger.open & account.bit:
                return None
            return self._choose_by_key(call, now_s, account.bit)
        if not self.ledger.open:
            return None
        return self._choose_by_cost(call, now_s) if self._by_cost else self._choose_by_key(call, now_s)

    def _choose_by_cost(self, call: CallView, now_s: float) -> Choice:
        shares = self._shares(call, now_s)
        costs, survey = self._comparison.compare(call, shares)
        looking = _Looking(call, survey, shares, self.ledger.crowd())
        if costs.bounded:
            self._settle(costs, looking)
        cost_ms, left_tokens, _ = costs
        found = np.flatnonzero(cost_ms == cost_ms.min())
        for tied in (left_tokens, self.ledger.columns.num_calls):
            if len(found) > 1:
                values = tied[found]
                found = found[values == values.min()]
        numbers: list[int] = found.tolist()
        account = self._account(numbers[0])
        for number in numbers[1:]:
            other = self._account(number)
            if other.worker_id < account.worker_id:
                account = other
        chosen = looking.look(account, int(left_tokens[account.number]))
        return self._choice(call, chosen, self._snapshot(costs, looking, chosen))

    def _settle(self, costs: Costs, looking: _Looking) -> None:
        """Replace the bounds that are not above the least cost by what it is."""
        cost_ms, left_tokens, bounded = costs
        numbers = np.array(bits(bounded))
        bounds = cost_ms[numbers]
        cost_ms[numbers] = CLOSED_MS  # out of the question, unless looked at below
        least_ms = int(cost_ms.min())
        order = np.argsort(bounds, kind="stable")
        for looked, at in enumerate(order.tolist()):
            if bounds[at] > least_ms or bounds[at] == CLOSED_MS:
                cost_ms[numbers[order[looked:]]] = bounds[order[looked:]]  # all of them dearer
                break
            number = int(numbers[at])
            found_ms = looking.cost_ms(looking.look(self._account(number), int(left_tokens[number])))
            cost_ms[number] = found_ms
            least_ms = min(least_ms, found_ms)

    def _snapshot(self, costs: Costs, looking: _Looking, chosen: _Looked) -> Callable[[], list[_Looked]]:
        """The chosen one and the cheapest others as they are now, to be looked at closely should anybody ask."""
        cost_ms, left_tokens, _ = costs
        numbers = np.argpartition(cost_ms, NUM_TOLD - 1)[:NUM_TOLD]
        numbers = numbers[cost_ms[numbers] < CLOSED_MS]
        accounts = [self._account(number) for number in numbers.tolist()]
        others = [
            (account, account.place, account.link_ns, account.pace, tokens)
            for account, tokens in zip(accounts, left_tokens[numbers].tolist(), strict=True)
            if account is not chosen[0]
        ]
        return lambda: [chosen, *[looking.look_again(*other) for other in others]]

    def _account(self, number: int) -> Account:
        return self.ledger.by_bit[1 << number]

    def _choose_by_key(self, call: CallView, now_s: float, among: int = -1) -> Choice:
        ledger = self.ledger
        question = self._holdings.ask(call)
        shares = self._shares(call, now_s)
        left = self._holdings.left(call)
        looked: list[_Looked] = []
        for pace, members_of_pace in ledger.paces.items():
            as_fast = members_of_pace & among
            if not question.workers & as_fast:
                continue
            estimator = Estimator(call, pace, question.everywhere, question.sendable, question.peers, shares)
            later_ns = min(pace.encode_ns, pace.peer_ns) if call.foreseen else 0
            for group in question.groups:
                members = group[0] & as_fast
                if not members:
                    continue
                bring_ns, _ = estimator.times(group)
                for account, tokens in self._fronts(members, bring_ns > 0, left):
                    looked.append(
                        (account, account.place, account.link_ns, estimator, group, tokens, tokens * later_ns)
                    )
        turns, crowd = (ledger.turns(), len(ledger.accounts)), ledger.crowd()
        keyed = [(self.policy.key(_view(each, call.own_tokens, turns, crowd), call), each[1][2]) for each in looked]
        return self._choice(call, looked[keyed.index(min(keyed))], lambda: looked)

    def _choice(self, call: CallView, chosen: _Looked, look: Callable[[], list[_Looked]]) -> Choice:
        ledger = self.ledger
        account, estimate = chosen[0], Estimate._make(chosen[3].estimate(*chosen[4][1:]))
        sources, source_accounts = self._holdings.sources(call, account, estimate) if estimate.fetched else ((), ())
        found = call.tokens_read - sum([call.needs[at].num_read for at in bits(estimate.encoded)])
        turns = (ledger.turns(), len(ledger.accounts))
        return Choice(
            account.worker_id,
            account,
            estimate,
            sources,
            source_accounts,
            found,
            call,
            self.policy,
            look,
            turns,
            ledger.crowd(),
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


class _Looking:
    """Looks at single workers, for one call."""

    def __init__(self, call: CallView, survey: Survey, shares: Mapping[int, float], crowd: tuple[int, int]) -> None:
        self._call, self._survey, self._shares, self._crowd = call, survey, shares, crowd
        self._estimators: dict[Pace, Estimator] = {}

    def look(self, account: Account, left_tokens: int) -> _Looked:
        return self.look_again(account, account.place, account.link_ns, account.pace, left_tokens)

    def look_again(
        self, account: Account, place: tuple[int, int, str, int], link_ns: int, pace: Pace, left_tokens: int
    ) -> _Looked:
        """As the worker was then."""
        estimator = self._estimators.get(pace)
        if estimator is None:
            survey = self._survey
            estimator = Estimator(self._call, pace, survey.everywhere, survey.sendable, survey.peers, self._shares)
            self._estimators[pace] = estimator
        later_ns = min(pace.encode_ns, pace.peer_ns) if self._call.foreseen else 0
        group = self._survey.group_of(place[3])
        return account, place, link_ns, estimator, group, left_tokens, left_tokens * later_ns

    def cost_ms(self, looked: _Looked) -> int:
        account, place, link_ns, estimator, group, _, left_ns = looked
        bring_ns, encode_ns = estimator.times(group)
        own_ns = self._call.own_tokens * account.pace.encode_ns
        busy_ns = bring_ns + link_ns if bring_ns else 0
        others_ns = encode_ns * self._crowd[0] // self._crowd[1]
        return place[0] + (max(busy_ns, encode_ns) + others_ns + own_ns + left_ns + 500_000) // 1_000_000


def _view(looked: _Looked, own_tokens: int, turns: tuple[int, int], crowd: tuple[int, int]) -> WorkerView:
    account, (queue_ms, num_calls, worker_id, _), link_ns, estimator, group, left_tokens, left_ns = looked
    told = Estimate._make(estimator.estimate(*group[1:]))
    bring_ns = told.load_ns + told.fetch_ns
    if bring_ns:
        bring_ns += link_ns
    slower_ns = max(bring_ns, told.encode_ns) + told.own_ns
    encode_ns = told.encode_ns - told.saved_encode_ns
    others_ns = encode_ns * crowd[0] // crowd[1]
    cheaper_ns = max(bring_ns - told.saved_bring_ns, encode_ns) + others_ns + told.own_ns + left_ns
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
