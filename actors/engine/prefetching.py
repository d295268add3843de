"""Encodings that are brought to the device before anyone asks for them, as long as that costs nobody anything."""

from __future__ import annotations

from collections.abc import Container, Iterable
from typing import TYPE_CHECKING

from laban.actors.calls import Prefetch
from laban.actors.engine.copier import GENTLE_BYTES_PER_S
from laban.actors.engine.planning import NEEDS_ITS_VIEW, ways_to_have
from laban.actors.engine.prefetch_budget import PrefetchBudget
from laban.actors.engine.sequence import Sequence
from laban.actors.engine.tiers import Way
from laban.kvstore.encodings import EncodingId, EncodingSpec, flatten
from laban.kvstore.store import Entry

if TYPE_CHECKING:
    from laban.actors.engine.scheduler import Scheduler

MAX_LOADS = 4
LEAD = 1.5
LEAD_S = 0.1
"""While calls run an encoding is brought so much earlier than all that is needed until then should take: before that it
would only take the place of something else for longer."""
AGAIN_S = 0.02
ROOM_AGAIN_S, MOST_REFUSED = 0.1, 4
"""An order that finds no room waits for so long; after so many at once nothing that is needed later is begun."""
MAX_ORDERS = 10_000


class Prefetches:
    """The control plane's orders, the nearest use first.

    They never evict what is worth more, and yield to calls: what has to be encoded takes no pages before there is time
    for it. The more of it is in vain the fewer are begun (`PrefetchBudget`).
    """

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._orders: dict[EncodingId, Prefetch] = {}
        self._refused: dict[EncodingId, set[object]] = {}
        self._not_before_s: dict[EncodingId, float] = {}
        self._unread: dict[EncodingId, int] = {}  # brought, and not read yet: tokens
        self._coming: dict[EncodingId, int] = {}  # asked of other workers and disk, for orders
        self._budget = PrefetchBudget(scheduler.store.allocator.num_pages * scheduler.store.page_size)
        self._num_refused = 0  # orders that found no room, just now
        self.may_begin = False  # something has changed since nothing could
        self._again_s = 0.0

    def order(self, prefetches: Iterable[Prefetch]) -> None:
        for prefetch in prefetches:
            self._orders[prefetch.encoding_id] = prefetch
            self._not_before_s.pop(prefetch.encoding_id, None)
            self.may_begin = True
        while len(self._orders) > MAX_ORDERS:
            self._forget(next(iter(self._orders)))

    def cancel(self, encoding_ids: Iterable[EncodingId]) -> None:
        for encoding_id in encoding_ids:
            self._forget(encoding_id)
            sequence = self._sequence_of(encoding_id)
            if sequence is not None and sequence.entry.pins == 1 and not sequence.is_given_up:
                self._waste()
                self._scheduler.discard(sequence)

    def run(self) -> None:
        """Begins what can be begun now. Nothing does while a call waits for pages."""
        scheduler = self._scheduler
        now_s = scheduler.tiers.needs.now_s
        if not self._orders or scheduler.is_short or not (self.may_begin or now_s >= self._again_s):
            self.may_begin = False
            return
        self.may_begin, self._again_s = False, now_s + AGAIN_S
        self._budget.date(now_s)
        idle = not scheduler.running and not scheduler.num_waiting
        needs = scheduler.tiers.needs
        due = []
        for encoding_id in list(self._orders):
            use = needs.use(encoding_id)
            if use is None:  # nobody will read it any more
                self._forget(encoding_id)
            else:
                due.append((use.in_s, encoding_id))
        lead_s = LEAD_S
        self._num_refused = 0
        for at_s, encoding_id in sorted(due):
            lead_s += LEAD * self._bring_s(encoding_id)
            if at_s - needs.now_s > lead_s and not idle:
                continue
            if scheduler.store.get_ready(encoding_id) is not None:
                self._forget(encoding_id)
            elif encoding_id in scheduler.store or now_s < self._not_before_s.get(encoding_id, 0.0):
                continue
            elif not self._begin(self._orders[encoding_id]):
                return

    def _bring_s(self, encoding_id: EncodingId) -> float:
        """How long it takes to have it here, by what is in host memory."""
        tiers, spec = self._scheduler.tiers, self._orders[encoding_id].specs[-1]
        if encoding_id in self._scheduler.store:
            return 0.0
        encode_s = tiers.encode_s(spec.num_tokens)
        if not tiers.held_tokens(encoding_id):
            return encode_s
        gently_s = spec.num_tokens * tiers.needs.bytes_per_token / GENTLE_BYTES_PER_S
        return min(encode_s, max(tiers.load_s(spec.num_tokens), gently_s))

    def _begin(self, order: Prefetch) -> bool:
        """False if nothing that is needed later is to be begun now."""
        scheduler = self._scheduler
        loads = scheduler.loads
        if loads is not None and len(loads.active) >= MAX_LOADS:
            return False
        if not self._has_budget(order, order.specs[-1:]):
            return order.specs[-1].num_tokens > self._budget.num_tokens  # something smaller may be begun
        specs = {spec.encoding_id: spec for spec in order.specs}
        missing, awaits = ways_to_have(
            {order.encoding_id},
            order.specs,
            specs,
            scheduler.store,
            scheduler.tiers,
            sources=order.sources,
            refused=self._refused.get(order.encoding_id, ()),
            wanted=False,
        )
        if awaits:
            self._coming |= {spec.encoding_id: spec.num_tokens for spec, way in missing if way is Way.WAIT}
            return True
        if any(way in (Way.ENCODE, Way.RESUME) for _, way in missing):
            if not order.compute:
                self._forget(order.encoding_id)
                return True
            if not scheduler.chunking.has_spare_time(scheduler.sequences):
                return True  # it would lie there, with others' pages, until it is given up
        if not self._has_budget(order, [spec for spec, _ in missing]):
            return self._put_off(order)
        for spec, way in missing:
            if way is Way.MIX:  # nothing waits for it: the card is left to others
                way = Way.LOAD
            if not self._make(spec, way, specs):
                return self._put_off(order)
        return True

    def _has_budget(self, order: Prefetch, specs: Iterable[EncodingSpec]) -> bool:
        """For these, which it takes to have what is ordered."""
        num_tokens = sum(spec.num_tokens for spec in specs)
        return self._num_ahead(order.encoding_id) + num_tokens <= self._budget.num_tokens

    def _put_off(self, order: Prefetch) -> bool:
        """It finds no room; what is worth more, smaller or another tenant's may. False after too many of these."""
        self._not_before_s[order.encoding_id] = self._scheduler.tiers.needs.now_s + ROOM_AGAIN_S
        self._num_refused += 1
        return self._num_refused < MOST_REFUSED

    def _make(self, spec: EncodingSpec, way: Way, specs: dict[EncodingId, EncodingSpec]) -> bool:
        scheduler = self._scheduler
        store, tiers = scheduler.store, scheduler.tiers
        view = flatten(spec.view, specs) if way in NEEDS_ITS_VIEW else []
        kept = [entry for placed in view if (entry := store.get(placed.encoding_id)) is not None]
        if len(kept) < len(view):
            return True  # one that it reads has not come
        again_s = tiers.encode_s(spec.num_tokens)
        if way is Way.LOAD:
            again_s = min(again_s, tiers.load_s(spec.num_tokens))
        worth = tiers.needs.worth_bringing(spec.encoding_id, spec.num_tokens, again_s, again_s)
        beside = tiers.needs.order_beside(tiers.bring_back_s)
        for entry in kept:
            store.pin(entry)
        try:
            entry = store.reserve_for(spec.encoding_id, spec.num_tokens, spec.namespace, worth, beside)
            if entry is not None:
                scheduler.fill(entry, spec, way, specs, prefetched=True)
        finally:
            for other in kept:
                store.unpin(other)
        return entry is not None

    def _num_ahead(self, but: EncodingId) -> int:
        """Tokens on their way, or here, that nobody has asked for."""
        is_coming, store = self._scheduler.tiers.is_coming, self._scheduler.store
        self._coming = {key: tokens for key, tokens in self._coming.items() if is_coming(key)}
        for key in [key for key in self._unread if key not in store]:  # not evicted, but deleted
            del self._unread[key]
            self._waste()
        making = {s.entry.key: len(s.tokens) for s in self._scheduler.sequences if s.prefetched}
        ahead = self._unread | self._coming | making
        return sum(ahead.values()) - ahead.get(but, 0)

    def give_up(self, keep: Container[EncodingId]) -> bool:
        """Gives back the pages of what is on its way and nobody asked for, but `keep`. False if there is nothing."""
        found = False
        for sequence in reversed(list(self._scheduler.sequences)):
            if sequence.prefetched and sequence.entry.key not in keep and sequence.entry.pins == 1:
                if not sequence.is_given_up:
                    self._waste()
                self._scheduler.discard(sequence)
                found = True
        return found

    def drop_all(self) -> None:
        """What is in the making is nobody's any more, and not begun again: it may be why an iteration failed."""
        dropped = {s.entry.key: s for s in self._scheduler.sequences if s.prefetched}
        for sequence in dropped.values():
            sequence.prefetched = False
            if not sequence.is_given_up:
                self._waste()
        for encoding_id, order in list(self._orders.items()):
            if any(spec.encoding_id in dropped for spec in order.specs):
                self._forget(encoding_id)

    def done(self, entry: Entry) -> None:
        """It is on the device; nobody has asked for it."""
        self._unread[entry.key] = entry.num_tokens
        self._forget(entry.key)

    def read(self, entry: Entry) -> None:
        if self._unread.pop(entry.key, None) is not None:
            self._scheduler.tiers.counters.add("prefetches_useful", 1)
            self._budget.useful()

    def evicted(self, entry: Entry) -> None:
        if self._unread.pop(entry.key, None) is not None:
            self._waste()

    def failed(self, encoding_id: EncodingId, source: object) -> None:
        """A source that did not bring it: not to be tried again for this order."""
        if encoding_id in self._orders:
            self._budget.wasted()
            self._refused.setdefault(encoding_id, set()).add(source)

    def _forget(self, encoding_id: EncodingId) -> None:
        self._orders.pop(encoding_id, None)
        self._refused.pop(encoding_id, None)
        self._not_before_s.pop(encoding_id, None)

    def _waste(self) -> None:
        self._scheduler.tiers.counters.add("prefetches_wasted", 1)
        self._budget.wasted()

    def _sequence_of(self, encoding_id: EncodingId) -> Sequence | None:
        return next((s for s in self._scheduler.sequences if s.prefetched and s.entry.key == encoding_id), None)
