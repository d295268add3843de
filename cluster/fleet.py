"""Workers that join and leave while workflows run."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping

from laban.actors.errors import FailedPrecondition, NotFound
from laban.cluster.draining import Foreseen, Mover
from laban.cluster.lives import Lives
from laban.cluster.pools import Pools
from laban.cluster.records import DrainProgress, WorkerStatus
from laban.cluster.routing.directory_view import DirectoryView
from laban.cluster.slots import Slot

NAME = "worker-{}"


class Fleet:
    """Lives in the dispatcher's event loop."""

    def __init__(
        self, lives: Lives, pools: Pools, view: DirectoryView, *, drain_timeout_s: float, interval_s: float = 0.1
    ) -> None:
        """`drain_timeout_s` is how long a worker that leaves waits for others to take over what they will need."""
        self._lives, self._pools, self._view = lives, pools, view
        self._drain_timeout_s, self._interval_s = drain_timeout_s, interval_s
        self._drains: dict[str, tuple[asyncio.Task[None], Mover]] = {}
        self.foreseen: Foreseen | None = None  # who knows what will be read, where somebody does

    @property
    def _slots(self) -> Mapping[str, Slot]:
        return self._lives.up

    async def stop(self) -> None:
        """Drains that are under way are given up."""
        tasks = [task for task, _ in self._drains.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def add_worker(self, worker_id: str | None = None, *, model: str = "") -> WorkerStatus:
        """One worker more, like the others of that model, once it serves; without an id it gets the first name that is
        free. It comes up even if this is cancelled.

        Raises InvalidInput for an unknown model, FailedPrecondition if nobody can start workers, Conflict for one that
        is there already, Exhausted if it was not up in time, Unavailable if it died before.
        """
        slot = await self._lives.add(worker_id or self._free_name(), self._pools.named(model))
        return slot.status(alive=True)

    def drain(self, worker_id: str) -> asyncio.Future[None]:
        """Take a worker out, once its calls have ended and others have what they will need of it. Done when it is gone;
        goes on if whoever waits leaves. Asking again joins it; nothing happens to one that is out already.

        Raises NotFound for an unknown worker, FailedPrecondition for the last one of its model that takes calls.
        """
        if worker_id not in self._drains:
            slot = self._slots.get(worker_id)
            if slot is None:
                return self._take_out_lost(worker_id)
            pool = self._pools.of(slot.info.namespace)
            alike = [each for each in self._slots.values() if self._pools.of(each.info.namespace) is pool]
            if not any(other is not slot and not other.draining for other in alike):
                of_model = f" of model {pool.name}" if self._pools.are_several else ""
                raise FailedPrecondition(
                    f"is the last worker{of_model} that takes calls, expected another one to be up first",
                    field="worker_id",
                    value=worker_id,
                )
            slot.draining = True
            pool.router.ledger.set_open(slot.account, False)
            mover = Mover(slot, self._slots, self._view, pool.router)
            task = asyncio.get_running_loop().create_task(self._drain(slot, mover), name=f"drain {worker_id}")
            self._drains[worker_id] = (task, mover)
            task.add_done_callback(lambda _: self._drains.pop(worker_id))
        return asyncio.shield(self._drains[worker_id][0])

    def progress(self, worker_id: str) -> DrainProgress:
        """How far the drain of a worker is."""
        slot, (_, mover) = self._slots.get(worker_id), self._drains.get(worker_id, (None, None))
        if slot is None or mover is None:
            return DrainProgress(worker_id, 0, 0, done=slot is None)
        return DrainProgress(worker_id, len(slot.tickets), len(mover.left))

    async def drain_worker(self, worker_id: str) -> AsyncGenerator[DrainProgress, None]:
        """Drain, and say now and then how far it is; the last item says `done`. Raises as `drain` does."""
        draining = self.drain(worker_id)
        last: DrainProgress | None = None
        while not draining.done():
            if (now := self.progress(worker_id)) != last and not now.done:
                last = now
                yield now
            await asyncio.wait([draining], timeout=self._interval_s)
        draining.result()
        yield DrainProgress(worker_id, 0, 0, done=True)

    async def _drain(self, slot: Slot, mover: Mover) -> None:
        worker_id = slot.info.worker_id
        while slot.tickets:
            await asyncio.sleep(self._interval_s)
        if self.foreseen is not None and self._slots.get(worker_id) is slot:
            deadline_s = asyncio.get_running_loop().time() + self._drain_timeout_s
            await mover.run(self.foreseen, deadline_s, self._interval_s)
        await self._lives.take_out(worker_id)  # nothing happens if it died meanwhile

    def _take_out_lost(self, worker_id: str) -> asyncio.Future[None]:
        lives = self._lives
        if worker_id not in lives.lost and worker_id not in lives.returning and worker_id not in lives.gone:
            raise NotFound("no such worker", field="worker_id", value=worker_id)
        return asyncio.ensure_future(lives.take_out(worker_id))

    def _free_name(self) -> str:
        lives = self._lives
        taken = {*lives.up, *lives.lost, *lives.returning, *lives.adding}
        number = 0
        while NAME.format(number) in taken:
            number += 1
        return NAME.format(number)
