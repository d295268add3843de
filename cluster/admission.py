"""Which workflows run while memory for keys and values is short, and which wait whole. Pure; times are arguments.

A workflow needs so many bytes at once, some of them shared with others (fixed messages that are the same). Workflows
are let in by rank, which is their order of submission, as long as all that run fit together. One that does not fit may
be overtaken by a few that came later and do, and then by none: so each has its turn. At least one always runs, however
much it needs. Who waits for nothing but tools for a while holds nobody up: what it read can leave memory meanwhile.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field

from laban.kvstore.encodings import EncodingId


@dataclass(frozen=True, slots=True)
class Demand:
    """What one workflow needs at once: bytes of its own, and encodings that it may have in common with others."""

    own_bytes: int
    shared: Mapping[EncodingId, int] = field(default_factory=dict)  # and their bytes

    @property
    def num_bytes(self) -> int:
        return self.own_bytes + sum(self.shared.values())


@dataclass(frozen=True, slots=True)
class AdmissionLimits:
    max_overtaken: int = 8  # times that later ones pass one that waits
    idle_s: float = 10.0  # of waiting for tools alone until a workflow counts for nothing


@dataclass(slots=True)
class _Workflow:
    demand: Demand
    idle_since_s: float | None = None
    is_counted: bool = False
    num_overtaken: int = 0


class Admission:
    """Workflows are named by their ids and come in the order of their ranks."""

    def __init__(self, limits: AdmissionLimits | None = None) -> None:
        self._limits = limits or AdmissionLimits()
        self._running: dict[str, _Workflow] = {}
        self._waiting: OrderedDict[str, _Workflow] = OrderedDict()
        self._own_bytes = 0  # of those that are counted
        self._shared: Counter[EncodingId] = Counter()  # how many of them share each
        self._shared_bytes = 0

    @property
    def needed_bytes(self) -> int:
        """By all that run, but for those that wait for tools."""
        return self._own_bytes + self._shared_bytes

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    def add(self, workflow_id: str, demand: Demand) -> None:
        """It waits until `admit` says otherwise."""
        self._waiting[workflow_id] = _Workflow(demand)

    def remove(self, workflow_id: str) -> None:
        """It has ended, or nobody wants it any more. Unknown ones are ignored."""
        self._waiting.pop(workflow_id, None)
        workflow = self._running.pop(workflow_id, None)
        if workflow is not None:
            self._count(workflow, False)

    def update(self, workflow_id: str, demand: Demand) -> None:
        """It needs as much from now on."""
        workflow = self._running.get(workflow_id) or self._waiting.get(workflow_id)
        if workflow is not None:
            was_counted = workflow.is_counted
            self._count(workflow, False)
            workflow.demand = demand
            self._count(workflow, was_counted)

    def set_idle(self, workflow_id: str, idle: bool, now_s: float) -> None:
        """Whether it waits for nothing but tools."""
        workflow = self._running.get(workflow_id)
        if workflow is None:
            return
        if not idle:
            workflow.idle_since_s = None
            self._count(workflow, True)  # at once, though it may not fit: it runs
        elif workflow.idle_since_s is None:
            workflow.idle_since_s = now_s

    def admit(self, capacity_bytes: int, now_s: float) -> list[str]:
        """Those that may run from now on."""
        for workflow in self._running.values():
            if workflow.idle_since_s is not None and workflow.idle_since_s + self._limits.idle_s <= now_s:
                self._count(workflow, False)
        admitted: list[str] = []
        passed: list[_Workflow] = []
        for workflow_id, workflow in list(self._waiting.items()):
            if self._fits(workflow.demand, capacity_bytes):
                for other in passed:
                    other.num_overtaken += 1
                del self._waiting[workflow_id]
                self._running[workflow_id] = workflow
                self._count(workflow, True)
                admitted.append(workflow_id)
            else:
                passed.append(workflow)
            if any(other.num_overtaken >= self._limits.max_overtaken for other in passed):
                break
        return admitted

    def next_s(self) -> float | None:
        """When `admit` may find room though nothing has happened; None: never."""
        if not self._waiting:
            return None
        since_s = [each.idle_since_s for each in self._running.values() if each.is_counted]
        return min((each + self._limits.idle_s for each in since_s if each is not None), default=None)

    def _fits(self, demand: Demand, capacity_bytes: int) -> bool:
        if not any(workflow.is_counted for workflow in self._running.values()):
            return True
        new = sum(size for encoding_id, size in demand.shared.items() if encoding_id not in self._shared)
        return self.needed_bytes + demand.own_bytes + new <= capacity_bytes

    def _count(self, workflow: _Workflow, counted: bool) -> None:
        if workflow.is_counted == counted:
            return
        workflow.is_counted = counted
        sign = 1 if counted else -1
        self._own_bytes += sign * workflow.demand.own_bytes
        for encoding_id, size in workflow.demand.shared.items():
            if self._shared[encoding_id] == (0 if counted else 1):  # the first one, or the last
                self._shared_bytes += sign * size
            self._shared[encoding_id] += sign
            if not self._shared[encoding_id]:
                del self._shared[encoding_id]

    def check_integrity(self) -> None:
        """Raises AssertionError if the sums are not those of the workflows that are counted."""
        counted = [workflow for workflow in self._running.values() if workflow.is_counted]
        assert self._own_bytes == sum(workflow.demand.own_bytes for workflow in counted)
        assert self._shared == Counter(key for workflow in counted for key in workflow.demand.shared)
        sizes = {key: size for workflow in counted for key, size in workflow.demand.shared.items()}
        assert self._shared_bytes == sum(sizes.values())
        assert not any(workflow.is_counted for workflow in self._waiting.values())
        assert not self._running.keys() & self._waiting.keys()
