"""Which workflows run while memory for keys and values is short, and which wait whole. Pure; times are arguments.

A workflow needs so many bytes at once, some of them shared with others (fixed messages that are the same). Workflows
are let in by rank, which is their order of submission, as long as all that run fit together. One that does not fit may
be overtaken by a few that came later and do, and then by none: so each has its turn. At least one always runs, however
much it needs. Who waits for nothing but tools for a while holds nobody up: what it read can leave memory meanwhile.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

from laban.kvstore.encodings import EncodingId

DEFAULT = ""
"""The default model: its workers' memory is what a Demand speaks of itself."""


@dataclass(frozen=True, slots=True)
class Demand:
    """What one workflow needs at once: bytes of its own, and encodings that it may have in common with others. All of
    the default model; `others` are what it needs of other models', each in the memory of that one's workers."""

    own_bytes: int
    shared: Mapping[EncodingId, int] = field(default_factory=dict)  # and their bytes
    others: Mapping[str, Demand] = field(default_factory=dict)

    @property
    def num_bytes(self) -> int:
        """Of all models."""
        return sum(part.num_bytes_alone for _, part in self.parts())

    @property
    def num_bytes_alone(self) -> int:
        """Of this part, without `others`."""
        return self.own_bytes + sum(self.shared.values())

    def parts(self) -> list[tuple[str, Demand]]:
        """By model."""
        return [(DEFAULT, self), *self.others.items()]

    @property
    def models(self) -> frozenset[str]:
        """Those of whose memory it needs anything."""
        found = frozenset(model for model, part in self.parts() if part.own_bytes or part.shared)
        return found or frozenset((DEFAULT,))


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


@dataclass(slots=True)
class _Sum:
    """What all workflows need of one model's memory that are counted."""

    own_bytes: int = 0
    shared: Counter[EncodingId] = field(default_factory=Counter)  # how many of them share each
    shared_bytes: int = 0

    @property
    def num_bytes(self) -> int:
        return self.own_bytes + self.shared_bytes

    def more(self, demand: Demand) -> int:
        """What it would be more by."""
        new = sum(size for encoding_id, size in demand.shared.items() if encoding_id not in self.shared)
        return demand.own_bytes + new

    def count(self, demand: Demand, sign: int) -> None:
        self.own_bytes += sign * demand.own_bytes
        for encoding_id, size in demand.shared.items():
            if self.shared[encoding_id] == (0 if sign > 0 else 1):  # the first one, or the last
                self.shared_bytes += sign * size
            self.shared[encoding_id] += sign
            if not self.shared[encoding_id]:
                del self.shared[encoding_id]


class Admission:
    """Workflows are named by their ids and come in the order of their ranks."""

    def __init__(self, limits: AdmissionLimits | None = None) -> None:
        self._limits = limits or AdmissionLimits()
        self._running: dict[str, _Workflow] = {}
        self._waiting: OrderedDict[str, _Workflow] = OrderedDict()
        self._sums: defaultdict[str, _Sum] = defaultdict(_Sum)  # of those that are counted, by model

    @property
    def needed_bytes(self) -> int:
        """By all that run, but for those that wait for tools, of all models."""
        return sum(each.num_bytes for each in self._sums.values())

    def needed(self, model: str) -> int:
        """Of that one."""
        return self._sums[model].num_bytes if model in self._sums else 0

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

    def admit(self, capacity: int | Mapping[str, int], now_s: float) -> list[str]:
        """Those that may run from now on. `capacity` is in bytes, by model; a number is the default one's.

        Who waits for a model's memory holds up those after it that need that, too, and nobody else.
        """
        there = {DEFAULT: capacity} if isinstance(capacity, int) else capacity
        for workflow in self._running.values():
            if workflow.idle_since_s is not None and workflow.idle_since_s + self._limits.idle_s <= now_s:
                self._count(workflow, False)
        admitted: list[str] = []
        passed: list[_Workflow] = []
        closed: set[str] = set()  # models whose waiting have been overtaken often enough
        for workflow_id, workflow in list(self._waiting.items()):
            models = workflow.demand.models
            if not closed.isdisjoint(models):
                continue
            if self._fits(workflow.demand, there):
                for other in passed:
                    if not other.demand.models.isdisjoint(models):
                        other.num_overtaken += 1
                del self._waiting[workflow_id]
                self._running[workflow_id] = workflow
                self._count(workflow, True)
                admitted.append(workflow_id)
            else:
                passed.append(workflow)
            for other in passed:
                if other.num_overtaken >= self._limits.max_overtaken:
                    closed |= other.demand.models
        return admitted

    def next_s(self) -> float | None:
        """When `admit` may find room though nothing has happened; None: never."""
        if not self._waiting:
            return None
        since_s = [each.idle_since_s for each in self._running.values() if each.is_counted]
        return min((each + self._limits.idle_s for each in since_s if each is not None), default=None)

    def _fits(self, demand: Demand, capacity: Mapping[str, int]) -> bool:
        models, parts = demand.models, dict(demand.parts())
        if not any(each.is_counted and not each.demand.models.isdisjoint(models) for each in self._running.values()):
            return True
        return all(
            self.needed(model) + self._sums[model].more(parts[model]) <= capacity.get(model, 0) for model in models
        )

    def _count(self, workflow: _Workflow, counted: bool) -> None:
        if workflow.is_counted == counted:
            return
        workflow.is_counted = counted
        for model, part in workflow.demand.parts():
            self._sums[model].count(part, 1 if counted else -1)

    def check_integrity(self) -> None:
        """Raises AssertionError if the sums are not those of the workflows that are counted."""
        counted = [workflow for workflow in self._running.values() if workflow.is_counted]
        for model, found in self._sums.items():
            parts = [part for workflow in counted for of, part in workflow.demand.parts() if of == model]
            assert found.own_bytes == sum(part.own_bytes for part in parts)
            assert found.shared == Counter(key for part in parts for key in part.shared)
            sizes = {key: size for part in parts for key, size in part.shared.items()}
            assert found.shared_bytes == sum(sizes.values())
        assert not any(workflow.is_counted for workflow in self._waiting.values())
        assert not self._running.keys() & self._waiting.keys()
