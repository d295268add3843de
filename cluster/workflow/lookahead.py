"""Look-ahead: how soon each instance of a run can run, and who may read each message next.

`LookAhead` is pure and answers for the moment of its last update. lookahead_reference.py defines what it computes,
lookahead_flat.py lays the graph out, lookahead_pass.py goes over it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from laban.cluster.workflow.graph import StepGraph
from laban.cluster.workflow.lookahead_likelihoods import Likelihoods
from laban.cluster.workflow.lookahead_reference import INF as NEVER
from laban.cluster.workflow.lookahead_reference import Moment
from laban.cluster.workflow.progress import Outcome
from laban.cluster.workflow.states import InstanceState

__all__ = ["NEVER", "Likelihoods", "LookAhead", "Moment", "NextUse"]


@dataclass(frozen=True, slots=True)
class NextUse:
    """A read to come: the fewest steps until it, by which instance, and how likely that one runs at all."""

    steps: int
    address: str
    likelihood: float


class LookAhead:
    """Of one run. Steps count those that must run before: 0 for an instance that is ready or running.

    Over all that may still happen, never too late; lookahead_reference.py says when it may be too early, and what it
    does not foresee. How likely the gates hold is taken from `likelihoods` once. Messages have the keys of ReadRef.
    Making one imports numba.
    """

    def __init__(self, graph: StepGraph, likelihoods: Likelihoods | None = None) -> None:
        from laban.cluster.workflow import lookahead_flat, lookahead_pass  # not before someone looks ahead

        self._graph, self._pass = graph, lookahead_pass
        learned = likelihoods or Likelihoods()
        holds = [
            0.0 if gate.condition is None else learned.probability(graph.workflow.name, unit)
            for unit, gate in graph.gates.items()
        ]
        self._addresses = tuple(graph.nodes)
        self._keys = (*_fixed_keys(graph), *self._addresses)
        self._flat, self._row_of = lookahead_flat.flatten(graph, self._keys, holds)
        num_rows, num_joins = len(self._flat.kinds), len(self._flat.required)
        longest = int(np.diff(self._flat.join_at).max()) if num_joins else 0
        self._codes = np.zeros(num_rows, np.int8)
        self._run, self._gone, self._lost = (np.zeros(num_rows, np.int32) for _ in range(3))
        self._likely = np.zeros(num_rows)
        self._scratch = np.zeros(4 + 2 * longest, np.int32)
        self._takes = np.ones(num_rows, np.int32)
        self._ticks = np.ones(num_rows, np.int32)
        self._run_at, self._gone_at, self._lost_at = (np.zeros(num_rows, np.int32) for _ in range(3))
        self._readers = np.zeros(len(self._flat.select_at) - 1, np.int32)
        self._message_readers = np.zeros(len(self._keys), np.int32)
        self._outcomes: dict[str, Outcome] | None = None
        self._num_seen = 0
        self._running = np.zeros(len(self._addresses), np.int8)
        self._compute({})

    def update(self, now: Moment) -> None:
        """Look ahead from here: `now` is the run's Progress. One that goes on is told apart by its outcomes."""
        if now.outcomes is not self._outcomes:
            self._codes[:] = self._pass.OPEN
            self._running[:] = 0
            self._outcomes, self._num_seen = now.outcomes, 0
        for unit in islice(reversed(now.outcomes), len(now.outcomes) - self._num_seen):
            row = self._row_of.get(unit)
            if row is not None:  # not an output
                self._codes[row] = self._code(unit, now)
        self._num_seen = len(now.outcomes)
        self._compute(now.states)

    def steps_to_execution(self) -> dict[str, int]:
        """Of each instance that may still run, or is running, in the graph's order."""
        rows = self._flat.nodes
        steps = np.where(self._codes[rows] == self._pass.OPEN, self._run[rows], self._pass.INF)
        return {self._addresses[node]: int(steps[node]) for node in np.flatnonzero(steps < self._pass.INF)}

    @property
    def addresses(self) -> tuple[str, ...]:
        """Of every instance. The arrays below have an element for each, in this order."""
        return self._addresses

    @property
    def running(self) -> NDArray[np.bool_]:
        found: NDArray[np.bool_] = (self._running != 0) & (self._codes[self._flat.nodes] == self._pass.OPEN)
        return found

    def steps(self) -> NDArray[np.int32]:
        """Steps to execution; NEVER for what will not run any more."""
        rows = self._flat.nodes
        return np.where(self._codes[rows] == self._pass.OPEN, self._run[rows], np.int32(self._pass.INF))

    def likely(self) -> NDArray[np.float64]:
        """How likely it is that they are there in the end."""
        return self._likely[self._flat.nodes]

    def begins(self, ticks: NDArray[np.int32]) -> NDArray[np.int32]:
        """The tick in which each can begin if each takes so many `ticks`, one at the least; of one that is running,
        from now on. NEVER for what will not run any more."""
        rows = self._flat.nodes
        self._ticks[rows] = ticks
        self._pass.look(
            self._flat,
            self._codes,
            self._ticks,
            self._run_at,
            self._gone_at,
            self._lost_at,
            self._likely,
            self._scratch,
        )
        found = np.where(self._run_at[rows] < self._pass.INF, self._run_at[rows] - ticks + 1, np.int32(self._pass.INF))
        return np.where(self._codes[rows] == self._pass.OPEN, found, np.int32(self._pass.INF))

    def ends(self) -> int:
        """The tick before which, by the last `begins`, those outputs cannot be there that can be there at all."""
        latest = 0
        for output in self._graph.outputs.values():
            times = sorted(int(self._run_at[self._row_of[unit]]) + 1 for unit in output.waits)
            there = [time for time in times if time < self._pass.INF]
            if there:
                latest = max(latest, there[min(output.required, len(there)) - 1])
        return latest

    def next_use(self, key: str) -> NextUse | None:
        """Of a message that may be read again, by whom it may be soonest: the likelier, then the earlier of equals."""
        number = self._numbers.get(key)
        if number is None or self._message_readers[number] < 0:
            return None
        return self._use(int(self._message_readers[number]))

    def next_uses(self) -> dict[str, NextUse]:
        """`next_use` of every message that has one."""
        found = self._message_readers.tolist()
        uses = {node: self._use(node) for node in set(found) if node >= 0}
        return {key: uses[node] for key, node in zip(self._keys, found, strict=True) if node >= 0}

    def read_keys(self) -> set[str]:
        """Of the messages that have a `next_use`."""
        return {self._keys[number] for number in np.flatnonzero(self._message_readers >= 0)}

    def readers(self, key: str) -> tuple[NextUse, ...]:
        """Every instance, waiting or ready, that may still read a message: in the order of `next_use`."""
        if self.next_use(key) is None:
            return ()
        nodes = filter(self._may_read, self._nodes_of[key])
        return tuple(sorted(map(self._use, nodes), key=lambda use: (use.steps, -use.likelihood)))

    def _may_read(self, node: int) -> bool:
        row = self._flat.nodes[node]
        open_ = self._codes[row] == self._pass.OPEN and self._run[row] < self._pass.INF
        return bool(open_ and not self._running[node])

    def _compute(self, states: Mapping[str, InstanceState]) -> None:
        self._pass.look(
            self._flat, self._codes, self._takes, self._run, self._gone, self._lost, self._likely, self._scratch
        )
        can_begin = np.flatnonzero((self._run[self._flat.nodes] == 0) & (self._running == 0)).tolist()
        self._running[[node for node in can_begin if states.get(self._addresses[node]) == "running"]] = 1
        self._pass.find_uses(
            self._flat, self._codes, self._running, self._run, self._likely, self._readers, self._message_readers
        )

    def _code(self, unit: str, now: Moment) -> int:
        outcome = now.outcomes[unit]
        if outcome != "there":
            return self._pass.ABSENT if outcome == "absent" else self._pass.LOST
        if unit in self._graph.gates:
            return self._pass.THERE if now.decisions[unit] else self._pass.AGAINST
        node = self._graph.nodes.get(unit)
        silent = node is not None and now.states[unit] == "failed" and node.step.on_error == "skip"
        return self._pass.SILENT if silent else self._pass.THERE

    def _use(self, node: int) -> NextUse:
        row = self._flat.nodes[node]
        return NextUse(int(self._run[row]), self._addresses[node], float(self._likely[row]))

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {key: number for number, key in enumerate(self._keys)}

    @cached_property
    def _nodes_of(self) -> dict[str, list[int]]:
        """The instances that read each message, in the graph's order."""
        found: dict[str, dict[int, None]] = {}
        for number, node in enumerate(self._graph.nodes.values()):
            for source in node.sources:
                for key in source.keys:
                    found.setdefault(key, {})[number] = None
        return {key: list(nodes) for key, nodes in found.items()}


def _fixed_keys(graph: StepGraph) -> Iterator[str]:
    """Of fixed messages and prompts that something reads, each once."""
    seen: set[str] = set()
    for node in graph.nodes.values():
        for source in node.sources:
            if source.fixed:
                for key in source.keys:
                    if key not in seen:
                        seen.add(key)
                        yield key
