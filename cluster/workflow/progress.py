"""How far a run is: the state of every unit of its graph, moved by what ends.

Each change touches only the units that wait for what ended, so a run costs what its graph's edges number.
"""

from __future__ import annotations

from typing import Literal

from laban.cluster.workflow.graph import StepGraph
from laban.cluster.workflow.states import InstanceState, RunState, Tally
from laban.cluster.workflow.votes import count

_OPEN = ("waiting", "ready", "running")


class Progress:
    """States of instances, tallies of votes, and what has been lost, of one run."""

    def __init__(self, graph: StepGraph) -> None:
        self.graph = graph
        self.state: RunState = "running"
        self.error = ""
        self.states: dict[str, InstanceState] = dict.fromkeys(graph.nodes, "waiting")
        self.reasons: dict[str, str] = {}
        self.texts: dict[str, str] = {}
        self.tallies: dict[str, Tally | None] = {}  # by unit; None: a vote that cannot be decided, or need not be
        self._votes = {vote.unit: vote for vote in graph.votes.values()}
        self._outputs = {output.unit: output for output in graph.outputs.values()}
        self._complete: set[str] = set()  # outputs
        self._there: dict[str, int] = {}  # unit -> how many of what it waits for are there
        self._lost: dict[str, int] = {}  # ... and will never be
        self._ready: list[str] = []
        self._num_running: dict[str, int] = {}  # by step
        self._rank = {address: index for index, address in enumerate(graph.nodes)}
        self._num_open = len(graph.nodes)
        for address, node in graph.nodes.items():
            if node.required == 0:
                self._make_ready(address)
        for output in graph.outputs.values():
            if output.required == 0:
                self._complete.add(output.unit)

    def take_ready(self) -> list[str]:
        """The instances that became ready, in order, now running; of a step no more than its `max_parallel`."""
        if self.state != "running":
            return []
        taken, held = [], []
        for address in sorted((a for a in self._ready if self.states[a] == "ready"), key=self._rank.__getitem__):
            step = self.graph.nodes[address].step
            if step.max_parallel is not None and self._num_running.get(step.step, 0) >= step.max_parallel:
                held.append(address)
                continue
            self._num_running[step.step] = self._num_running.get(step.step, 0) + 1
            self.states[address] = "running"
            taken.append(address)
        self._ready = held
        return taken

    def finish(self, address: str, text: str) -> None:
        """A running instance ended well."""
        self.texts[address] = text
        self._end(address, "succeeded")
        self._spread([(address, True)])

    def fail(self, address: str, message: str) -> None:
        """A running instance ended badly. With `on_error: skip` it counts as there, without a text."""
        self._end(address, "failed", message)
        on_error = self.graph.nodes[address].step.on_error
        if on_error == "message":
            self.texts[address] = message
        self._spread([(address, on_error != "fail")])

    def stop(self, state: Literal["failed", "cancelled"], reason: str) -> None:
        """Ends the run; what is open is cancelled."""
        self.state = state
        if state == "failed":
            self.error = reason
        for address, current in self.states.items():
            if current in _OPEN:
                self._end(address, "cancelled", reason)

    def _end(self, address: str, state: InstanceState, reason: str = "") -> None:
        if self.states[address] == "running":
            self._num_running[self.graph.nodes[address].step.step] -= 1
        self.states[address] = state
        self._num_open -= 1
        if reason:
            self.reasons[address] = reason

    def _spread(self, ended: list[tuple[str, bool]]) -> None:
        """Tells the consumers of each ended unit whether it is there or lost, and theirs in turn."""
        while ended and self.state == "running":
            unit, there = ended.pop()
            consumers = self.graph.consumers[unit]
            if not there and not consumers:
                return self.stop("failed", self._why(unit))
            tally = self._there if there else self._lost
            for consumer in consumers:
                tally[consumer] = tally.get(consumer, 0) + 1
                if consumer in self._votes:
                    ended += self._decide(consumer)
                elif consumer in self._outputs:
                    self._complete_or_fail(consumer, unit)
                elif self.states[consumer] == "waiting":
                    ended += self._start_or_skip(consumer, unit)
        if self.state == "running" and self._num_open == 0 and len(self._complete) == len(self._outputs):
            self.state = "succeeded"
        return None

    def _why(self, unit: str) -> str:
        if unit in self._votes:
            return f"the vote of '{self._votes[unit].step}' cannot be decided: too few voters or no candidate"
        word = "failed" if self.states[unit] == "failed" else "cannot run"
        return f"step '{unit}' {word}: {self.reasons.get(unit, '')}"

    def _make_ready(self, address: str) -> None:
        self.states[address] = "ready"
        self._ready.append(address)

    def _start_or_skip(self, address: str, cause: str) -> list[tuple[str, bool]]:
        node = self.graph.nodes[address]
        if self._there.get(address, 0) >= node.required:
            self._make_ready(address)
            if node.cancels_rest:
                self._cancel_unneeded(node.waits)
        elif len(node.waits) - self._lost.get(address, 0) < node.required:
            self._end(address, "skipped", self._why(cause))
            return [(address, False)]
        return []

    def _complete_or_fail(self, unit: str, cause: str) -> None:
        output = self._outputs[unit]
        if self._there.get(unit, 0) >= output.required:
            self._complete.add(unit)
        elif len(output.waits) - self._lost.get(unit, 0) < output.required:
            self.stop("failed", self._why(cause))

    def _decide(self, unit: str) -> list[tuple[str, bool]]:
        vote = self._votes[unit]
        if unit in self.tallies or self._there.get(unit, 0) + self._lost.get(unit, 0) < len(vote.waits):
            return []
        voters = sum(voter in self.texts for voter in vote.voters)
        standing = any(candidate in self.texts for candidate in vote.candidates)
        decided = voters >= vote.quorum and standing
        self.tallies[unit] = count(vote, self.texts) if decided else None
        return [(unit, decided)]

    def _cancel_unneeded(self, units: tuple[str, ...]) -> None:
        """Skips those of `units` that nothing still waits for, and what only they waited for."""
        stack = list(units)
        while stack:
            unit = stack.pop()
            if any(self._wants(consumer) for consumer in self.graph.consumers[unit]):
                continue
            if unit in self._votes:
                if unit not in self.tallies:
                    self.tallies[unit] = None
                    stack += self._votes[unit].waits
            elif self.states[unit] in _OPEN:
                self._end(unit, "skipped", "no longer needed")
                stack += self.graph.nodes[unit].waits

    def _wants(self, consumer: str) -> bool:
        if consumer in self._votes:
            return consumer not in self.tallies
        if consumer in self._outputs:
            return consumer not in self._complete
        return self.states[consumer] == "waiting"
