"""Sends calls to workers and hands their reports to whoever ordered them.

Orders that come in the same turn of the event loop are routed one after the other and leave as one batch
for each worker. A worker that dies is made anew; its calls run again elsewhere as their next attempt.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace

from laban.actors.calls import CallEvent, CallFailed, CallFinished, CallTokens, WorkerReport
from laban.actors.errors import FailedPrecondition, Unavailable
from laban.actors.ports import DirectoryPort, WorkerLost, WorkerPort, WorkerSupervisor
from laban.cluster.records import ErrorInfo, WorkerStatus
from laban.cluster.routing.directory_feed import DirectoryFeed
from laban.cluster.routing.directory_view import EXPIRE_S, DirectoryView
from laban.cluster.routing.policy import choose_worker
from laban.cluster.routing.rates import Rates
from laban.cluster.slots import Order, Slot, Ticket

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class DispatchLimits:
    max_attempts: int = 3  # of one call, while workers die under it
    max_calls_per_worker: int = 1024  # sent and not ended; more wait here
    restart_delays_s: tuple[float, ...] = (0.0, 1.0, 2.0, 5.0, 10.0, 30.0)
    """Waits before each try to bring a lost worker back; after the last one it stays lost."""


class Dispatcher:
    """Lives in one event loop. `start` before the first order, `stop` at the end."""

    def __init__(
        self,
        workers: Sequence[WorkerPort],
        *,
        supervisor: WorkerSupervisor | None = None,
        directory: DirectoryPort | None = None,
        limits: DispatchLimits | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Raises Unavailable for no workers, FailedPrecondition for workers that serve different models."""
        if not workers:
            raise Unavailable("no worker is up")
        self._supervisor = supervisor
        self._limits = limits or DispatchLimits()
        self._clock = clock
        self.info = workers[0].info  # what all workers have in common: namespace, model, max_context
        for port in workers:
            if port.info.namespace != self.info.namespace:
                other = f"worker {port.info.worker_id} serves another model than worker {self.info.worker_id}"
                raise FailedPrecondition(other, field="namespace", value=port.info.namespace)
        if directory is None:  # nobody else says what workers hold: what calls left there is all there is to go by
            self.directory = DirectoryView(expire_s=math.inf, clock=clock)
        else:
            self.directory = DirectoryView(directory.num_shards, expire_s=EXPIRE_S, clock=clock)
        self._feed = None if directory is None else DirectoryFeed(directory, self.directory)
        self._rates = Rates()
        self._ports = list(workers)
        self._slots: dict[str, Slot] = {}
        self._lost: dict[str, Slot] = {}  # the last life of those that are not up
        self._returning: set[str] = set()
        self._waiting: dict[str, Ticket] = {}
        self._sent: dict[str, tuple[Slot, Ticket]] = {}  # by the order's key
        self._flush_due = False
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        for port in self._ports:
            self._attach(port)
            self._spawn(self._serve(port), f"worker {port.info.worker_id}")
        if self._feed is not None:
            self._spawn(self._feed.run(), "directory feed")

    async def stop(self) -> None:
        """Stop listening and close the workers. Orders not ended get no further word."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for slot in list(self._slots.values()):
            await slot.port.close()
        self._slots.clear()

    def submit(self, orders: Iterable[Order]) -> None:
        """Queue calls. What becomes of them is told to their sinks, never from within this method."""
        for order in orders:
            self.directory.watch_also(order.source, (spec.encoding_id for spec in order.call.specs))
            self._waiting[order.key] = Ticket(order, self._clock(), order.attempt)
        self._schedule_flush()

    def abort(self, keys: Iterable[str]) -> None:
        """Stop calls; their sinks hear nothing more. Unknown keys are ignored."""
        aborted: dict[str, tuple[Slot, list[str]]] = {}
        for key in keys:
            self._waiting.pop(key, None)
            if key in self._sent:
                slot, ticket = self._sent[key]
                self._forget(slot, ticket)
                aborted.setdefault(slot.info.worker_id, (slot, []))[1].append(ticket.call_id)
        for slot, call_ids in aborted.values():
            slot.port.abort(call_ids)
        self._schedule_flush()

    @property
    def max_attempts(self) -> int:
        return self._limits.max_attempts

    @property
    def num_outstanding(self) -> int:
        return len(self._waiting) + len(self._sent)

    def workers(self) -> tuple[WorkerStatus, ...]:
        up = [slot.status(alive=True) for slot in self._slots.values()]
        down = [slot.status(alive=False) for slot in self._lost.values()]
        return tuple(sorted(up + down, key=lambda status: status.worker_id))

    # Sending

    def _schedule_flush(self) -> None:
        if self._waiting and not self._flush_due:
            self._flush_due = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_due = False
        if not self._slots:
            if not self._returning:
                self._fail_waiting()
            return
        batches: dict[str, list[Ticket]] = {}
        for ticket in list(self._waiting.values()):
            try:
                slot = self._choose(ticket.order)
                if slot is None:  # every worker is full: the rest waits until calls end
                    break
                slot.add(ticket)
            except Exception as error:
                logger.exception("routing call %s failed", ticket.call_id)
                del self._waiting[ticket.order.key]
                self._tell(ticket, ErrorInfo("INTERNAL", f"routing failed: {error!r}"))
                continue
            del self._waiting[ticket.order.key]
            self._sent[ticket.order.key] = (slot, ticket)
            ticket.waited_ms = (self._clock() - ticket.ordered_at) * 1000.0
            batches.setdefault(slot.info.worker_id, []).append(ticket)
        for worker_id, tickets in batches.items():
            calls = [replace(ticket.order.call, call_id=ticket.call_id) for ticket in tickets]
            self._slots[worker_id].port.submit(calls)

    def _choose(self, order: Order) -> Slot | None:
        room = [slot for slot in self._slots.values() if len(slot.tickets) < self._limits.max_calls_per_worker]
        if len(room) <= 1:
            return room[0] if room else None
        views = [slot.view(order, self._rates.tokens_per_ms(slot.info.worker_id)) for slot in room]
        return self._slots[choose_worker(views)]

    def _fail_waiting(self) -> None:
        waiting, self._waiting = list(self._waiting.values()), {}
        for ticket in waiting:
            self._tell(ticket, ErrorInfo("UNAVAILABLE", "no worker is up"))

    # Listening

    async def _serve(self, port: WorkerPort | None) -> None:
        """One worker through all its lives."""
        while port is not None:
            worker_id = port.info.worker_id
            reason = "its reports ended"
            try:
                async with aclosing(port.reports()) as reports:
                    async for report in reports:
                        self._take(port, report)
            except WorkerLost as error:
                reason = str(error)
            except Exception as error:
                logger.exception("reading the reports of worker %s failed", worker_id)
                reason = repr(error)
            self._detach(worker_id, reason)
            await port.close()
            port = await self._restart(worker_id)

    def _take(self, port: WorkerPort, report: WorkerReport) -> None:
        worker_id = port.info.worker_id
        slot = self._slots[worker_id]
        slot.load, slot.rates, slot.cache = report.load, report.rates, report.cache
        for event in report.events:
            ticket = slot.tickets.get(event.call_id)
            if ticket is None:
                continue  # aborted, or of an attempt given up
            try:
                self._hand_over(slot, ticket, event)
            except Exception as error:
                logger.exception("handling %s of call %s failed", type(event).__name__, event.call_id)
                if ticket.call_id in slot.tickets:
                    self._forget(slot, ticket)
                    slot.port.abort([ticket.call_id])
                self._tell(ticket, ErrorInfo("INTERNAL", f"handling a report failed: {error!r}"))
        self._schedule_flush()

    def _hand_over(self, slot: Slot, ticket: Ticket, event: CallEvent) -> None:
        sink, key, worker_id = ticket.order.sink, ticket.order.key, slot.info.worker_id
        if isinstance(event, CallFailed):
            self._forget(slot, ticket)
            self._tell(ticket, ErrorInfo(event.status, event.message))
            return
        if not ticket.started:
            ticket.started = True
            sink.call_started(key, ticket.attempt, worker_id)
        if isinstance(event, CallTokens):
            slot.encoded(ticket)
            sink.call_tokens(key, ticket.attempt, event)
        elif isinstance(event, CallFinished):
            if ticket.alone:
                self._rates.observe(worker_id, event.tokens_encoded, event.ttft_ms)
            self._expect(slot, ticket, event)
            self._forget(slot, ticket)
            sink.call_finished(key, ticket.attempt, worker_id, event, ticket.waited_ms)

    def _forget(self, slot: Slot, ticket: Ticket) -> None:
        slot.remove(ticket)
        del self._sent[ticket.order.key]

    def _tell(self, ticket: Ticket, error: ErrorInfo) -> None:
        try:
            ticket.order.sink.call_failed(ticket.order.key, ticket.attempt, error)
        except Exception:
            logger.exception("nobody took the failure of call %s: %s", ticket.call_id, error)

    def _expect(self, slot: Slot, ticket: Ticket, event: CallFinished) -> None:
        """What the call encoded stands on the worker's device, until the directory knows better."""
        info, directory = slot.info, self.directory
        directory.watch_also(ticket.order.source, [event.encoding.encoding_id])
        specs = {spec.encoding_id: spec for spec in ticket.order.call.specs}
        for spec in (*(specs[encoding_id] for encoding_id in ticket.brings), event.encoding):
            directory.expect(info.worker_id, info.epoch, spec.encoding_id, spec.num_tokens)

    # Lives of workers

    def _attach(self, port: WorkerPort) -> None:
        info = port.info
        self.directory.begin(info.worker_id, info.epoch)
        self._slots[info.worker_id] = Slot(port, self.directory.held_by(info.worker_id))
        self._lost.pop(info.worker_id, None)
        self._schedule_flush()

    def _detach(self, worker_id: str, reason: str) -> None:
        logger.warning("worker %s is lost: %s", worker_id, reason)
        slot = self._slots.pop(worker_id)
        self._lost[worker_id] = slot
        self._rates.forget(worker_id)
        self.directory.drop(worker_id, slot.info.epoch)
        if self._feed is not None:
            self._spawn(self._feed.drop(worker_id, slot.info.epoch), f"death of {worker_id}")
        if self._supervisor is not None:
            self._returning.add(worker_id)
        while slot.tickets:  # a sink that is told of one call's failure may abort others of these
            ticket = next(iter(slot.tickets.values()))
            self._forget(slot, ticket)
            lives = ticket.attempt - ticket.order.attempt + 1
            if lives >= self._limits.max_attempts:
                why = f"the worker died in each of {lives} attempts; the last time: {reason}"
                self._tell(ticket, ErrorInfo("UNAVAILABLE", why))
                continue
            again = Ticket(ticket.order, ticket.ordered_at, ticket.attempt + 1)
            self._waiting[again.order.key] = again
            try:
                again.order.sink.call_requeued(again.order.key, again.attempt)
            except Exception as error:
                logger.exception("requeueing call %s failed", again.call_id)
                self._waiting.pop(again.order.key, None)
                self._tell(again, ErrorInfo("INTERNAL", f"requeueing failed: {error!r}"))
        self._schedule_flush()

    async def _restart(self, worker_id: str) -> WorkerPort | None:
        if self._supervisor is None:
            return None
        try:
            for delay_s in self._limits.restart_delays_s:
                await asyncio.sleep(delay_s)
                try:
                    port = await self._supervisor.start(worker_id)
                except Exception as error:
                    logger.warning("worker %s did not come back: %s", worker_id, error)
                    continue
                if port.info.namespace == self.info.namespace:
                    self._attach(port)
                    return port
                logger.error("worker %s came back with another model", worker_id)
                await port.close()
            logger.error("worker %s stays lost after %d tries", worker_id, len(self._limits.restart_delays_s))
            return None
        finally:
            self._returning.discard(worker_id)
            self._schedule_flush()

    def _spawn(self, work: Coroutine[None, None, None], name: str) -> None:
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
