"""A call on its way, and a worker as the dispatcher sees it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from laban.actors.calls import Advice, Call, CallEvent, CallFinished, CallStarted, CallTokens, WorkerInfo, WorkerReport
from laban.actors.ports import WorkerPort
from laban.actors.tallies import WorkerTallies
from laban.cluster.records import ErrorInfo, WorkerStatus
from laban.cluster.routing.accounts import Account, Sent
from laban.cluster.routing.call_view import CallView, family_of
from laban.cluster.spare_calls import SpareCall
from laban.cluster.survey import WorkerSurvey
from laban.cluster.tenants import NO_LIMITS
from laban.cluster.usage import CallUsage
from laban.kvstore.encodings import EncodingId, EncodingSpec
from laban.kvstore.uses import Use


class CallSink(Protocol):
    """Who ordered a call. Methods are called in the event loop, in order, and must not wait."""

    def call_requeued(self, key: str, attempt: int) -> None:
        """The worker died; `attempt` is the next one, and what earlier ones brought is void."""

    def call_started(self, key: str, attempt: int, worker_id: str, event: CallStarted) -> None: ...

    def call_tokens(self, key: str, attempt: int, event: CallTokens) -> None: ...

    def call_finished(self, key: str, attempt: int, worker_id: str, event: CallFinished, waited_ms: float) -> None:
        """`waited_ms` is the time before the call was sent to the worker. Nothing follows."""

    def call_failed(self, key: str, attempt: int, error: ErrorInfo) -> None:
        """Nothing follows."""


@dataclass(frozen=True, slots=True)
class Order:
    """A call to be run: `call.call_id` is its key, unique among the orders not ended.

    `family` holds the encodings of the workflow or session, what later calls may need; `successors`, where somebody
    knows, what they will read, with the tokens of each. `attempt` is the number of its first attempt: that of a call
    tried again goes on counting. `rank` is its workflow's place in the order of admission: the lowest goes first.
    With a `worker_id` it goes there, or fails at once.
    """

    call: Call
    sink: CallSink
    family: Mapping[EncodingId, EncodingSpec]
    attempt: int = 1
    rank: int = 0
    successors: Mapping[EncodingId, int] | None = None
    worker_id: str | None = None

    @property
    def key(self) -> str:
        return self.call.call_id

    @property
    def source(self) -> str:
        """The workflow or session that it is of."""
        return family_of(self.key)


@dataclass(slots=True)
class Ticket:
    """An order on its way: which attempt, and what it counts for in the ledger."""

    order: Order
    number: int  # its place in the order of arrival
    ordered_at: float  # seconds, monotonic
    attempt: int
    view: CallView | None = None  # once it was routed
    started: bool = False
    waited_ms: float = 0.0
    first_token_at: float | None = None
    decided_s: float = 0.0  # to find the worker
    origin: str = ""  # the request that ordered it, for traces
    tokens_predicted: int = 0  # of its view, to be found encoded
    sent: Sent | None = None
    uses: Mapping[EncodingId, Use] | None = None  # what was known when it was sent, for the recorder
    usage: CallUsage = field(default_factory=CallUsage)  # so far

    @property
    def call_id(self) -> str:
        """What the worker knows the call by: late reports of an earlier attempt are told apart."""
        return f"{self.order.key}#{self.attempt}"


class Slot:
    """One life of one worker, and the calls that it was sent."""

    def __init__(self, port: WorkerPort, account: Account) -> None:
        self.port = port
        self.account = account
        self.info: WorkerInfo = port.info
        self.last = WorkerReport(self.info.worker_id, self.info.epoch, 0, load=account.load)
        self.tallies = WorkerTallies()
        self.tickets: dict[str, Ticket] = {}
        self.draining = False
        self.looks_unheard = 0  # how often it was looked at since its last report
        self.kv_bytes = NO_LIMITS  # of tenants, as it was told last
        self.spare: SpareCall | None = None  # what it does while nothing else is to be done

    @property
    def is_idle(self) -> bool:
        load = self.last.load
        return not (self.tickets or self.draining or self.spare or load.num_running or load.num_waiting)

    def take(self, report: WorkerReport) -> None:
        """It is the last one."""
        self.last = report
        self.looks_unheard = 0
        if report.tallies is not None:
            self.tallies = report.tallies

    def limit(self, kv_bytes: Mapping[str, int]) -> None:
        """Tell the worker what tenants may have, if that has changed: before anything that it holds for."""
        if self.kv_bytes is not kv_bytes:
            self.kv_bytes = kv_bytes
            limits = tuple((f"{self.info.namespace}/{tenant}", most) for tenant, most in kv_bytes.items())
            self.port.advise(Advice(kv_bytes=limits))

    def submit(self, calls: Sequence[Call], kv_bytes: Mapping[str, int]) -> None:
        """Send it calls; what it does in spare time ends."""
        self.give_way()
        self.limit(kv_bytes)
        self.port.submit(calls)

    def give_way(self) -> None:
        """What it does in spare time ends."""
        if self.spare is not None:
            self.spare.give_way()

    def take_spare(self, event: CallEvent) -> None:
        """What it reports of a call that nobody ordered."""
        if self.spare is not None:
            self.spare.take(event)

    def survey(self) -> WorkerSurvey:
        return WorkerSurvey(self.info, self.last.load, self.last.rates, self.last.cache, self.tallies)

    def status(self, alive: bool) -> WorkerStatus:
        info, load = self.info, self.last.load
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
            draining=self.draining and alive,
            host_bytes=info.host_bytes,
            host_bytes_used=load.host_bytes_used,
            disk_bytes=info.disk_bytes,
            disk_bytes_used=load.disk_bytes_used,
            rates=self.last.rates,
            reach=info.reach,
            cache=self.last.cache,
            model=info.model_name,
        )
