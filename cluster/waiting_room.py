"""Holds workflows back, whole and before their first call, while memory for keys and values is short.

`admission` decides; this asks it again whenever something may have changed, in the event loop.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from laban.actors.lasting import going_on
from laban.cluster.admission import DEFAULT, Admission, AdmissionLimits, Demand
from laban.cluster.demand import RunDemand
from laban.cluster.sizes import shown_bytes

logger = logging.getLogger(__name__)

CAPACITY_S = 0.1  # how long what the workers have is taken to stay so
RETRY_S = 0.5
"""How often to ask while somebody waits: workers come, and who waits for tools counts for less after a while."""


@dataclass(slots=True)
class _Guest:
    estimate: RunDemand
    is_idle: Callable[[], bool]
    start: Callable[[], None]
    is_in: bool = False
    is_started: bool = False
    demand: Demand = field(default_factory=lambda: Demand(0))

    def needs(self, workflow_id: str) -> Demand:
        """By now; what it was taken to need before, where that cannot be told."""
        try:
            self.demand = self.estimate.now()
        except Exception:
            logger.exception("estimating what workflow %s needs failed", workflow_id)
        return self.demand


class WaitingRoom:
    """Lives in one event loop."""

    def __init__(
        self, capacity_bytes: Callable[[], int | Mapping[str, int]], limits: AdmissionLimits | None = None
    ) -> None:
        """`capacity_bytes` says how much memory for keys and values the workers that are up have, by model; a number is
        the default one's."""
        self._capacity_bytes = capacity_bytes
        self._admission = Admission(limits)
        self._guests: dict[str, _Guest] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._asked = False
        self._refining: asyncio.Future[None] | None = None
        self._capacity: Mapping[str, int] = {}
        self._capacity_until_s = 0.0

    @property
    def num_waiting(self) -> int:
        return self._admission.num_waiting

    def start(self) -> None:
        """Before the first workflow, when the workers are up."""
        self._capacity = self._there()

    def is_roomy(self, demand: Demand) -> bool:
        """Whether there is so much memory that more need not be known of a demand. In any thread."""
        parts = dict(demand.parts())
        return all(self._is_roomy(model, parts[model].num_bytes_alone) for model in demand.models)

    def _is_roomy(self, model: str, num_bytes: int) -> bool:
        there = self._capacity.get(model, 0)
        return self._admission.needed(model) + num_bytes <= there // 2 and num_bytes <= there // 16

    def _there(self) -> Mapping[str, int]:
        found = self._capacity_bytes()
        return {DEFAULT: found} if isinstance(found, int) else found

    def enter(
        self, workflow_id: str, estimate: RunDemand, is_idle: Callable[[], bool], start: Callable[[], None]
    ) -> bool:
        """Whether the workflow may start at once; if not, `start` is called once it may. In the order of their ranks.
        `is_idle` says whether it waits for nothing but tools."""
        self._refresh()  # those that run may need less by now, or more, than when somebody last waited
        guest = self._guests[workflow_id] = _Guest(estimate, is_idle, start)
        self._admission.add(workflow_id, guest.needs(workflow_id))
        self._ask()
        guest.is_started = guest.is_in
        return guest.is_in

    def moved(self, workflow_id: str) -> None:
        """Something of it ended or began."""
        guest = self._guests.get(workflow_id)
        if self.num_waiting and guest is not None and guest.is_started:
            self._update(workflow_id, guest)
            self._ask_soon()

    def leave(self, workflow_id: str) -> None:
        """It has ended, or does not want to run any more."""
        if self._guests.pop(workflow_id, None) is not None:
            self._admission.remove(workflow_id)
            self._ask_soon()

    def why(self, workflow_id: str) -> str:
        """For those who watch one that waits."""
        demand, capacity = self._guests[workflow_id].demand, self._capacity
        parts = dict(demand.parts())
        short = {m: self._admission.needed(m) + parts[m].num_bytes_alone - capacity.get(m, 0) for m in demand.models}
        model = max(short, key=lambda name: short[name])
        need, taken, there = parts[model].num_bytes_alone, self._admission.needed(model), capacity.get(model, 0)
        of_model = f" of model {model}" if model != DEFAULT else ""
        return (
            f"waits for KV memory{of_model}: it needs up to {shown_bytes(need)}, and those that run "
            f"{shown_bytes(taken)} of {shown_bytes(there)}"
        )

    def _refine_one(self) -> None:
        """Somebody waits: what was only bounded may need much less."""
        guest = next((guest for guest in self._guests.values() if guest.estimate.is_rough), None)
        if guest is not None and self._refining is None:
            self._refining = asyncio.get_running_loop().run_in_executor(None, guest.estimate.refine)
            self._refining.add_done_callback(self._refined)

    def _refined(self, refining: asyncio.Future[None]) -> None:
        self._refining = None
        if not refining.cancelled() and refining.exception() is not None:
            logger.error("estimating what a workflow needs failed", exc_info=refining.exception())
        self._refresh()
        self._ask()

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _refresh(self) -> None:
        for workflow_id, guest in self._guests.items():
            if guest.is_started:
                self._update(workflow_id, guest)

    def _update(self, workflow_id: str, guest: _Guest) -> None:
        self._admission.update(workflow_id, guest.needs(workflow_id))
        with going_on(f"looking whether workflow {workflow_id} waits for tools"):
            self._admission.set_idle(workflow_id, guest.is_idle(), asyncio.get_running_loop().time())

    def _ask_soon(self) -> None:
        if self.num_waiting and not self._asked:
            self._asked = True
            asyncio.get_running_loop().call_soon(self._ask_now)

    def _ask_now(self) -> None:
        self._asked = False
        self._ask()

    def _ask(self) -> None:
        """Those let in start in a turn of their own: what asks may be in the middle of another workflow."""
        loop = asyncio.get_running_loop()
        if loop.time() >= self._capacity_until_s:
            self._capacity_until_s = loop.time() + CAPACITY_S
            with going_on("looking what memory the workers have"):  # what they had before holds
                self._capacity = self._there()
        for workflow_id in self._admission.admit(self._capacity, loop.time()):
            self._guests[workflow_id].is_in = True
            loop.call_soon(self._start, workflow_id)
        if self.num_waiting:
            self._timer = self._timer or loop.call_later(RETRY_S, self._retry)
            self._refine_one()

    def _retry(self) -> None:
        self._timer = None
        self._refresh()
        self._ask()

    def _start(self, workflow_id: str) -> None:
        guest = self._guests.get(workflow_id)
        if guest is not None and not guest.is_started:  # it may have ended meanwhile
            guest.is_started = True
            guest.start()
