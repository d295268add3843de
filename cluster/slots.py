"""A worker as the dispatcher sees it: its port, what it was sent, what it will hold once that is done."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from laban.actors.calls import CacheCounters, Call, CallFinished, CallTokens, WorkerInfo, WorkerLoad, WorkerRates
from laban.actors.ports import WorkerPort
from laban.cluster.records import ErrorInfo, WorkerStatus
from laban.cluster.routing.policy import WorkerView, missing_encodings, tokens_not_held
from laban.kvstore.encodings import EncodingId, EncodingSpec


class CallSink(Protocol):
    """Who ordered a call. Methods are called in the event loop, in order, and must not wait."""

    def call_requeued(self, key: str, attempt: int) -> None:
        """The worker died; `attempt` is the next one, and what earlier ones brought is void."""

    def call_started(self, key: str, attempt: int, worker_id: str) -> None: ...

    def call_tokens(self, key: str, attempt: int, event: CallTokens) -> None: ...

    def call_finished(self, key: str, attempt: int, worker_id: str, event: CallFinished, waited_ms: float) -> None:
        """`waited_ms` is the time before the call was sent to the worker. Nothing follows."""

    def call_failed(self, key: str, attempt: int, error: ErrorInfo) -> None:
        """Nothing follows."""


@dataclass(frozen=True, slots=True)
class Order:
    """A call to be run: `call.call_id` is its key, unique among the orders not ended.

    `family` holds the encodings of the workflow or session, what later calls may need. `attempt` is the number of its
    first attempt: that of a call tried again goes on counting.
    """

    call: Call
    sink: CallSink
    family: Mapping[EncodingId, EncodingSpec]
    attempt: int = 1

    @property
    def key(self) -> str:
        return self.call.call_id

    @property
    def source(self) -> str:
        """The workflow or session that it is of."""
        return self.key.partition("/")[0]


@dataclass(slots=True)
class Ticket:
    """An order on its way: which attempt, and what it counts for in a worker's ledger."""

    order: Order
    ordered_at: float  # seconds, monotonic
    attempt: int
    started: bool = False
    waited_ms: float = 0.0
    queued_tokens: int = 0  # still counted as to be encoded
    alone: bool = False  # nothing was queued at the worker before it
    brings: tuple[EncodingId, ...] = ()

    @property
    def call_id(self) -> str:
        """What the worker knows the call by: late reports of an earlier attempt are told apart."""
        return f"{self.order.key}#{self.attempt}"


class Slot:
    """One life of one worker, with the ledger of what it was sent."""

    def __init__(self, port: WorkerPort, held: Mapping[EncodingId, int]) -> None:
        """`held` is a live view of what the worker holds."""
        self.port = port
        self.info: WorkerInfo = port.info
        self.load = WorkerLoad(num_free_pages=port.info.num_pages, num_pages=port.info.num_pages)
        self.rates = WorkerRates()
        self.cache = CacheCounters()
        self.tickets: dict[str, Ticket] = {}
        self.queued_tokens = 0
        self._held = held
        self._coming: Counter[EncodingId] = Counter()

    def view(self, order: Order, tokens_per_ms: float) -> WorkerView:
        present = _Union(self._held, self._coming)
        missing = missing_encodings(order.call.view, _specs(order), present)
        return WorkerView(
            worker_id=self.info.worker_id,
            queued_tokens=self.queued_tokens,
            num_running=len(self.tickets),
            missing_tokens=sum(missing.values()) + len(order.call.tokens),
            tokens_per_ms=tokens_per_ms,
            successor_tokens=tokens_not_held(order.family.values(), present),
            free_pages=self.load.num_free_pages,
        )

    def add(self, ticket: Ticket) -> None:
        order = ticket.order
        missing = missing_encodings(order.call.view, _specs(order), _Union(self._held, self._coming))
        ticket.brings = tuple(missing)
        ticket.alone = self.queued_tokens == 0
        ticket.queued_tokens = sum(missing.values()) + len(order.call.tokens)
        self.queued_tokens += ticket.queued_tokens
        self._coming.update(ticket.brings)
        self.tickets[ticket.call_id] = ticket

    def encoded(self, ticket: Ticket) -> None:
        """The call has its first token: nothing of it is queued any more."""
        self.queued_tokens -= ticket.queued_tokens
        ticket.queued_tokens = 0

    def remove(self, ticket: Ticket) -> None:
        self.encoded(ticket)
        self._coming.subtract(ticket.brings)
        self._coming = +self._coming
        ticket.brings = ()
        del self.tickets[ticket.call_id]

    def status(self, alive: bool) -> WorkerStatus:
        info, load = self.info, self.load
        return WorkerStatus(
            worker_id=info.worker_id,
            epoch=info.epoch,
            alive=alive,
            device=info.device if info.num_shards == 1 else f"{info.num_shards} x {info.device}",
            dtype=info.dtype,
            attention_backend=info.attention_backend,
            calls_running=load.num_running,
            calls_waiting=load.num_waiting,
            queued_tokens=load.queued_tokens,
            pages=info.num_pages,
            pages_free=load.num_free_pages,
            page_size=info.page_size,
            bytes_per_token=info.bytes_per_token,
            encodings=load.num_encodings,
            host_bytes=info.host_bytes,
            host_bytes_used=load.host_bytes_used,
            disk_bytes=info.disk_bytes,
            disk_bytes_used=load.disk_bytes_used,
            rates=self.rates,
            cache=self.cache,
        )


@dataclass(frozen=True, slots=True)
class _Union(Collection[EncodingId]):
    """What is in either of two."""

    first: Collection[EncodingId]
    second: Collection[EncodingId]

    def __contains__(self, item: object) -> bool:
        return item in self.first or item in self.second

    def __iter__(self) -> Iterator[EncodingId]:
        yield from {*self.first, *self.second}

    def __len__(self) -> int:
        return len({*self.first, *self.second})


def _specs(order: Order) -> dict[EncodingId, EncodingSpec]:
    return {spec.encoding_id: spec for spec in order.call.specs}
