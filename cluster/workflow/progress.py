"""How far a run is: the state of every unit of its graph, moved by what ends.

Each change touches only the units that wait for what ended, so a run costs what its graph's edges number.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection
from typing import Literal

from laban.cluster.workflow.diagnostics import path_text
from laban.cluster.workflow.expressions import ExpressionProblem
from laban.cluster.workflow.graph import Gate, GateUse, Node, StepGraph
from laban.cluster.workflow.states import InstanceState, RunState, Tally

_OPEN = ("waiting", "ready", "running")

Outcome = Literal["there", "lost", "absent", "unneeded"]
"""How a unit ended: as it should; not, though it should have; not, since a branch was not taken or a loop had ended;
not, since nothing waits for it any more."""


class Progress:
    """States of instances, outcomes of all units, and what has been lost, of one run.

    `decide` says whether a gate's condition holds (and may raise ExpressionProblem), `count` counts a vote by its step.
    """

    def __init__(self, graph: StepGraph, decide: Callable[[Gate], bool], count: Callable[[str], Tally | None]) -> None:
        self.graph = graph
        self.state: RunState = "running"
        self.error = ""
        self.states: dict[str, InstanceState] = dict.fromkeys(graph.nodes, "waiting")
        self.reasons: dict[str, str] = {}
        self.given_up: list[str] = []  # skipped or cancelled, in order
        self.outcomes: dict[str, Outcome] = {}  # of every unit that has ended
        self.decisions: dict[str, bool] = {}  # of gates
        self.tallies: dict[str, Tally] = {}  # by unit
        self._decide_gate, self._count = decide, count
        self._votes = {vote.unit: vote for vote in graph.votes.values()}
        self._outputs = {output.unit: output for output in graph.outputs.values()}
        self._end_of = {gate: loop.unit for loop in graph.loops.values() for gate in loop.gates}
        self._held: dict[str, list[str]] = {}  # gate -> nodes and gates that it holds up
        gated: dict[str, Node | Gate] = {**graph.nodes, **graph.gates}
        for unit, each in gated.items():
            for use in each.gates:
                self._held.setdefault(use.gate, []).append(unit)
        self._ended: dict[str, Counter[Outcome]] = {}  # of what each unit waits for
        self._unended = {unit: len(gate.waits) for unit, gate in graph.gates.items()}
        self._ready: list[str] = []
        self._num_running: dict[str, int] = {}  # by step
        self._rank = {address: index for index, address in enumerate(graph.nodes)}
        self._num_open = len(graph.nodes)
        self._news: list[tuple[str, Outcome]] = []
        for address in graph.nodes:
            self._consider_node(address, address)
        for unit, output in self._outputs.items():
            if output.required == 0:
                self.outcomes[unit] = "there"
        for unit in graph.gates:
            self._consider_gate(unit)
        self._spread()

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

    def finish(self, address: str) -> None:
        """A running instance ended well."""
        self._end(address, "succeeded", "there")
        self._spread()

    def fail(self, address: str, message: str) -> None:
        """A running instance ended badly. With `on_error` other than `fail` it counts as there."""
        tolerated = self.graph.nodes[address].step.on_error != "fail"
        self._end(address, "failed", "there" if tolerated else "lost", message)
        self._spread()

    def stop(self, state: Literal["failed", "cancelled"], reason: str) -> None:
        """Ends the run; what is open is cancelled."""
        if self.state != "running":
            return  # one change may end a run twice: the first reason stands
        self.state = state
        if state == "failed":
            self.error = reason
        for address, current in self.states.items():
            if current in _OPEN:
                self._end(address, "cancelled", "unneeded", reason)
        self._news.clear()

    def _end(self, address: str, state: InstanceState, outcome: Outcome, reason: str = "") -> None:
        if self.states[address] == "running":
            self._num_running[self.graph.nodes[address].step.step] -= 1
        self.states[address] = state
        if state in ("skipped", "cancelled"):
            self.given_up.append(address)
        self._num_open -= 1
        if reason:
            self.reasons[address] = reason
        self._settle(address, outcome)

    def _settle(self, unit: str, outcome: Outcome) -> None:
        self.outcomes[unit] = outcome
        self._news.append((unit, outcome))

    def _spread(self) -> None:
        """Tells those who wait for what has ended, and theirs in turn."""
        while self._news and self.state == "running":
            unit, outcome = self._news.pop()
            for gate in self.graph.deciders.get(unit, ()):
                self._unended[gate] -= 1
                self._consider_gate(gate)
            for held in self._held.get(unit, ()):
                if held in self.graph.nodes:
                    self._consider_node(held, unit)
                else:
                    self._consider_gate(held)
            if outcome == "unneeded":
                continue
            consumers = self.graph.consumers.get(unit, ())
            if outcome == "lost" and not consumers:
                return self.stop("failed", self._why(unit))
            for consumer in consumers:
                self._ended.setdefault(consumer, Counter())[self._outcome_for(consumer, unit, outcome)] += 1
                if consumer in self._votes:
                    self._consider_vote(consumer)
                elif consumer in self._outputs:
                    self._consider_output(consumer, unit)
                else:
                    self._consider_node(consumer, unit)
        if self.state == "running" and self._num_open == 0 and all(unit in self.outcomes for unit in self._outputs):
            self.state = "succeeded"
        return None

    def _outcome_for(self, consumer: str, unit: str, outcome: Outcome) -> Outcome:
        """To whoever reads a loop's step that was not run in any round the loop's end brings nothing."""
        if outcome != "there" or unit not in self.graph.loops:
            return outcome
        node, output = self.graph.nodes.get(consumer), self._outputs.get(consumer)
        sources = (output.source,) if output is not None else () if node is None else node.sources
        read = [key for source in sources if unit in source.waits for key in source.keys]
        return "absent" if read and all(self.outcomes.get(key) == "absent" for key in read) else outcome

    def _why(self, unit: str) -> str:
        if unit in self._votes:
            step = self._votes[unit].step
            return f"the vote of '{step}' cannot be decided: no candidate, or fewer voters than its quorum"
        if unit in self.graph.loops:
            loop = self.graph.loops[unit]
            return f"the loop '{loop.name}' did not end within {len(loop.gates)} rounds"
        if self.states[unit] == "failed":
            return f"step '{unit}' failed: {self.reasons.get(unit, '')}"
        return self.reasons.get(unit, "")  # the one that began it

    def _shut(self, uses: Collection[GateUse]) -> str | None:
        """A gate that keeps something from ever running: it decided otherwise, or will not be asked."""
        for use in uses:
            if use.gate in self.outcomes and self.decisions.get(use.gate) is not use.holds:
                return use.gate
        return None

    def _consider_node(self, address: str, cause: str) -> None:
        """Start it, or give it up, if what has ended says so."""
        if self.states[address] != "waiting":
            return None
        node = self.graph.nodes[address]
        shut = self._shut(node.gates)
        if shut is not None:
            return self._end(address, "skipped", "absent", self._why_shut(shut))
        ended = self._ended.get(address, Counter())
        num_left = len(node.waits) - ended["absent"]
        if node.waits and num_left == 0:
            return self._end(address, "skipped", "absent", f"what it reads was not run: {self._shown(cause)}")
        required = min(node.required, num_left)
        if num_left - ended["lost"] < required:
            return self._end(address, "skipped", "lost", self._why(cause))
        if ended["there"] >= required and all(use.gate in self.decisions for use in node.gates):
            self.states[address] = "ready"
            self._ready.append(address)
            if node.cancels_rest:
                self._cancel_unneeded(node.waits)
        return None

    def _shown(self, unit: str) -> str:
        return f"the loop '{self.graph.loops[unit].name}'" if unit in self.graph.loops else unit

    def _why_shut(self, gate: str) -> str:
        if gate in self._end_of:
            absent = self.outcomes.get(self._end_of[gate]) == "absent"
            return "its loop was not run" if absent else "the loop had ended"
        return "its `when` does not hold" if gate in self.decisions else "the block around it was not run"

    def _consider_gate(self, unit: str) -> None:
        if unit in self.outcomes:
            return
        gate = self.graph.gates[unit]
        if self._shut(gate.gates) is not None:
            self._settle_gate(unit, None)
        elif self._unended[unit] == 0 and all(use.gate in self.decisions for use in gate.gates):
            try:
                self._settle_gate(unit, self._decide_gate(gate))
            except ExpressionProblem as problem:
                assert gate.condition is not None
                what = f"{path_text(gate.condition.loc)}: `{gate.condition.expression.text}`"
                self.stop("failed", f"{what} cannot be evaluated: {problem}")

    def _settle_gate(self, unit: str, holds: bool | None) -> None:
        """None: it will not be asked."""
        if holds is not None:
            self.decisions[unit] = holds
        end = self._end_of.get(unit)
        if end is not None and end not in self.outcomes:
            loop = self.graph.loops[end]
            if holds:
                self._settle(end, "there")
            elif unit == loop.gates[-1] and holds is not None:
                self._settle(end, "lost" if loop.fails else "there")
            elif unit == loop.gates[0] and holds is None:
                self._settle(end, "absent")
        # The latest news spread first: who reads a loop hears of its end when the rest of it is known to be skipped.
        self._settle(unit, "absent" if holds is None else "there")

    def _consider_output(self, unit: str, cause: str) -> None:
        if unit in self.outcomes:
            return
        output, ended = self._outputs[unit], self._ended[unit]
        num_left = len(output.waits) - ended["absent"]
        required = min(output.required, num_left)
        if num_left - ended["lost"] < required:
            self.stop("failed", self._why(cause))
        elif num_left == 0:
            self.outcomes[unit] = "absent"
        elif ended["there"] >= required:
            self.outcomes[unit] = "there"

    def _consider_vote(self, unit: str) -> None:
        vote = self._votes[unit]
        if unit in self.outcomes or self._ended[unit].total() < len(vote.waits):
            return None
        if all(self.outcomes[need] == "absent" for need in vote.waits):
            return self._settle(unit, "absent")
        tally = self._count(vote.step)
        if tally is not None:
            self.tallies[unit] = tally
        return self._settle(unit, "lost" if tally is None else "there")

    def _cancel_unneeded(self, units: tuple[str, ...]) -> None:
        """Skips those of `units` that nothing still waits for or looks at, and what only they waited for."""
        stack = list(units)
        while stack:
            unit = stack.pop()
            if unit in self.graph.loops or any(self._wants(reader) for reader in self.graph.readers[unit]):
                continue
            if unit in self._votes:
                if unit not in self.outcomes:
                    self.outcomes[unit] = "unneeded"
                    stack += self._votes[unit].waits
            elif self.states[unit] in _OPEN:
                self._end(unit, "skipped", "unneeded", "no longer needed")
                stack += self.graph.nodes[unit].waits

    def _wants(self, reader: str) -> bool:
        if reader in self.states:
            return self.states[reader] == "waiting"
        return reader not in self.outcomes
