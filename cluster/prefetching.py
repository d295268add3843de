"""Has encodings brought to where their readers will run: looks up what is missing there, and keeps what is under way.

`routing.prefetch` decides, from what is put together here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from heapq import nsmallest
from typing import Protocol

from laban.actors.calls import Call, CallFinished, CallStarted, CallTokens, Prefetch, Source, WorkerRates
from laban.actors.reach import transport_between
from laban.cluster.advising import Holders
from laban.cluster.records import ErrorInfo, WorkerStatus
from laban.cluster.routing.prefetch import Lack, PrefetchLimits, Room, Wanted, plan_prefetches
from laban.cluster.slots import Order
from laban.kvstore.encodings import EncodingId, EncodingSpec, View, closure, dependencies
from laban.kvstore.placements import PlacementState, Tier

MAX_READERS = 64  # looked after at once, the soonest
MAX_LOOKED_UP = 4096  # encodings of all of these
MAX_IN_S = 60.0  # what begins later is left for later
MAX_SOURCES = 3
AGAIN_S = 10.0  # until what was ordered and did not come is ordered again
PREDICTED_S = 1.0  # how long a prediction holds
STATUS_S = 0.25

# Of workers that have not measured their own yet.
ENCODE_TOKENS_PER_S = 1000.0
HOST_BYTES_PER_S = 4e9
DISK_BYTES_PER_S = 1e9
PEER_BYTES_PER_S = 1e9


@dataclass(frozen=True, slots=True)
class Coming:
    """A call to come. `at_s` dates it on the clock of whoever asks; `encodings` are what is certain of its view."""

    name: str
    at_s: float
    likelihood: float
    rank: int
    namespace: str
    view: View
    start: int
    encodings: Sequence[EncodingId]
    specs: Mapping[EncodingId, EncodingSpec]


class PlacedHolders(Holders, Protocol):
    def held_by(self, worker_id: str) -> Mapping[EncodingId, int]: ...


class Fleet(Protocol):
    """What is needed of `cluster.dispatch.Dispatcher`."""

    @property
    def directory(self) -> PlacedHolders: ...

    def workers(self) -> tuple[WorkerStatus, ...]: ...

    def predict(self, order: Order) -> str | None:
        """Where the call would go now; nothing is sent."""


class _Nobody:
    """The sink of an order that is never sent."""

    def call_requeued(self, key: str, attempt: int) -> None: ...

    def call_started(self, key: str, attempt: int, worker_id: str, event: CallStarted) -> None: ...

    def call_tokens(self, key: str, attempt: int, event: CallTokens) -> None: ...

    def call_finished(self, key: str, attempt: int, worker_id: str, event: CallFinished, waited_ms: float) -> None: ...

    def call_failed(self, key: str, attempt: int, error: ErrorInfo) -> None: ...


@dataclass(frozen=True, slots=True)
class _Flight:
    lack: Lack
    epoch: str
    since_s: float


@dataclass(frozen=True, slots=True)
class _Prediction:
    view: View
    worker_id: str
    until_s: float


class Prefetching:
    """Lives in one event loop."""

    def __init__(self, fleet: Fleet, limits: PrefetchLimits | None = None) -> None:
        self._fleet = fleet
        self._limits = limits or PrefetchLimits()
        self._coming: dict[str, Sequence[Coming]] = {}
        self._flights: dict[tuple[str, EncodingId], _Flight] = {}
        self._predictions: dict[str, _Prediction] = {}
        self._workers: dict[str, WorkerStatus] = {}
        self._workers_at_s: float | None = None

    def expect(self, source: str, coming: Sequence[Coming]) -> None:
        """Replaces what `source` said."""
        if coming:
            self._coming[source] = coming
        else:
            self._coming.pop(source, None)

    def plan(
        self, is_used: Callable[[EncodingId], bool], now_s: float
    ) -> tuple[list[tuple[str, Prefetch]], list[tuple[str, EncodingId]], bool]:
        """What to order where, in order; what to cancel; and whether something is under way, or to be brought later."""
        self._refresh(now_s)
        coming = (each for of_source in self._coming.values() for each in of_source)
        soonest = nsmallest(MAX_READERS, (each for each in coming if each.at_s < now_s + MAX_IN_S), key=_at_s)
        by_name = {each.name: each for each in soonest}
        self._predictions = {name: each for name, each in self._predictions.items() if name in by_name}
        wanted: list[Wanted] = []
        num_left = MAX_LOOKED_UP
        for each in soonest:
            if num_left <= 0:
                break
            num_left -= len(each.encodings)
            worker_id = self._predicted(each, now_s)
            if worker_id is not None:
                lacks = tuple(self._lacks(each, worker_id))
                if lacks:
                    wanted.append(Wanted(each.name, worker_id, max(0.0, each.at_s - now_s), each.likelihood, lacks))
        rooms = {
            worker.worker_id: Room(worker.pages_free * worker.page_size, worker.pages * worker.page_size)
            for worker in self._workers.values()
        }
        stale = {key for key, flight in self._flights.items() if flight.since_s + AGAIN_S <= now_s}
        under_way = {key: flight.lack for key, flight in self._flights.items() if key not in stale}
        made = plan_prefetches(wanted, rooms, under_way, is_used, self._limits)
        orders: list[tuple[str, Prefetch]] = []
        for start in made.starts:
            encoding_id, specs = start.lack.encoding_id, by_name[start.reader].specs
            sources = tuple(self._sources(encoding_id, start.worker_id, start.lack.num_tokens))
            orders.append((start.worker_id, Prefetch(encoding_id, tuple(closure([encoding_id], specs)), sources)))
            epoch = self._workers[start.worker_id].epoch
            self._flights[start.worker_id, encoding_id] = _Flight(start.lack, epoch, now_s)
            stale.discard((start.worker_id, encoding_id))
        cancels = [*made.cancels, *(key for key in stale if not is_used(key[1]))]
        for key in cancels:
            del self._flights[key]
        return orders, cancels, bool(wanted or self._flights)

    def _refresh(self, now_s: float) -> None:
        if self._workers_at_s is None or now_s >= self._workers_at_s + STATUS_S:
            up = (worker for worker in self._fleet.workers() if worker.alive and not worker.draining)
            self._workers = {worker.worker_id: worker for worker in up}
            self._workers_at_s = now_s
        for (worker_id, encoding_id), flight in list(self._flights.items()):
            worker = self._workers.get(worker_id)
            landed = encoding_id in self._fleet.directory.held_by(worker_id)
            if worker is None or worker.epoch != flight.epoch or landed:
                del self._flights[worker_id, encoding_id]

    def _predicted(self, coming: Coming, now_s: float) -> str | None:
        """Where it will run. While something is under way for it there it is taken to stay."""
        known = self._predictions.get(coming.name)
        if known is not None and known.worker_id in self._workers:
            if known.view == coming.view and now_s < known.until_s:
                return known.worker_id
            if any((known.worker_id, encoding_id) in self._flights for encoding_id in coming.encodings):
                return known.worker_id
        specs = tuple(closure(dependencies(coming.view), coming.specs))
        call = Call(coming.name, coming.namespace, coming.view, coming.start, (), specs, rank=coming.rank)
        worker_id = self._fleet.predict(Order(call, _Nobody(), {}))
        if worker_id is None or worker_id not in self._workers:
            return None
        self._predictions[coming.name] = _Prediction(coming.view, worker_id, now_s + PREDICTED_S)
        return worker_id

    def _lacks(self, coming: Coming, worker_id: str) -> Iterable[Lack]:
        directory, worker = self._fleet.directory, self._workers[worker_id]
        held = directory.held_by(worker_id)
        for encoding_id in coming.encodings:
            if encoding_id in held:
                continue
            placed = directory.holders(encoding_id).get(worker_id, ())
            coming_by_itself = any(tier is Tier.DEVICE and state is PlacementState.LOADING for tier, state, _ in placed)
            if coming_by_itself and (worker_id, encoding_id) not in self._flights:
                continue
            num_tokens = coming.specs[encoding_id].num_tokens
            num_bytes = num_tokens * worker.bytes_per_token
            tiers = [tier for tier, state, _ in placed if state is PlacementState.READY]
            transfer_s = [source.transfer_s for source in self._sources(encoding_id, worker_id, num_tokens)]
            yield Lack(encoding_id, num_tokens, bring_s(num_tokens, num_bytes, worker.rates, tiers, transfer_s))

    def _sources(self, encoding_id: EncodingId, worker_id: str, num_tokens: int) -> list[Source]:
        """Other workers that have it, the quickest first; none if this one has it in a tier of its own."""
        placed = self._fleet.directory.holders(encoding_id)
        if any(state is PlacementState.READY for _, state, _ in placed.get(worker_id, ())):
            return []
        reader = self._workers[worker_id]
        rates = reader.rates
        found: list[Source] = []
        for other, tiers in placed.items():
            source = self._workers.get(other)
            best = min((tier for tier, state, _ in tiers if state is PlacementState.READY), default=None)
            if source is None or best is None:
                continue
            num_bytes = num_tokens * source.bytes_per_token
            transport = transport_between(reader.reach, source.reach)
            rate = getattr(rates, f"{transport}_bytes_per_s") or rates.peer_bytes_per_s or PEER_BYTES_PER_S
            seconds = num_bytes / rate
            seconds += num_bytes / (source.rates.disk_bytes_per_s or DISK_BYTES_PER_S) if best is Tier.DISK else 0.0
            found.append(Source(encoding_id, other, source.epoch, seconds))
        return nsmallest(MAX_SOURCES, found, key=lambda each: (each.transfer_s, each.worker_id))


def bring_s(
    num_tokens: int, num_bytes: int, rates: WorkerRates, tiers: Sequence[Tier], transfer_s: Sequence[float]
) -> float:
    """How long it takes a worker to have an encoding on its device: from one of its own `tiers`, from others, who send
    it in `transfer_s`, or by encoding it, whichever is the quickest."""
    load_s = num_bytes / (rates.host_bytes_per_s or HOST_BYTES_PER_S)
    ways = [num_tokens / (rates.encode_tokens_per_s or ENCODE_TOKENS_PER_S)]
    ways += [seconds + load_s for seconds in transfer_s]
    if Tier.HOST in tiers:
        ways.append(load_s)
    if Tier.DISK in tiers:
        ways.append(load_s + num_bytes / (rates.disk_bytes_per_s or DISK_BYTES_PER_S))
    return min(ways)


def _at_s(coming: Coming) -> float:
    return coming.at_s
