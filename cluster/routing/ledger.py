"""What each worker was sent and has not done yet, and so how long its queue takes. Plain: knows no ports and no clock.

Workers have numbers, the lowest that are free; sets of them are integers, with bit n for number n.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Mapping, Sequence

from laban.actors.calls import WorkerInfo, WorkerLoad, WorkerRates
from laban.cluster.routing.accounts import Account, Coming, Making, Sent
from laban.cluster.routing.call_view import CallView, bits
from laban.cluster.routing.columns import Columns
from laban.cluster.routing.estimate import Estimate
from laban.cluster.routing.rates import Pace, Rates
from laban.kvstore.encodings import EncodingId

FEW = 8
"""Of so many workers all are looked at; of more, the shortest queues first until one is among them."""

USUAL_OUTPUT = 128.0
"""Tokens that a call generates, until it is known better: what it may generate at most says little."""


class Ledger:
    """`open` are the workers that take calls; `paces` tells all by how fast they are."""

    def __init__(self, rates: Rates | None = None) -> None:
        self.rates = rates or Rates()
        self.accounts: dict[str, Account] = {}
        self.by_bit: dict[int, Account] = {}
        self.paces: dict[Pace, int] = {}
        self.open = 0
        self.coming: dict[EncodingId, Coming] = {}
        self.version = 0  # changes when numbers may mean other workers
        self.sending = 0  # the workers that others fetch from
        self.num_calls = 0  # sent to the workers there are, and not ended
        self.columns = Columns()
        self._making = Making()
        self._order: list[tuple[int, int, str, int]] = []
        self._turns: list[str] = []
        self._last_turn = ""
        self._usual_output = USUAL_OUTPUT
        self._rates_version = self.rates.version

    # Workers

    def add(self, info: WorkerInfo) -> Account:
        """A life of a worker, open and idle."""
        taken = sum(self.by_bit)
        number = (~taken & taken + 1).bit_length() - 1
        self.rates.add(info)
        load = WorkerLoad(num_free_pages=info.num_pages, num_pages=info.num_pages)
        account = Account(info.worker_id, info.epoch, number, self.rates.pace(info.worker_id), load)
        self.by_bit[account.bit] = self.accounts[info.worker_id] = account
        self.paces[account.pace] = self.paces.get(account.pace, 0) | 1 << number
        self.open |= 1 << number
        self.version += 1
        insort(self._turns, info.worker_id)
        self._number_turns()
        account.place = self._place(account)
        insort(self._order, account.place)
        self.columns.put(account)
        self.columns.repaced()
        self._refresh()
        return account

    def remove(self, worker_id: str) -> None:
        """Its life is over; what it was sent is void."""
        account = self.accounts.pop(worker_id)
        account.alive = False
        self.num_calls -= account.num_calls
        gone = ~account.bit
        del self.by_bit[account.bit]
        self.open &= gone
        self.sending &= gone
        self._leave_pace(account)
        self._turns.remove(worker_id)
        self._number_turns()
        del self._order[bisect_left(self._order, account.place)]
        for encoding_id, coming in list(self.coming.items()):
            coming.counts.pop(account.number, None)
            coming.mask &= gone
            if not coming.mask:
                del self.coming[encoding_id]
        self._making.drop(account.number)
        self.version += 1
        self.rates.remove(worker_id)
        self.columns.repaced()
        self._refresh()

    def set_open(self, account: Account, is_open: bool) -> None:
        """Whether the worker takes calls: it does not while it is full, or drained."""
        if account.alive:
            self.open = self.open | 1 << account.number if is_open else self.open & ~(1 << account.number)

    def report(self, account: Account, load: WorkerLoad, rates: WorkerRates) -> None:
        """What the worker says of itself."""
        before, account.load = account.load, load
        changed = self.rates.report(account.worker_id, rates)
        if changed:
            self._repace(account)
        if changed or load.num_blocked or before.num_blocked:
            self._move(account)
        self._refresh()

    # Calls

    def sent(self, account: Account, call: CallView, estimate: Estimate, sources: Sequence[Account] = ()) -> Sent:
        link_ns = estimate.load_ns + estimate.fetch_ns
        queued_tokens = estimate.tokens_encode + call.own_tokens
        sent = Sent(
            account=account,
            family=call.family,
            output_tokens=min(call.output_tokens, call.own_tokens + round(self._usual_output)),
            queued_tokens=queued_tokens,
            link_ns=link_ns,
            alone=account.queued_tokens == 0 and not link_ns,
            brings=tuple(call.needs[at].encoding_id for at in bits(estimate.missing)),
            sources=tuple(sources),
        )
        number = account.number
        account.queued_tokens += sent.queued_tokens
        account.link_ns += link_ns
        account.num_calls += 1
        self.num_calls += 1
        for encoding_id in sent.brings:
            self.coming.setdefault(encoding_id, Coming()).add(number)
        for source in sent.sources:
            source.num_fetching += 1
            if source.alive:
                self.sending |= source.bit
        self._making.add(sent.family, number, sent.output_tokens)
        self._last_turn = account.worker_id
        self._move(account)
        return sent

    def started(self, sent: Sent) -> None:
        """It has its first token: nothing of it is queued any more. Idempotent."""
        if sent.started:
            return
        sent.started = True
        for source in sent.sources:
            source.num_fetching -= 1
            if source.alive and not source.num_fetching:
                self.sending &= ~source.bit
        account = sent.account
        if account.alive:
            account.queued_tokens -= sent.queued_tokens
            account.num_started += 1
            account.link_ns -= sent.link_ns
            self._move(account)

    def ended(self, sent: Sent) -> None:
        """Idempotent."""
        if sent.ended:
            return
        self.started(sent)
        sent.ended = True
        account = sent.account
        if not account.alive:
            return
        account.num_calls -= 1
        self.num_calls -= 1
        account.num_started -= 1
        for encoding_id in sent.brings:
            coming = self.coming.get(encoding_id)
            if coming is not None:
                coming.remove(account.number)
                if not coming.mask:
                    del self.coming[encoding_id]
        self._making.add(sent.family, account.number, -sent.output_tokens)
        self._move(account)

    def observe(
        self, sent: Sent, tokens_encoded: int, ttft_ms: float, wall_ms: float, tokens_generated: int = 0
    ) -> None:
        """What a call took that has just ended."""
        self.rates.observe_call(wall_ms)
        if tokens_generated:
            self._usual_output += 0.05 * (tokens_generated - self._usual_output)
        if sent.alone and sent.account.alive and self.rates.observe(sent.account.worker_id, tokens_encoded, ttft_ms):
            self._repace(sent.account)
            self._move(sent.account)
            self._refresh()

    # What the router asks

    def crowd(self) -> tuple[int, int]:
        """How likely it is that somebody waits for what a worker is given to do: calls for each open worker, at most
        one, as a fraction."""
        num_open = self.open.bit_count()
        return (min(self.num_calls, num_open), max(1, num_open))

    def shortest_queue_ms(self) -> int:
        """Of the open workers; 0 if none is."""
        return next((place[0] for place in self._order if self.open >> place[3] & 1), 0)

    def is_coming(self, encoding_id: EncodingId, account: Account) -> bool:
        """Whether a call that was sent there, and has not ended, brings or encodes it."""
        coming = self.coming.get(encoding_id)
        return coming is not None and bool(coming.mask & account.bit)

    def being_made(self, family: str) -> Mapping[int, int]:
        """Tokens that the family's running calls are expected to make, by the number of their worker."""
        return self._making.of(family)

    def see_columns(self) -> Columns:
        """What is kept of the workers by their numbers; valid until the ledger next changes."""
        self.columns.see_paces(self.accounts.values())
        return self.columns

    def turns(self) -> int:
        """The place of the worker whose turn is next, open or not."""
        return bisect_left(self._turns, self._last_turn + "\0") % len(self._turns)

    def next_turn(self) -> Account:
        """The open worker whose turn is next. There must be one."""
        first, turns = self.turns(), self._turns
        for step in range(len(turns)):
            account = self.accounts[turns[(first + step) % len(turns)]]
            if self.open >> account.number & 1:
                return account
        raise ValueError("no worker is open")

    def front(self, members: int, loads: bool) -> list[Account]:
        """Of equal workers, those that may be best: the shortest queue, and if something is to be brought over
        the link, any with a longer queue whose link is less busy than those before it."""
        if not members & members - 1:
            return [self.by_bit[members]]
        if members.bit_count() <= FEW:
            places = sorted([self.by_bit[1 << number].place for number in bits(members)])
        else:
            places = self._order
        found: list[Account] = []
        for place in places:
            number = place[3]
            if members >> number & 1:
                account = self.by_bit[1 << number]
                if not found or account.link_ns < found[-1].link_ns:
                    found.append(account)
                    if not loads or not account.link_ns:
                        break
        return found

    def check_integrity(self) -> None:
        """Raises AssertionError if an order, a set or a sum is not what the accounts say."""
        assert sorted(a.place for a in self.accounts.values()) == self._order
        # Where calls are blocked a queue is as long as calls took when that was last reported.
        assert all(a.load.num_blocked or a.place == self._place(a) for a in self.accounts.values())
        assert sorted(self.accounts) == self._turns
        assert all(self._turns[a.turn] == a.worker_id for a in self.accounts.values())
        assert {a.bit: a for a in self.accounts.values()} == self.by_bit
        everyone = sum(1 << a.number for a in self.accounts.values())
        assert self.open & ~everyone == 0
        assert self.num_calls == sum(a.num_calls for a in self.accounts.values())
        assert sum(self.paces.values()) == everyone
        assert all(self.paces[a.pace] >> a.number & 1 for a in self.accounts.values())
        for coming in self.coming.values():
            assert coming.mask == sum(1 << n for n in coming.counts) != 0
            assert all(count > 0 for count in coming.counts.values())
        columns = self.see_columns()
        for account in self.accounts.values():
            at = account.number
            assert (columns.queue_ms[at], columns.num_calls[at]) == account.place[:2]
            assert columns.link_ns[at] == account.link_ns
            assert columns.paces[columns.pace_at[at]] == account.pace
            assert 0 <= account.num_started <= account.num_calls
            assert account.queued_tokens >= 0
            assert account.link_ns >= 0
            assert account.num_fetching >= 0
            assert (account.num_fetching > 0) == bool(self.sending & account.bit)

    def _number_turns(self) -> None:
        for turn, worker_id in enumerate(self._turns):
            self.accounts[worker_id].turn = turn

    def _place(self, account: Account) -> tuple[int, int, str, int]:
        """Whole milliseconds: what differs by less is the same, and the next part decides.

        Before its turn a call waits for what is to be encoded, for the token that each running decode takes of every
        iteration, and for the iteration under way. Where calls wait for others to end, they go one by one as those do.
        """
        pace, load = account.pace, account.load
        queue = (account.queued_tokens + account.num_started) * pace.encode_ns
        if account.num_calls:
            queue += pace.iteration_ns
            if load.num_blocked:
                queue += load.num_blocked * round(1e6 * self.rates.call_ms) // max(1, load.num_running)
        return ((queue + 500_000) // 1_000_000, account.num_calls, account.worker_id, account.number)

    def _move(self, account: Account) -> None:
        place = self._place(account)
        if place != account.place:
            del self._order[bisect_left(self._order, account.place)]
            account.place = place
            insort(self._order, place)
        self.columns.put(account)

    def _repace(self, account: Account) -> None:
        pace = self.rates.pace(account.worker_id)
        if pace != account.pace:
            self._leave_pace(account)
            account.pace = pace
            self.columns.repaced()
            self.paces[pace] = self.paces.get(pace, 0) | 1 << account.number

    def _leave_pace(self, account: Account) -> None:
        left = self.paces[account.pace] & ~(1 << account.number)
        if left:
            self.paces[account.pace] = left
        else:
            del self.paces[account.pace]

    def _refresh(self) -> None:
        """Look at every worker again if what is known of their makes has changed."""
        if self.rates.version != self._rates_version:
            self._rates_version = self.rates.version
            for account in self.accounts.values():
                self._repace(account)
                self._move(account)
