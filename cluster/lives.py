"""The lives of workers: who is up, comes back after a loss, is added, or leaves for good."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Protocol

from laban.actors.calls import CallFinished, WorkerReport
from laban.actors.errors import Conflict, Exhausted, FailedPrecondition, Unavailable
from laban.actors.lasting import going_on, lasting
from laban.actors.logs import about
from laban.actors.ports import WorkerLost, WorkerPort, WorkerSupervisor
from laban.cluster.pools import Pool, Pools
from laban.cluster.slots import Slot

logger = logging.getLogger(__name__)

LOOKS = 10
"""At each worker, in the time after which one that says nothing is lost."""


class LifeOwner(Protocol):
    """Who is told. None of it waits or raises."""

    def attached(self, port: WorkerPort) -> Slot:
        """A life begins."""
        ...

    def reported(self, slot: Slot, report: WorkerReport) -> None: ...

    def detached(self, slot: Slot, reason: str) -> None:
        """It is over; what it was sent and has not ended is void."""

    def settled(self) -> None:
        """A worker that was awaited is up, or will not come."""


@dataclass(slots=True)
class Failures:
    """To bring a worker back: how many tries have failed, why the last one did, and when the next one is due."""

    count: int = 0
    reason: str = ""
    again_s: float = 0.0  # of the event loop's clock


class Lives:
    """Lives in one event loop."""

    def __init__(
        self,
        owner: LifeOwner,
        pools: Pools,
        supervisor: WorkerSupervisor | None,
        *,
        restart_delays_s: Sequence[float],
        slow_restart_s: tuple[float, float],
        start_timeout_s: float,
        silence_s: float,
        proven_s: float,
    ) -> None:
        """A lost worker is tried to be brought back after each of `restart_delays_s`, and then for as long as it is
        lost, after waits that double from the first of `slow_restart_s` to the second. A life that ends before
        `proven_s` have passed or a call has finished is a try that failed, too: the next one waits for longer, up to
        the last of `restart_delays_s`. So is one that is not up within `start_timeout_s`. One that reports nothing for
        `silence_s` is lost."""
        self._owner, self._pools, self._supervisor = owner, pools, supervisor
        self._restart_delays_s, self._slow_restart_s = restart_delays_s, slow_restart_s
        self._start_timeout_s, self._silence_s = start_timeout_s, silence_s
        self._proven_s = proven_s
        self.up: dict[str, Slot] = {}
        self.lost: dict[str, Slot] = {}  # the last life of those that are not up
        self.returning: set[str] = set()
        self.gone: set[str] = set()  # taken out
        self.adding: dict[str, asyncio.Task[Slot]] = {}
        self._coming: dict[str, str] = {}  # the namespace of each of those
        self._failures: dict[str, Failures] = {}  # of those that are lost
        self._short_lives: dict[str, int] = {}  # the last lives of each, in a row, that proved nothing
        self._tasks: set[asyncio.Task[None]] = set()

    def awaits(self, namespace: str) -> bool:
        """Whether a worker of that model may come up without being asked for."""
        back = any(self.lost[each].info.namespace == namespace for each in self.returning if each in self.lost)
        return back or any(each == namespace for each in self._coming.values())

    def count(self, namespace: str) -> Mapping[str, int]:
        """How many workers of that model are up, draining, lost, returning (lost, and being made anew) and starting."""
        up = [slot for slot in self.up.values() if slot.info.namespace == namespace]
        lost = {name for name, slot in self.lost.items() if slot.info.namespace == namespace}
        draining = sum(slot.draining for slot in up)
        return {
            "up": len(up) - draining,
            "draining": draining,
            "lost": len(lost - self.returning - self.adding.keys()),
            "returning": len(lost & self.returning),
            "starting": sum(each == namespace for each in self._coming.values()),
        }

    def problem(self, worker_id: str) -> str:
        """Why a lost worker is not back, and what is done about it; "" for one that is tried a first time."""
        found = self._failures.get(worker_id)
        if found is None:
            return ""
        wait_s = found.again_s - asyncio.get_running_loop().time()
        is_tried = worker_id in self.adding or (worker_id in self.returning and wait_s <= 0)
        when = "being tried again" if is_tried else f"the next try in {max(0.0, wait_s):.0f} s"
        return f"{found.count} tries to bring it back have failed, {when}: {found.reason}"

    def start(self, ports: Sequence[WorkerPort]) -> None:
        for port in ports:
            self._begin(port)
        self.spawn(lasting("listening for workers", self._listen), "listening for workers")

    async def stop(self) -> None:
        """Close all workers. What was being started is ended."""
        tasks = [*self._tasks, *self.adding.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for slot in list(self.up.values()):
            await self._close(slot)
        self.up.clear()

    async def add(self, worker_id: str, pool: Pool) -> Slot:
        """A worker more of that model, once it is up. The worker comes up even if this is cancelled.

        Raises FailedPrecondition if nobody can make workers, or for one of another model, Conflict for one that is
        there, Exhausted if it is not up in time, Unavailable if it dies before.
        """
        if self._supervisor is None:
            raise FailedPrecondition("there is nobody to start workers", field="worker_id", value=worker_id)
        if worker_id not in self.adding:
            if worker_id in self.up or worker_id in self.returning:
                raise Conflict("is a worker already", field="worker_id", value=worker_id)
            self.gone.discard(worker_id)
            task = asyncio.get_running_loop().create_task(self._add(self._supervisor, worker_id, pool))
            self.adding[worker_id] = task
            self._coming[worker_id] = pool.info.namespace
            task.add_done_callback(lambda done: self._added(worker_id, done))
        return await asyncio.shield(self.adding[worker_id])

    async def take_out(self, worker_id: str) -> None:
        """End a worker; it does not come back. Its calls run again elsewhere. Idempotent, raises nothing."""
        self.gone.add(worker_id)
        self._forget(worker_id)
        self._short_lives.pop(worker_id, None)
        slot = self.up.get(worker_id)
        if slot is not None:
            self._end(slot, "it was taken out")
            await self._close(slot)

    def spawn(self, work: Coroutine[None, None, None], name: str) -> None:
        """Runs until it ends, or everything stops."""
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("%s ended", task.get_name(), exc_info=error)

    async def _close(self, slot: Slot) -> None:
        with going_on(f"closing worker {slot.info.worker_id}"):
            await slot.port.close()

    def _forget(self, worker_id: str) -> None:
        """That it was lost."""
        self.lost.pop(worker_id, None)
        self._failures.pop(worker_id, None)

    def _begin(self, port: WorkerPort) -> Slot:
        slot = self.up[port.info.worker_id] = self._owner.attached(port)
        self._forget(port.info.worker_id)
        self.spawn(self._serve(slot), f"worker {port.info.worker_id}")
        return slot

    def _end(self, slot: Slot, reason: str) -> None:
        worker_id = slot.info.worker_id
        if self.up.get(worker_id) is not slot:
            return
        del self.up[worker_id]
        if slot.draining:
            self.gone.add(worker_id)
        if worker_id in self.gone:
            logger.info("the worker is gone: %s", reason, extra=about(worker=worker_id))
        else:
            logger.warning("the worker is lost: %s", reason, extra=about(worker=worker_id))
            self.lost[worker_id] = slot
            if self._supervisor is not None:
                self.returning.add(worker_id)
        self._owner.detached(slot, reason)

    async def _listen(self) -> None:
        """End workers that have gone silent: stopped, or so that no thread of theirs runs. Counted in looks, not by a
        clock: while this loop was held up, or the machine slept, nobody could be heard."""
        while True:
            await asyncio.sleep(self._silence_s / LOOKS)
            for slot in list(self.up.values()):
                slot.looks_unheard += 1
                if slot.looks_unheard > LOOKS:
                    self._end(slot, f"it said nothing for {self._silence_s:g} s")
                    await self._close(slot)

    async def _serve(self, slot: Slot) -> None:
        """One life, and the way to the next one."""
        worker_id, reason = slot.info.worker_id, "its reports ended"
        clock, has_finished = asyncio.get_running_loop().time, False
        began_s = clock()
        try:
            async with aclosing(slot.port.reports()) as reports:
                async for report in reports:
                    if self.up.get(worker_id) is not slot:
                        return
                    has_finished = has_finished or any(isinstance(event, CallFinished) for event in report.events)
                    self._owner.reported(slot, report)
        except WorkerLost as error:
            reason = str(error)
        except Exception as error:
            logger.exception("reading the worker's reports failed", extra=about(worker=worker_id))
            reason = repr(error)
        self._end(slot, reason)
        lasted_s = clock() - began_s
        await self._close(slot)
        if worker_id in self.returning and self._supervisor is not None:
            failures = self._failed_lives(worker_id, lasted_s, reason, has_finished)
            await self._restart(self._supervisor, slot, failures)

    def _failed_lives(self, worker_id: str, lasted_s: float, reason: str, has_finished: bool) -> Failures:
        """What to bring it back has come to, by how its last life went. The first one that is short is an accident."""
        if has_finished or lasted_s >= self._proven_s:
            self._short_lives.pop(worker_id, None)
            return Failures()
        num_short = self._short_lives[worker_id] = self._short_lives.get(worker_id, 0) + 1
        return Failures(num_short - 1, f"it ended {lasted_s:.0f} s after it had come up: {reason}")

    async def _restart(self, supervisor: WorkerSupervisor, slot: Slot, failures: Failures) -> None:
        """Until it is up, taken out, or added anew by somebody. Whatever was wrong may be mended at any time."""
        worker_id = slot.info.worker_id
        if failures.count:
            self._failures[worker_id] = failures
        try:
            for delay_s in self._restart_delays_s[min(failures.count, len(self._restart_delays_s) - 1) :]:
                failures.again_s = asyncio.get_running_loop().time() + delay_s
                await asyncio.sleep(delay_s)
                if await self._came_back(supervisor, slot, failures):
                    return
        finally:
            self._pause(worker_id)
        logger.error(
            "the worker is lost: %d tries to bring it back have failed; there will be more",
            failures.count,
            extra=about(worker=worker_id),
        )
        delay_s, most_s = self._slow_restart_s
        while self.lost.get(worker_id) is slot:
            failures.again_s = asyncio.get_running_loop().time() + delay_s
            await asyncio.sleep(delay_s)
            delay_s = min(2 * delay_s, most_s)
            if self.lost.get(worker_id) is not slot:
                return
            if worker_id in self.adding:  # somebody tries
                continue
            self.returning.add(worker_id)
            try:
                if await self._came_back(supervisor, slot, failures):
                    return
            finally:
                self._pause(worker_id)

    def _pause(self, worker_id: str) -> None:
        """Nobody is waited for any more."""
        self.returning.discard(worker_id)
        self._owner.settled()

    async def _came_back(self, supervisor: WorkerSupervisor, slot: Slot, failures: Failures) -> bool:
        """One try. Also true where nobody wants it back any more."""
        worker_id = slot.info.worker_id
        if self.lost.get(worker_id) is not slot:
            return True
        try:
            port = await self._start(supervisor, worker_id, self._pools.of(slot.info.namespace))
        except Exception as error:
            logger.warning("the worker did not come back: %s", error, extra=about(worker=worker_id))
            failures.count, failures.reason = failures.count + 1, str(error) or repr(error)
            if self.lost.get(worker_id) is slot:
                self._failures[worker_id] = failures
            return False
        if self.lost.get(worker_id) is slot:
            self._begin(port)
        else:
            await port.close()
        return True

    async def _add(self, supervisor: WorkerSupervisor, worker_id: str, pool: Pool) -> Slot:
        try:
            port = await self._start(supervisor, worker_id, pool)
        except WorkerLost as error:
            raise Unavailable(f"worker {worker_id} did not come up: {error}") from None
        return self._begin(port)

    def _added(self, worker_id: str, task: asyncio.Task[Slot]) -> None:
        del self.adding[worker_id], self._coming[worker_id]
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.warning("worker %s was not added: %s", worker_id, error)
        self._owner.settled()

    async def _start(self, supervisor: WorkerSupervisor, worker_id: str, pool: Pool) -> WorkerPort:
        try:
            async with asyncio.timeout(self._start_timeout_s):
                port = await supervisor.start(worker_id, pool.name)
        except TimeoutError:
            why = f"worker {worker_id} was not up after {self._start_timeout_s:g} s; is there room for it?"
            raise Exhausted(why) from None
        if port.info.namespace != pool.info.namespace:
            await port.close()
            raise FailedPrecondition(f"worker {worker_id} serves another model than the others")
        if sorted(port.info.adapters) != sorted(pool.info.adapters):  # a folder was written anew
            await port.close()
            why = f"worker {worker_id} has other adapters than the others: a new one wants a folder of its own"
            raise FailedPrecondition(why)
        return port
