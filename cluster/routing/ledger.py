"""What each worker was sent and has not done yet, and so how long its queue takes. Plain: knows no ports and no clock.

Workers have numbers, the lowest that are free.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Mapping, Sequence
from itertools import count

from laban.actors.calls import WorkerInfo, WorkerLoad, WorkerRates
from laban.cluster.routing.accounts import Account, Coming, Making, Sent
from laban.cluster.routing.call_view import CallView, bits
from laban.cluster.routing.columns import Columns
from laban.cluster.routing.comparison_pass import IS_OPEN, PACE, QUEUE_MS
from laban.cluster.routing.estimate import Estimate
from laban.cluster.routing.rates import Rates
from laban.kvstore.encodings import EncodingId

USUAL_OUTPUT = 128.0
"""Tokens that a call generates, until it is known better: what it may generate at most says little."""


class Ledger:
    """`columns` say of the workers what their accounts do, and which take calls, as arrays."""

    def __init__(self, rates: Rates | None = None) -> None:
        self.rates = rates or Rates()
        self.accounts: dict[str, Account] = {}
        self.by_number: dict[int, Account] = {}
        self.worker_ids: tuple[str, ...] = ()  # by number, "" for one that means no worker; another when that changes
        self.num_open = 0
        self.coming: dict[EncodingId, Coming] = {}
        self.version = 0  # changes when numbers may mean other workers
        self.num_calls = 0  # sent to the workers there are, and not ended
        self.columns = Columns()
        self._making = Making()
        self._turns: list[str] = []
        self._last_turn = ""
        self._usual_output = USUAL_OUTPUT
        self._rates_version = self.rates.version

    # Workers

    def add(self, info: WorkerInfo) -> Account:
        """A life of a worker, open and idle."""
        number = next(number for number in count() if number not in self.by_number)
        self.rates.add(info)
        load = WorkerLoad(num_free_pages=info.num_pages, num_pages=info.num_pages)
        account = Account(info.worker_id, info.epoch, number, self.rates.pace(info.worker_id), load)
        self.by_number[number] = self.accounts[info.worker_id] = account
        self.columns.add(account)
        self.num_open += 1
        self.version += 1
        insort(self._turns, info.worker_id)
        self._number()
        self._refresh()
        return account

    def remove(self, worker_id: str) -> None:
        """Its life is over; what it was sent is void."""
        account = self.accounts.pop(worker_id)
        self.num_open -= self.is_open(account)
        account.alive = False
        self.num_calls -= account.num_calls
        del self.by_number[account.number]
        self.columns.remove(account)
        self._turns.remove(worker_id)
        self._number()
        for encoding_id, coming in list(self.coming.items()):
            if account.number in coming.counts:
                coming.drop(account.number)
                if not coming.counts:
                    del self.coming[encoding_id]
        self._making.drop(account.number)
        self.version += 1
        self.rates.remove(worker_id)
        self._refresh()

    def set_open(self, account: Account, is_open: bool) -> None:
        """Whether the worker takes calls: it does not while it is full, or drained."""
        if account.alive:
            self.num_open += is_open - self.is_open(account)
            self.columns.put_open(account, is_open)

    def report(self, account: Account, load: WorkerLoad, rates: WorkerRates) -> None:
        """What the worker says of itself."""
        before, account.load = account.load, load
        account.num_ended = 0
        self.columns.put_pages(account)
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
            self.fetch(source, 1)
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
            self.fetch(source, -1)
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
        account.num_ended += 1
        self.num_calls -= 1
        account.num_started -= 1
        for encoding_id in sent.brings:
            coming = self.coming.get(encoding_id)
            if coming is not None:
                coming.remove(account.number)
                if not coming.counts:
                    del self.coming[encoding_id]
        self._making.add(sent.family, account.number, -sent.output_tokens)
        self._move(account)

    def fetch(self, source: Account, num_encodings: int) -> None:
        """Others fetch so many more encodings from it, or fewer."""
        source.num_fetching += num_encodings
        if source.alive:
            self.columns.put_sending(source)

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

    def is_open(self, account: Account) -> bool:
        """Whether it takes calls."""
        return account.alive and bool(self.columns.values[IS_OPEN, account.number])

    def shortest_queue_ms(self) -> int:
        """Of the open workers; 0 if none is."""
        values = self.columns.values
        return int(values[QUEUE_MS].min(where=values[IS_OPEN] > 0, initial=1 << 62)) if self.num_open else 0

    def is_coming(self, encoding_id: EncodingId, account: Account) -> bool:
        """Whether a call that was sent there, and has not ended, brings or encodes it."""
        coming = self.coming.get(encoding_id)
        return coming is not None and account.number in coming.counts

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

    def check_integrity(self) -> None:
        """Raises AssertionError if an order, a column or a sum is not what the accounts say."""
        # Where calls are blocked a queue is as long as calls took when that was last reported.
        assert all(a.load.num_blocked or a.queue_ms == self._queue_ms(a) for a in self.accounts.values())
        assert sorted(self.accounts) == self._turns
        assert all(self._turns[a.turn] == a.worker_id for a in self.accounts.values())
        assert {a.number: a for a in self.accounts.values()} == self.by_number
        assert self.num_open == sum(self.is_open(a) for a in self.accounts.values())
        assert self.num_calls == sum(a.num_calls for a in self.accounts.values())
        for coming in self.coming.values():
            assert coming.counts.keys() <= self.by_number.keys()
            assert coming.counts
            assert all(count > 0 for count in coming.counts.values())
        columns = self.see_columns()
        for number in range(columns.width):
            account = self.by_number.get(number)
            if account is None:
                assert not columns.values[:, number].any()
                continue
            pace = columns.values[PACE, number]
            calls = (account.queue_ms, account.num_calls, account.link_ns)
            rest = (account.turn, account.load.num_free_pages, account.num_fetching, self.is_open(account))
            assert tuple(columns.values[:, number]) == (*calls, pace, *rest)
            assert tuple(columns.paces[pace]) == account.pace
            assert 0 <= account.num_started <= account.num_calls
            assert account.queued_tokens >= 0
            assert account.link_ns >= 0
            assert account.num_fetching >= 0

    def _number(self) -> None:
        for turn, worker_id in enumerate(self._turns):
            account = self.accounts[worker_id]
            account.turn = turn
            self.columns.put_turn(account)
        named = {number: account.worker_id for number, account in self.by_number.items()}
        self.worker_ids = tuple([named.get(number, "") for number in range(self.columns.width)])

    def _queue_ms(self, account: Account) -> int:
        """Whole milliseconds: what differs by less is the same.

        Before its turn a call waits for what is to be encoded, but at least for the iteration under way, and for the
        token that each running decode takes of every iteration. Where calls wait for others to end, they go one by
        one as those do; for each that ended since the worker said so, one of them has begun.
        """
        pace, load = account.pace, account.load
        queue = account.queued_tokens * pace.encode_ns
        if account.num_calls:
            queue = max(queue, pace.iteration_ns) + account.num_started * pace.encode_ns
            blocked = max(0, load.num_blocked - account.num_ended)
            queue += blocked * round(1e6 * self.rates.call_ms) // max(1, load.num_running)
        return (queue + 500_000) // 1_000_000

    def _move(self, account: Account) -> None:
        account.queue_ms = self._queue_ms(account)
        self.columns.put(account)

    def _repace(self, account: Account) -> None:
        pace = self.rates.pace(account.worker_id)
        if pace != account.pace:
            account.pace = pace
            self.columns.repaced()

    def _refresh(self) -> None:
        """Look at every worker again if what is known of their makes has changed."""
        if self.rates.version != self._rates_version:
            self._rates_version = self.rates.version
            for account in self.accounts.values():
                self._repace(account)
                self._move(account)
