"""Sends calls to workers and hands their reports to whoever ordered them.

Orders that come in the same turn of the event loop are routed one after the other and leave as one batch
for each worker. A worker that dies is made anew; its calls run again elsewhere as their next attempt.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from laban.actors.calls import (
    Advice,
    Call,
    CallEvent,
    CallFailed,
    CallFinished,
    CallStarted,
    CallTokens,
    WorkerInfo,
    WorkerReport,
)
from laban.actors.lasting import going_on
from laban.actors.ports import DirectoryPort, WorkerPort, WorkerSupervisor
from laban.cluster.decisions import Decisions
from laban.cluster.draining import Foreseen
from laban.cluster.fleet import Fleet
from laban.cluster.lives import Lives
from laban.cluster.meter import NO_METER, Meter
from laban.cluster.pools import Pool, Pools
from laban.cluster.records import ErrorInfo, RoutingDecision, WorkerStatus
from laban.cluster.routing.call_view import view_call
from laban.cluster.routing.directory_feed import DirectoryFeed
from laban.cluster.routing.directory_view import EXPIRE_S, DirectoryView
from laban.cluster.routing.ledger import Ledger
from laban.cluster.routing.policies import load_routing
from laban.cluster.routing.recorder import EndedCall, Recorder
from laban.cluster.routing.replication import Replication
from laban.cluster.routing.router import Router, warm_up
from laban.cluster.slots import Order, Slot, Ticket
from laban.cluster.survey import FleetSurvey, Queue
from laban.cluster.tenants import NO_TENANTS, Tenants, tenant_in
from laban.cluster.traces import NO_TRACES, Traces
from laban.kvstore.encodings import EncodingId

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class DispatchLimits:
    max_attempts: int = 3  # of one call, while workers die under it
    max_calls_per_worker: int = 1024  # sent and not ended; more wait here
    restart_delays_s: tuple[float, ...] = (0.0, 1.0, 2.0, 5.0, 10.0, 30.0)
    """Waits before each try to bring a lost worker back. While they last calls wait for it."""
    slow_restart_s: tuple[float, float] = (60.0, 300.0)
    """The wait after those, doubled after each further try, and what it grows to. Until then others have its calls."""
    start_timeout_s: float = 600.0  # of a worker that is added, or comes back
    silence_s: float = 30.0  # without a report, after which a worker is lost: it is stopped, or its process hangs
    proven_s: float = 60.0  # after which a worker that was lost was not broken from the start
    drain_timeout_s: float = 60.0  # for others to take over what a worker leaves behind
    drain_interval_s: float = 0.1  # between looks at what is left


class Dispatcher:
    """Lives in one event loop. `start` before the first order, `stop` at the end."""

    def __init__(
        self,
        workers: Sequence[WorkerPort],
        *,
        supervisor: WorkerSupervisor | None = None,
        directory: DirectoryPort | None = None,
        limits: DispatchLimits | None = None,
        policy: str = "cost",
        replicate: bool = True,
        recorder: Recorder | None = None,
        meter: Meter = NO_METER,
        traces: Traces = NO_TRACES,
        tenants: Tenants = NO_TENANTS,
        default_model: str = "",
        clock: Callable[[], float] = time.monotonic,
        time_of_day: Callable[[], float] = time.time,
    ) -> None:
        """`policy` is a name as in `load_routing`; it is the dispatcher that closes `recorder`. Workers may serve
        several models; `default_model` "" is the first one's.

        Raises what Pools raises, and ValueError for a policy that is none.
        """
        self._limits = limits or DispatchLimits()
        self._clock, self._time_of_day = clock, time_of_day
        if directory is None:  # nobody else says what workers hold: what calls left there is all there is to go by
            self.directory = DirectoryView(expire_s=math.inf, clock=clock)
        else:
            self.directory = DirectoryView(directory.num_shards, expire_s=EXPIRE_S, clock=clock)
        self._feed = None if directory is None else DirectoryFeed(directory, self.directory)
        self.policy, routing = policy, load_routing(policy)

        def make_router() -> Router:
            copies = Replication() if replicate else None
            return Router(routing, self.directory, Ledger(), copies, on_failure=meter.policy_failed)

        warm_up()  # takes time unless somebody did before, which the first call need not wait for
        self.pools = Pools((port.info for port in workers), make_router, default_model)
        self._decisions = Decisions(policy)
        self._recorder, self._meter, self._traces, self._tenants = recorder, meter, traces, tenants
        self.directory.on_confirmed = meter.directory_confirmed
        self._foreseen: Foreseen | None = None
        self._ports = list(workers)
        self._lives = Lives(
            self,
            self.pools,
            supervisor,
            restart_delays_s=self._limits.restart_delays_s,
            slow_restart_s=self._limits.slow_restart_s,
            start_timeout_s=self._limits.start_timeout_s,
            silence_s=self._limits.silence_s,
            proven_s=self._limits.proven_s,
        )
        self._slots = self._lives.up
        self.fleet = Fleet(
            self._lives,
            self.pools,
            self.directory,
            drain_timeout_s=self._limits.drain_timeout_s,
            interval_s=self._limits.drain_interval_s,
        )
        self._num_ordered = 0
        self._sent: dict[str, tuple[Slot, Ticket]] = {}  # by the order's key
        self._flush_due = False

    @property
    def info(self) -> WorkerInfo:
        """What all workers of the default model have in common: namespace, model, max_context."""
        return self.pools.default.info

    @property
    def router(self) -> Router:
        """The default model's."""
        return self.pools.default.router

    def start(self) -> None:
        self._lives.start(self._ports)
        if self._feed is not None:
            self._lives.spawn(self._feed.run(), "directory feed")

    async def stop(self) -> None:
        """Stop listening and close the workers. Orders not ended get no further word."""
        await self.fleet.stop()
        await self._lives.stop()
        if self._recorder is not None:
            await asyncio.to_thread(self._recorder.close)

    def submit(self, orders: Iterable[Order]) -> None:
        """Queue calls. What becomes of them is told to their sinks, never from within this method."""
        orders = list(orders)
        for order in orders:
            self._num_ordered += 1
            origin = self._traces.here()
            ticket = Ticket(order, self._num_ordered, self._clock(), order.attempt, origin=origin)
            self.pools.of(order.call.namespace).waiting.add(ticket)
        self._schedule_flush()  # before the directory is told what to watch: calls go out first
        for order in orders:
            self.directory.watch_also(order.source, (spec.encoding_id for spec in order.call.specs))

    def abort(self, keys: Iterable[str]) -> None:
        """Stop calls; their sinks hear nothing more. Unknown keys are ignored."""
        aborted: dict[str, tuple[Slot, list[str]]] = {}
        for key in keys:
            for pool in self.pools:
                pool.waiting.discard(key)
            if key in self._sent:
                slot, ticket = self._sent[key]
                self._forget(slot, ticket, "CANCELLED")
                usage = ticket.usage.take()  # who stops a call at its last token has had all before it
                self._charge(slot, ticket, usage.tokens_encoded + usage.tokens_generated)
                aborted.setdefault(slot.info.worker_id, (slot, []))[1].append(ticket.call_id)
        for slot, call_ids in aborted.values():
            slot.port.abort(call_ids)
        self._schedule_flush()

    def advise(self, worker_id: str, advice: Advice) -> None:
        """Tell a worker what is to come. Nothing happens if it is not up."""
        slot = self._slots.get(worker_id)
        if slot is not None:
            slot.limit(self._tenants.kv_bytes)
            slot.port.advise(advice)
            if self._feed is not None:
                self._feed.note(advice.uses, advice.pins)

    def forget(self, encoding_ids: Iterable[EncodingId]) -> None:
        """Have all workers remove what nobody names."""
        named = self.directory.watching.named()
        gone = tuple(each for each in encoding_ids if each not in named)
        for slot in self._slots.values() if gone else ():
            slot.port.advise(Advice(cancelled=gone, forgotten=gone))

    def predict(self, order: Order) -> str | None:
        """The worker that a call would go to now; None if none takes any. Nothing is sent."""
        router = self.pools.of(order.call.namespace).router
        choice = router.choose(view_call(order.call, order.successors, order.family), self._clock())
        return None if choice is None else choice.worker_id

    def explain(self, key: str) -> RoutingDecision | None:
        """Where a call went and why; None if it was not routed, or too long ago."""
        return self._decisions.explain(key)

    @property
    def max_attempts(self) -> int:
        return self._limits.max_attempts

    @property
    def num_outstanding(self) -> int:
        return sum(len(pool.waiting) for pool in self.pools) + len(self._sent)

    def idle(self, worker_id: str) -> Slot | None:
        """A worker that is up, takes calls and has none, while none waits."""
        slot = self._slots.get(worker_id)
        if slot is None or self._pool_of(slot).waiting:
            return None
        return slot if slot.is_idle else None

    def workers(self) -> tuple[WorkerStatus, ...]:
        up = [slot.status(alive=True) for slot in self._slots.values()]
        lives = self._lives
        down = [replace(slot.status(alive=False), problem=lives.problem(name)) for name, slot in lives.lost.items()]
        return tuple(sorted(up + down, key=lambda status: status.worker_id))

    def survey(self) -> FleetSurvey:
        """Looks at every call that has not begun."""
        now_s = self._clock()
        here_s = min((at_s for pool in self.pools if (at_s := pool.waiting.oldest_at()) is not None), default=None)
        num_waiting = sum(len(pool.waiting) for pool in self.pools)
        sent = (ticket for slot in self._slots.values() for ticket in slot.tickets.values())
        at_workers_s = [ticket.ordered_at for ticket in sent if not ticket.started]
        queues = {
            "gateway": Queue(num_waiting, 0.0 if here_s is None else now_s - here_s),
            "worker": Queue(len(at_workers_s), now_s - min(at_workers_s, default=now_s)),
        }
        return FleetSurvey(
            workers=tuple(slot.survey() for slot in self._slots.values()),
            states={pool.name: self._lives.count(pool.info.namespace) for pool in self.pools},
            queues=queues,
            silent_shards=self.directory.num_silent,
            num_unconfirmed=self.directory.counters.num_unconfirmed,
        )

    def foresee(self, foreseen: Foreseen) -> None:
        """Who knows what will be read: of use to a worker that leaves, and to recordings."""
        self._foreseen = self.fleet.foreseen = foreseen

    # Sending

    def _schedule_flush(self) -> None:
        if not self._flush_due and any(pool.waiting for pool in self.pools):
            self._flush_due = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_due = False
        for pool in self.pools:
            if pool.router.ledger.accounts:
                self._flush_pool(pool)
            elif not self._lives.awaits(pool.info.namespace):
                self._fail_waiting(pool)

    def _flush_pool(self, pool: Pool) -> None:
        batches: dict[str, list[Call]] = {}
        while (ticket := pool.waiting.first()) is not None:
            key = ticket.order.key
            try:
                call = self._route(pool, ticket)
            except Exception as error:
                logger.exception("routing call %s failed", ticket.call_id)
                if ticket.sent is not None:  # it was counted for a worker already
                    pool.router.ledger.ended(ticket.sent)
                pool.waiting.discard(key)
                self._tell(ticket, ErrorInfo("INTERNAL", f"routing failed: {error!r}"))
                continue
            if call is None and ticket.order.worker_id is not None:
                pool.waiting.discard(key)
                self._tell(ticket, ErrorInfo("UNAVAILABLE", f"worker {ticket.order.worker_id} takes no more calls"))
                continue
            if call is None:  # every worker is full: the rest waits until calls end
                break
            batches.setdefault(self._sent[key][0].info.worker_id, []).append(call)
        for worker_id, calls in batches.items():
            slot = self._slots[worker_id]
            # Who has just been told of a failure may have aborted others.
            if calls := [call for call in calls if call.call_id in slot.tickets]:
                slot.submit(calls, self._tenants.kv_bytes)

    def _route(self, pool: Pool, ticket: Ticket) -> Call | None:
        """The call as it is to be sent to the worker that it is now counted for; None if none takes any."""
        order, now_s = ticket.order, self._clock()
        if ticket.view is None:
            ticket.view = view_call(order.call, order.successors, order.family)
        choice = pool.router.choose(ticket.view, now_s, order.worker_id)
        if choice is None:
            return None
        ticket.decided_s = self._clock() - now_s
        self._meter.call_routed(self.policy, choice.worker_id, ticket.decided_s, pool.name)
        slot = self._slots[choice.worker_id]
        ticket.sent = pool.router.send(ticket.view, choice, now_s)
        ticket.tokens_predicted = choice.tokens_found
        ticket.waited_ms = (now_s - ticket.ordered_at) * 1000.0
        if self._recorder is not None and self._foreseen is not None:
            uses = ((need.encoding_id, self._foreseen.next_use(need.encoding_id)) for need in ticket.view.needs)
            ticket.uses = {encoding_id: use for encoding_id, use in uses if use is not None}
        num_workers = len(pool.router.ledger.accounts)
        self._decisions.keep(order.key, ticket.attempt, self._time_of_day(), choice, num_workers)
        call = replace(order.call, call_id=ticket.call_id, rank=order.rank, sources=choice.sources)
        pool.waiting.discard(order.key)
        self._sent[order.key] = (slot, ticket)
        slot.tickets[ticket.call_id] = ticket
        self._see_room(slot)
        return call

    def _see_room(self, slot: Slot) -> None:
        room = len(slot.tickets) < self._limits.max_calls_per_worker
        self._ledger_of(slot).set_open(slot.account, room and not slot.draining)

    def _fail_waiting(self, pool: Pool) -> None:
        why = f"no worker of model {pool.name} is up" if self.pools.are_several else "no worker is up"
        for ticket in pool.waiting.take_all():
            self._tell(ticket, ErrorInfo("UNAVAILABLE", why))

    def _pool_of(self, slot: Slot) -> Pool:
        return self.pools.of(slot.info.namespace)

    def _ledger_of(self, slot: Slot) -> Ledger:
        return self._pool_of(slot).router.ledger

    # Listening

    def reported(self, slot: Slot, report: WorkerReport) -> None:
        slot.take(report)
        self._ledger_of(slot).report(slot.account, report.load, report.rates)
        for event in report.events:
            ticket = slot.tickets.get(event.call_id)
            if ticket is None:  # aborted, of an attempt given up, or of what it does in spare time
                slot.take_spare(event)
                continue
            try:
                self._hand_over(slot, ticket, event)
            except Exception as error:
                logger.exception("handling %s of call %s failed", type(event).__name__, event.call_id)
                if ticket.call_id in slot.tickets:
                    self._forget(slot, ticket, "INTERNAL")
                    slot.port.abort([ticket.call_id])
                self._tell(ticket, ErrorInfo("INTERNAL", f"handling a report failed: {error!r}"))
        self._schedule_flush()

    def _hand_over(self, slot: Slot, ticket: Ticket, event: CallEvent) -> None:
        sink, key, worker_id = ticket.order.sink, ticket.order.key, slot.info.worker_id
        if isinstance(event, CallFailed):
            self._forget(slot, ticket, event.status)
            self._meter.call_ended(worker_id, event.status, slot.info.model_name)
            first_s = (ticket.first_token_at or self._clock()) - ticket.ordered_at
            self._meter.call_failed(first_s, slot.info.model_name)
            self._record(slot, ticket, event.status)
            self._tell(ticket, ErrorInfo(event.status, event.message))
            return
        if not ticket.started:
            ticket.started = True
            began = event if isinstance(event, CallStarted) else CallStarted(event.call_id, 0, 0)
            sink.call_started(key, ticket.attempt, worker_id, began)
        if isinstance(event, CallStarted):
            ticket.usage.start(event)
            self._meter.call_admitted(self._clock() - ticket.ordered_at, slot.info.model_name)
            self.directory.count(ticket.tokens_predicted, event.tokens_reused)
        elif isinstance(event, CallTokens):
            assert ticket.sent is not None
            self._ledger_of(slot).started(ticket.sent)
            ticket.first_token_at = ticket.first_token_at or self._clock()
            ticket.usage.add(len(event.token_ids))
            sink.call_tokens(key, ticket.attempt, event)
        else:
            assert ticket.sent is not None
            encoded, generated = event.tokens_encoded, event.tokens_generated
            self._charge(slot, ticket, encoded + generated)
            self._ledger_of(slot).observe(ticket.sent, encoded, event.ttft_ms, event.wall_ms, generated)
            self._expect(slot, ticket, event)
            self._forget(slot, ticket, event)
            self._meter.call_ended(worker_id, "OK", slot.info.model_name)
            self._record(slot, ticket, event)
            sink.call_finished(key, ticket.attempt, worker_id, event, ticket.waited_ms)

    def _charge(self, slot: Slot, ticket: Ticket, num_tokens: int) -> None:
        if num_tokens:
            self._tenants.spent(tenant_in(ticket.order.call.namespace, slot.info.namespace), num_tokens)

    def _expect(self, slot: Slot, ticket: Ticket, event: CallFinished) -> None:
        """What the call brought stands on the worker's device, until the directory knows better."""
        info, directory = slot.info, self.directory
        assert ticket.sent is not None
        directory.watch_also(ticket.order.source, [event.encoding.encoding_id])
        specs = {spec.encoding_id: spec for spec in (*ticket.order.call.specs, event.encoding)}
        for encoding_id in {**dict.fromkeys(ticket.sent.brings), event.encoding.encoding_id: None}:
            directory.expect(info.worker_id, info.epoch, encoding_id, specs[encoding_id].num_tokens)

    def _record(self, slot: Slot, ticket: Ticket, end: CallFinished | str) -> None:
        if self._recorder is not None:
            ordered_at = self._time_of_day() - (self._clock() - ticket.ordered_at)
            worker_id, uses = slot.info.worker_id, ticket.uses or {}
            call = ticket.order.call
            self._recorder.put(EndedCall(call, ordered_at, ticket.attempt, worker_id, ticket.waited_ms, uses, end))

    def _forget(self, slot: Slot, ticket: Ticket, end: CallFinished | str) -> None:
        """It has ended there: how, or the name of the status that it failed with."""
        with going_on(f"tracing call {ticket.call_id}"):
            self._traces.call_ended(ticket, slot.info.worker_id, self._clock(), end)
        assert ticket.sent is not None
        self._ledger_of(slot).ended(ticket.sent)
        del slot.tickets[ticket.call_id]
        del self._sent[ticket.order.key]
        self._see_room(slot)

    def _tell(self, ticket: Ticket, error: ErrorInfo) -> None:
        try:
            ticket.order.sink.call_failed(ticket.order.key, ticket.attempt, error)
        except Exception:
            logger.exception("nobody took the failure of call %s: %s", ticket.call_id, error)

    # Lives of workers

    def attached(self, port: WorkerPort) -> Slot:
        info = port.info
        self.directory.begin(info.worker_id, info.epoch)
        self._schedule_flush()
        return Slot(port, self.pools.of(info.namespace).router.ledger.add(info))

    def detached(self, slot: Slot, reason: str) -> None:
        info = slot.info
        if info.worker_id not in self._lives.gone:
            self._meter.worker_lost()
        slot.give_way()
        self._ledger_of(slot).remove(info.worker_id)
        self.directory.drop(info.worker_id, info.epoch)
        if self._feed is not None:
            self._lives.spawn(self._feed.drop(info.worker_id, info.epoch), f"death of {info.worker_id}")
        while slot.tickets:  # a sink that is told of one call's failure may abort others of these
            ticket = next(iter(slot.tickets.values()))
            self._forget(slot, ticket, "UNAVAILABLE")
            order, lives = ticket.order, ticket.attempt - ticket.order.attempt + 1
            if lives >= self._limits.max_attempts:
                why = f"the worker died in each of {lives} attempts; the last time: {reason}"
                self._tell(ticket, ErrorInfo("UNAVAILABLE", why))
                continue
            again = Ticket(
                order, ticket.number, ticket.ordered_at, ticket.attempt + 1, ticket.view, origin=ticket.origin
            )
            waiting = self._pool_of(slot).waiting
            waiting.add(again)
            self._meter.call_requeued()
            try:
                order.sink.call_requeued(order.key, again.attempt)
            except Exception as error:
                logger.exception("requeueing call %s failed", again.call_id)
                waiting.discard(order.key)
                self._tell(again, ErrorInfo("INTERNAL", f"requeueing failed: {error!r}"))
        self._schedule_flush()

    def settled(self) -> None:
        self._schedule_flush()
