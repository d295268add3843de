"""Calls that a worker does while nothing else is to be done: given up as soon as it is sent anything.

They are none of the dispatcher's calls: nothing is expected of them, nobody is charged for them, and no estimate of
where a call should go knows of them.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from laban.actors.calls import Call, CallEvent, CallFailed, CallFinished
from laban.actors.errors import Unavailable, of_status
from laban.actors.ports import WorkerPort

if TYPE_CHECKING:
    from laban.cluster.slots import Slot

RANK = 1 << 62
"""Behind every workflow's."""


class GaveWay(Unavailable):
    """The worker has something else to do, or is gone."""


class Idlers(Protocol):
    """`cluster.dispatch.Dispatcher`."""

    def idle(self, worker_id: str) -> Slot | None: ...


@dataclass(slots=True)
class SpareCall:
    """One that is at a worker."""

    call: Call
    port: WorkerPort
    ended: asyncio.Future[CallFinished] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    def give_way(self) -> None:
        if not self.ended.done():
            self.port.abort([self.call.call_id])
            self.ended.set_exception(GaveWay("the worker has something else to do"))

    def take(self, event: CallEvent) -> None:
        """What the worker reports of a call that is nobody's."""
        if event.call_id != self.call.call_id or self.ended.done():
            return
        if isinstance(event, CallFinished):
            self.ended.set_result(event)
        elif isinstance(event, CallFailed):
            self.ended.set_exception(of_status(event.status)(event.message))


async def run_spare(idlers: Idlers, worker_id: str, call: Call, timeout_s: float) -> CallFinished:
    """Run a call, with `spare` and RANK, at an idle worker. Raises GaveWay if it is not idle, or not any more, or the
    call takes longer; else the LabanError that it failed with."""
    slot = idlers.idle(worker_id)
    if slot is None:
        raise GaveWay("the worker has something else to do")
    spare = slot.spare = SpareCall(call, slot.port)
    try:
        slot.port.submit([call])
        async with asyncio.timeout(timeout_s):
            return await spare.ended
    except TimeoutError:
        raise GaveWay(f"it took longer than {timeout_s:g} s") from None
    finally:
        if not spare.ended.done() or spare.ended.cancelled():
            slot.port.abort([call.call_id])
        slot.spare = None
