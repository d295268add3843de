"""Picks a call's worker. Needs no event loop and makes no remote call: it reads the directory's view and the ledger."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from laban.actors.calls import Source
from laban.cluster.routing.call_view import CallView, bits
from laban.cluster.routing.estimate import Estimate, Estimator, Told
from laban.cluster.routing.ledger import Account, Ledger, Sent
from laban.cluster.routing.policy import RoutingPolicy, WorkerView
from laban.cluster.routing.replication import MIN_TOKENS, Replication
from laban.kvstore.encodings import EncodingId
from laban.kvstore.placements import PlacementState, Tier

_READY, _LOADING = int(PlacementState.READY), int(PlacementState.LOADING)

_new = tuple.__new__  # of a named tuple, half as long as by its name: a decision makes many

MAX_REMEMBERED = 100_000
"""Encodings whose holders are remembered as sets."""


class HolderView(Protocol):
    """What is known of who holds what; directory_view.py has the one that serves."""

    def holders(self, encoding_id: EncodingId) -> Mapping[str, Sequence[tuple[Tier, PlacementState, int]]]:
        """Of each worker that holds something of it: where, in what state, and how many tokens."""
        ...

    def listen(self, changed: Callable[[EncodingId], None]) -> None:
        """`changed` is called for every encoding whose holders have changed."""
        ...


class _Holders(NamedTuple):
    """Sets of workers, by the best tier in which each has the whole encoding."""

    device: int
    host: int  # or it is on its way to the device
    disk: int
    ready: int  # of all these, those that others can fetch it from


_Group = tuple[int, int, int, int]
"""A set of workers, and the needs that each of them holds on its device, in host memory and on disk."""


class _Question(NamedTuple):
    """`groups` are the open `workers` by what they hold of a call's needs, and this what that call can count on.

    `everywhere` are the needs that all of them hold on the device; `peers` has those that some worker would send,
    whether only from disk, and how many encodings that one sends already.
    """

    workers: int
    groups: list[_Group]
    everywhere: int
    peers: dict[int, tuple[bool, int]]


Candidate = tuple[tuple[float, ...], WorkerView]
"""With its key."""


@dataclass(frozen=True, slots=True)
class Choice:
    """Where a call goes. `account` and `estimate` are for the ledger, `candidates` to explain it."""

    worker_id: str
    account: Account
    estimate: Estimate
    sources: tuple[Source, ...]  # of what is to be fetched
    tokens_found: int  # of the call's view, expected not to be encoded again
    candidates: list[Candidate]
    source_accounts: tuple[Account, ...]


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
    """

    def __init__(
        self, policy: RoutingPolicy, view: HolderView, ledger: Ledger, replication: Replication | None = None
    ) -> None:
        """Without `replication` a copy is charged in full to the call that makes it."""
        self.policy = policy
        self.ledger = ledger
        self._view = view
        self._replication = replication
        self._holders: dict[EncodingId, _Holders] = {}
        self._version = ledger.version
        view.listen(self._forget)

    def choose(self, call: CallView, now_s: float = 0.0) -> Choice | None:
        """The best of the open workers; None if there is none. Changes nothing."""
        ledger = self.ledger
        if not ledger.open:
            return None
        question = self._ask(call)
        shares = self._shares(call, now_s)
        left_tokens, parts = self._left(call)
        apart = sum([members for members, _ in parts])
        next_turn = ledger.next_turn()
        looked: list[tuple[Account, Told, int, int]] = []  # with the tokens left elsewhere, and the time to bring them
        for pace, as_fast in ledger.paces.items():
            if not question.workers & as_fast:
                continue
            estimator = Estimator(call, pace, question.everywhere, question.peers, shares)
            later_ns = min(pace.encode_ns, pace.peer_ns) if call.foreseen else 0
            for group, device, host, disk in question.groups:
                members = group & as_fast
                if not members:
                    continue
                told = estimator.estimate(device, host, disk)
                loads = told[0] + told[1] > 0
                if members & ~apart:
                    for account in ledger.front(members & ~apart, loads):
                        looked.append((account, told, left_tokens, left_tokens * later_ns))
                if members & apart:
                    for among, tokens in parts:
                        if members & among:
                            for account in ledger.front(members & among, loads):
                                looked.append((account, told, tokens, tokens * later_ns))
                if members >> next_turn.number & 1 and not any([each[0] is next_turn for each in looked]):
                    number = next_turn.number
                    tokens = next((tokens for among, tokens in parts if among >> number & 1), left_tokens)
                    looked.append((next_turn, told, tokens, tokens * later_ns))
        first_turn, num_turns = ledger.turns(), len(ledger.accounts)
        key_of, own_tokens = self.policy.key, call.own_tokens
        candidates: list[Candidate] = []
        best: tuple[float, ...] = ()
        chosen: tuple[Account, Told] | None = None
        for account, told, tokens, later_ns in looked:
            view = _view(account, told, own_tokens, tokens, later_ns, (account.turn - first_turn) % num_turns)
            key = key_of(view, call)
            candidates.append((key, view))
            if chosen is None or key < best or (key == best and account.worker_id < chosen[0].worker_id):
                best, chosen = key, (account, told)
        assert chosen is not None
        account, estimate = chosen[0], Estimate._make(chosen[1])
        sources, source_accounts = self._sources(call, account, estimate)
        found = call.tokens_read - sum([call.needs[at].num_read for at in bits(estimate.encoded)])
        return Choice(account.worker_id, account, estimate, sources, found, candidates, source_accounts)

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

    # What lies where

    def _ask(self, call: CallView) -> _Question:
        ledger, remembered = self.ledger, self._holders
        if self._version != ledger.version:  # a number may mean another worker now
            remembered.clear()
            self._version = ledger.version
        everyone, coming = ledger.open, ledger.coming
        groups: list[_Group] = [(everyone, 0, 0, 0)]
        everywhere = 0
        peers: dict[int, tuple[bool, int]] = {}
        for at, (encoding_id, num_tokens, _, _) in enumerate(call.needs):
            holders = remembered.get(encoding_id) or self._look(encoding_id, num_tokens)
            device, host, disk, ready = holders
            if encoding_id in coming:
                device |= coming[encoding_id].mask
                host &= ~device
                disk &= ~device
            device &= everyone
            bit = 1 << at
            if device == everyone:
                everywhere |= bit
                continue
            if ready:
                fast = ready & ~holders.disk
                peers[at] = (not fast, self._num_sending(fast or ready) if ledger.num_fetching else 0)
            held = (device | host | disk) & everyone
            if not held:
                continue
            split: list[_Group] = []
            for group in groups:
                inside = group[0] & held
                if not inside:
                    split.append(group)
                    continue
                members, on_device, in_host, on_disk = group
                if inside != members:
                    split.append((members ^ inside, on_device, in_host, on_disk))
                if inside & device:
                    split.append((inside & device, on_device | bit, in_host, on_disk))
                if inside & host:
                    split.append((inside & host, on_device, in_host | bit, on_disk))
                if inside & disk:
                    split.append((inside & disk, on_device, in_host, on_disk | bit))
            groups = split
        return _Question(everyone, groups, everywhere, peers)

    def _look(self, encoding_id: EncodingId, num_tokens: int) -> _Holders:
        accounts = self.ledger.accounts
        device = host = disk = ready = 0
        for worker_id, placements in self._view.holders(encoding_id).items():
            account = accounts.get(worker_id)
            if account is None:
                continue
            bit = account.bit
            best = 3
            for tier, state, held_tokens in placements:
                if held_tokens < num_tokens:
                    continue  # a part is of use to the worker that has it, but not counted on
                if state == _READY:
                    ready |= bit
                    if tier < best:
                        best = tier
                elif state == _LOADING and tier == 0 and best > 1:
                    best = 1
            if best == 0:
                device |= bit
            elif best == 1:
                host |= bit
            elif best == 2:
                disk |= bit
        if len(self._holders) >= MAX_REMEMBERED:
            self._holders.clear()
        found = self._holders[encoding_id] = _Holders(device, host, disk, ready)
        return found

    def _forget(self, encoding_id: EncodingId) -> None:
        self._holders.pop(encoding_id, None)

    def _left(self, call: CallView) -> tuple[int, list[tuple[int, int]]]:
        """How many tokens that the call's successors will read lie elsewhere, or are being made there: for workers that
        have none of it, and for sets of those that have some."""
        ledger = self.ledger
        total = 0
        parts: dict[int, int] = {}
        remembered, coming, everyone = self._holders, ledger.coming, ledger.open
        for encoding_id, tokens in call.successors:
            total += tokens
            device, host, disk, _ = remembered.get(encoding_id) or self._look(encoding_id, tokens)
            there = device | host | disk
            if encoding_id in coming:
                there |= coming[encoding_id].mask
            there &= everyone
            if there:
                parts = _add(parts, there, tokens) if parts else {tokens: there}
        for number, tokens in ledger.being_made(call.family).items():
            total += tokens
            if ledger.open >> number & 1:
                parts = _add(parts, 1 << number, tokens)
        return total, [(members, total - tokens) for tokens, members in parts.items()]

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

    # Sources

    def _num_sending(self, members: int) -> int:
        """Fetches from the one of these that sends the fewest."""
        fewest = None
        while members:
            low = members & -members
            account = self.ledger.numbered[low.bit_length() - 1]
            if account is not None and (fewest is None or account.num_fetching < fewest):
                fewest = account.num_fetching
                if not fewest:
                    break
            members ^= low
        return fewest or 0

    def _sources(
        self, call: CallView, chosen: Account, told: Estimate
    ) -> tuple[tuple[Source, ...], tuple[Account, ...]]:
        found, accounts = [], []
        sending: dict[int, int] = {}  # because of this very call
        for at in bits(told.fetched):
            need = call.needs[at]
            holders = self._holders.get(need.encoding_id) or self._look(need.encoding_id, need.num_tokens)
            ready = holders.ready & ~(1 << chosen.number)
            fast = ready & ~holders.disk
            among = [account for n in bits(fast or ready) if (account := self.ledger.numbered[n]) is not None]
            if len(among) > 1:
                among.sort(key=lambda each: (each.num_fetching + sending.get(each.number, 0), each.worker_id))
            source = among[0]
            busy = source.num_fetching + sending.get(source.number, 0)
            sending[source.number] = sending.get(source.number, 0) + 1
            token_ns = chosen.pace.peer_ns if fast else chosen.pace.peer_disk_ns
            transfer_s = need.num_tokens * token_ns * (1 + busy) / 1e9
            found.append(Source(need.encoding_id, source.worker_id, source.epoch, transfer_s))
            accounts.append(source)
        return tuple(found), tuple(accounts)


def _view(account: Account, told: Told, own_tokens: int, left_tokens: int, left_ns: int, turns: int) -> WorkerView:
    load, fetch, encode, own, saved_bring, saved_encode, _, _, _, _, from_host, from_disk, from_peer, again = told
    queue_ms, num_calls, worker_id, _ = account.place
    bring = load + fetch + account.link_ns if load or fetch else 0
    ttft_ms = cost_ms = queue_ms + ((bring if bring > encode else encode) + own + 500_000) // 1_000_000
    if left_ns or saved_bring or saved_encode:
        cost = max(bring - saved_bring, encode - saved_encode) + own + left_ns
        cost_ms = queue_ms + (cost + 500_000) // 1_000_000
    return _new(
        WorkerView,
        (
            worker_id,
            ttft_ms,
            cost_ms,
            left_tokens,
            num_calls,
            queue_ms,
            turns,
            account.load.num_free_pages,
            load,
            fetch,
            encode + own,
            from_host,
            from_disk,
            from_peer,
            again + own_tokens,
        ),
    )


def _add(parts: dict[int, int], members: int, tokens: int) -> dict[int, int]:
    """Sets of workers by a number, those in `members` with so much more. Who is in none has 0."""
    sums: dict[int, int] = {}
    for before, among in parts.items():
        inside = among & members
        if inside != among:
            sums[before] = sums.get(before, 0) | among ^ inside
        if inside:
            sums[before + tokens] = sums.get(before + tokens, 0) | inside
            members ^= inside
    if members:
        sums[tokens] = sums.get(tokens, 0) | members
    return sums
