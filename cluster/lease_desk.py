"""Hands external steps to handlers, who may wait for one, and takes them back when a lease runs out."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass

from laban.actors.errors import FailedPrecondition
from laban.actors.logs import about
from laban.cluster.leases import Errand, Held, Leases
from laban.cluster.records import Lease, LeaseMessage

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Waiter:
    """A handler that waits for a step of its tools. The future's None: none came in time."""

    tools: Collection[str]
    workflow_id: str
    handler: str
    handed: asyncio.Future[Held | None]

    def wants(self, errand: Errand) -> bool:
        fits = errand.task.tool in self.tools and self.workflow_id in ("", errand.workflow_id)
        return fits and not self.handed.done()

    def dismiss(self) -> None:
        if not self.handed.done():
            self.handed.set_result(None)


class LeaseDesk:
    """Lives in one event loop. No step waits while a handler waits for it."""

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.monotonic,
        time_of_day: Callable[[], float] = time.time,
        origin: Callable[[], str] = lambda: "",
    ) -> None:
        self.leases = Leases(clock, origin)
        self._clock = clock
        self._time_of_day = time_of_day
        self._waiters: dict[int, _Waiter] = {}
        self._last_waiter = 0
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0

    @property
    def num_waiters(self) -> int:
        return len(self._waiters)

    def offer(self, errand: Errand) -> None:
        """To whoever has waited longest, else to the next who asks. Its sink is told once a handler has it."""
        self.leases.offer(errand)
        waiter = next((waiter for waiter in self._waiters.values() if waiter.wants(errand)), None)
        if waiter is not None:
            waiter.handed.set_result(self._take(waiter.tools, waiter.workflow_id, waiter.handler))

    def withdraw(self, workflow_id: str, address: str) -> None:
        """Nobody gets the step; a lease of it is void."""
        self.leases.withdraw(workflow_id, address)

    async def lease(self, tools: Collection[str], workflow_id: str, handler: str, wait_s: float) -> Lease | None:
        """A step of these tools; None if none came in time.

        Raises FailedPrecondition if the workflow, where one is named, ends meanwhile.
        """
        held = self._take(tools, workflow_id, handler)
        if held is None and wait_s > 0:
            held = await self._wait(tools, workflow_id, handler, wait_s)
        if held is None or self.leases.find(held.lease_id) is None:  # void before the handler heard of it
            return None
        messages = held.errand.sink.step_leased(held.errand.address, handler)
        return self._record(held, messages)

    def renew(self, lease_id: str) -> Lease:
        """The lease without its messages, to run for its full time again. Raises FailedPrecondition if it has ended."""
        return self._record(self.leases.renew(lease_id))

    def end_workflow(self, workflow_id: str) -> None:
        """Send those away who wait for steps of this workflow alone."""
        for waiter in self._waiters.values():
            if waiter.workflow_id == workflow_id and not waiter.handed.done():
                waiter.handed.set_exception(ended(workflow_id))

    def close(self) -> None:
        """Send everybody away; nothing runs out any more."""
        for waiter in self._waiters.values():
            waiter.dismiss()
        if self._timer is not None:
            self._timer.cancel()

    async def _wait(self, tools: Collection[str], workflow_id: str, handler: str, wait_s: float) -> Held | None:
        loop = asyncio.get_running_loop()
        waiter = _Waiter(tools, workflow_id, handler, loop.create_future())
        self._last_waiter += 1
        number = self._last_waiter
        self._waiters[number] = waiter
        timer = loop.call_later(wait_s, waiter.dismiss)
        try:
            return await waiter.handed
        except asyncio.CancelledError:
            # The handler left between being given the step and hearing of it: the next one gets it.
            handed = waiter.handed
            if handed.done() and not handed.cancelled() and handed.exception() is None:
                held = handed.result()
                errand = None if held is None else self.leases.give_back(held.lease_id)
                if errand is not None:
                    self.offer(errand)
            raise
        finally:
            timer.cancel()
            del self._waiters[number]

    def _take(self, tools: Collection[str], workflow_id: str, handler: str) -> Held | None:
        held = self.leases.take(tools, workflow_id, handler)
        if held is not None:
            self._watch(held.expires_at)
        return held

    def _watch(self, expires_at: float) -> None:
        """Have the timer go off then, or earlier."""
        if self._timer is not None:
            if self._timer_at <= expires_at:
                return
            self._timer.cancel()
        self._timer_at = expires_at
        self._timer = asyncio.get_running_loop().call_later(max(0.0, expires_at - self._clock()), self._expire)

    def _expire(self) -> None:
        self._timer = None
        for held in self.leases.expired():
            errand = held.errand
            where = about(workflow=errand.workflow_id, step=errand.address)
            logger.info("the lease ran out, handler %r", held.handler, extra=where)
            try:
                errand.sink.lease_lost(errand.address)
            except Exception:  # one workflow's mistake must not keep the leases of others from running out
                logger.exception("nobody took the loss of %s of %s", errand.address, errand.workflow_id)
        following = self.leases.next_expiry()
        if following is not None:
            self._watch(following)

    def _record(self, held: Held, messages: tuple[LeaseMessage, ...] = ()) -> Lease:
        errand, task = held.errand, held.errand.task
        return Lease(
            lease_id=held.lease_id,
            workflow_id=errand.workflow_id,
            address=errand.address,
            tool=task.tool,
            attempt=errand.attempt,
            args=task.args,
            messages=messages,
            description=task.description,
            duration_s=task.lease_s,
            expires_at=self._time_of_day() + held.expires_at - self._clock(),
            output_schema=task.output_schema,
        )


def ended(workflow_id: str) -> FailedPrecondition:
    return FailedPrecondition("the workflow has ended", field="workflow_id", value=workflow_id)
