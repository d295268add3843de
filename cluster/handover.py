"""A process ends, and others go on with its workflows: what runs may end, nothing more begins."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Iterable

from laban.cluster.course import Calls
from laban.cluster.execution import Execution
from laban.cluster.slots import Order

logger = logging.getLogger(__name__)

LOOK_EVERY_S = 0.05


class Valve:
    """Implements Calls over others, until it is closed: what is ordered then is left to whoever goes on."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self.is_closed = False

    @property
    def max_attempts(self) -> int:
        return self._calls.max_attempts

    def submit(self, orders: Iterable[Order]) -> None:
        if not self.is_closed:
            self._calls.submit(orders)

    def abort(self, keys: Iterable[str]) -> None:
        self._calls.abort(keys)


async def run_out(valve: Valve, active: Callable[[], Collection[Execution]], timeout_s: float) -> None:
    """Begin no call any more, and wait for those that workers have begun; no longer than that."""
    valve.is_closed = True
    for execution in active():
        execution.recall_waiting()
    loop = asyncio.get_running_loop()
    deadline_s = loop.time() + timeout_s
    while left := sum(state == "running" for each in active() for state in each.progress.states()):
        if loop.time() >= deadline_s:
            logger.warning("%d calls are cut off; whoever goes on with their workflows runs them again", left)
            return
        await asyncio.sleep(LOOK_EVERY_S)
