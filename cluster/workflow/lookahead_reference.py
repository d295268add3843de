"""The look-ahead by its definition, in plain Python: what the tests compare the compiled pass with.

Of each unit that has not ended, over all that may still happen (gates decide either way; nothing fails):

- run: the fewest steps until it is there. Of an instance: until it can run, 0 if it is ready or running.
- gone: the fewest steps until it is known that a branch not taken, or a loop's end, keeps it from running (absent).
- lost: the same of what should have been there: after a loop that fails, after a vote with too few voters.

Steps may take any number of ticks, each its own: then all three are in ticks, and `run` of an instance is the last
one that it takes: with one tick each, that in which it begins.

-1 has happened, INF cannot happen. Each is a time before which it cannot be, so nothing is expected too late. What a
unit waits for is taken to agree with the decisions that the unit cannot do without; else each wait is taken at its
soonest. That is exact, but where two waits hang on one gate and cannot both be at their soonest in one run: there it
may be too early. Nor does it foresee what a join cancels, which may end a loop's round sooner, how many instances
`max_parallel` holds back, or that the run fails meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from typing import Protocol

from laban.cluster.workflow.graph import Gate, GateUse, Node, StepGraph, VoteNode
from laban.cluster.workflow.lookahead_likelihoods import Likelihoods
from laban.cluster.workflow.progress import Outcome
from laban.cluster.workflow.states import InstanceState

INF = 1 << 30


class Moment(Protocol):
    """What is known of a run at one moment, as Progress says it. Outcomes are only ever added, in order."""

    @property
    def states(self) -> dict[str, InstanceState]: ...
    @property
    def outcomes(self) -> dict[str, Outcome]: ...
    @property
    def decisions(self) -> dict[str, bool]: ...


class Reference:
    """`run`, `gone` and `lost` of units in steps, and `likely`: how likely it is that they are there in the end.

    `without` are decisions that are taken not to come about: a unit is not gone by them. `ticks` are what instances
    take, 1 where it says nothing.
    """

    def __init__(
        self, graph: StepGraph, now: Moment, likelihoods: Likelihoods, ticks: Mapping[str, int] | None = None
    ) -> None:
        self._graph, self._now, self._likelihoods, self._ticks = graph, now, likelihoods, ticks or {}
        self._votes = {vote.unit: vote for vote in graph.votes.values()}
        self._rank = {unit: rank for rank, unit in enumerate(graph.order)}
        self.run, self.gone, self.lost = cache(self._run), cache(self._gone), cache(self._lost)
        self.likely, self.needs = cache(self._likely), cache(self._needs)
        for unit in graph.order:  # shallow recursion
            self.needs(unit), self.run(unit), self.gone(unit), self.lost(unit), self.likely(unit)

    def _run(self, unit: str) -> int:
        if unit in self._now.outcomes:
            return -1 if self._now.outcomes[unit] == "there" else INF
        if unit in self._graph.loops:
            loop = self._graph.loops[unit]
            holding = [gate for gate in loop.gates if self._may(gate, True)]
            last = [] if loop.fails else [loop.gates[-1]]
            return min((self.run(gate) for gate in (*holding, *last) if gate not in self._now.decisions), default=INF)
        if unit in self._votes:
            vote = self._votes[unit]
            voters = [self.run(voter) for voter in vote.voters if self._has_text(voter)]
            candidates = [self.run(candidate) for candidate in vote.candidates if self._has_text(candidate)]
            return max(self._all_ended(vote), _nth(voters, vote.quorum), _nth(candidates, 1))
        each = self._unit(unit)
        opened = max((self._decided(use) for use in each.gates), default=-1)
        if isinstance(each, Gate):
            return max(self._all_ended(each), opened)
        before = max(self._soonest(each), opened)
        return INF if before >= INF else min(INF - 1, before + self._ticks.get(unit, 1))

    def _soonest(self, node: Node) -> int:
        """Until enough of what it waits for is there. What is absent lowers what is enough, to one at the least."""
        left = [wait for wait in node.waits if self._now.outcomes.get(wait) != "absent"]
        if not left:
            return -1
        runs = [self._run_for(wait, node.address) for wait in left]
        resolved = [min(run, self._gone_for(wait, node.address)) for wait, run in zip(left, runs, strict=True)]
        return min(_nth(runs, min(node.required, len(left))), max(*resolved, min(runs)))

    def _gone(self, unit: str, without: frozenset[GateUse] = frozenset()) -> int:
        if unit in self._now.outcomes:
            return -1 if self._now.outcomes[unit] == "absent" else INF
        if unit in self._graph.loops:
            return self.gone(self._graph.loops[unit].gates[0], without)
        if unit in self._votes:
            return max(self.gone(wait, without) for wait in self._votes[unit].waits)
        each = self._unit(unit)
        against = [self._decided_against(use, without) for use in each.gates]
        if isinstance(each, Node) and each.waits:
            against.append(max(self._gone_to(each, wait, without) for wait in each.waits))
        return min(against, default=INF)

    def _gone_to(self, reader: Node, wait: str, without: frozenset[GateUse] = frozenset()) -> int:
        """A loop that has run is gone to whoever reads steps of it that were not run in any round."""
        read = keys_read_of(self._graph, reader, wait)
        unread = max((self.run(wait), *(self.gone(key, without) for key in read))) if read else INF
        return min(self.gone(wait, without), unread)

    def _lost(self, unit: str) -> int:
        if unit in self._now.outcomes:
            return -1 if self._now.outcomes[unit] in ("lost", "unneeded") else INF
        if unit in self._graph.loops:
            loop = self._graph.loops[unit]
            return self.run(loop.gates[-1]) if loop.fails else INF
        if unit in self._votes:
            vote = self._votes[unit]
            voters = _nth([self._missing(voter) for voter in vote.voters], len(vote.voters) - vote.quorum + 1)
            candidates = max(self._missing(candidate) for candidate in vote.candidates)
            one = min(min(self.run(wait), self.lost(wait)) for wait in vote.waits)
            over = max(min(self.run(wait), self._missing(wait)) for wait in vote.waits)
            return max(over, min(voters, candidates), one)
        each = self._unit(unit)
        if isinstance(each, Gate) or not each.waits:
            return INF
        missing = [min(self._gone_to(each, wait), self.lost(wait)) for wait in each.waits]
        return max(min(map(self.lost, each.waits)), _nth(missing, len(each.waits) - each.required + 1))

    def _likely(self, unit: str) -> float:
        """At most what is the least likely of the gates that lead to it, and one of what it waits for, allow."""
        if unit in self._now.outcomes:
            return float(self._now.outcomes[unit] == "there")
        if unit in self._graph.loops:
            return self.likely(self._graph.loops[unit].gates[0])
        if unit in self._votes:
            return max(map(self.likely, self._votes[unit].waits))
        each = self._unit(unit)
        chain = 1.0
        if each.gates:  # the innermost is asked only if those around it let it
            use = max(each.gates, key=lambda use: self._rank[use.gate])
            holds = self._holds(use.gate)
            chain = self.likely(use.gate) * (holds if use.holds else 1.0 - holds)
        return chain if isinstance(each, Gate) else min(chain, max(map(self.likely, each.waits), default=1.0))

    def _needs(self, unit: str) -> frozenset[GateUse]:
        """The decisions without which a unit cannot be there, or a gate be asked: by its gates, theirs in turn, and
        what all of its waits need, of which one at least must be there."""
        if unit in self._graph.loops:
            return self.needs(self._graph.loops[unit].gates[0])
        each = self._votes.get(unit) or self._unit(unit)
        needs: frozenset[GateUse] = frozenset()
        for use in () if isinstance(each, VoteNode) else each.gates:
            needs |= {use} | self.needs(use.gate)
        if isinstance(each, Gate) or not each.waits:
            return needs
        return needs | frozenset.intersection(*map(self.needs, each.waits))

    def _excluded(self, reader: str) -> frozenset[GateUse]:
        """Decisions that do not come about if the reader runs."""
        return frozenset(GateUse(use.gate, not use.holds) for use in self.needs(reader))

    def _run_for(self, wait: str, reader: str) -> int:
        """INF if one of the two needs a gate to hold and the other needs it not to."""
        clash = wait not in self._now.outcomes and self.needs(wait) & self._excluded(reader)
        return INF if clash else self.run(wait)

    def _gone_for(self, wait: str, reader: str) -> int:
        return self.gone(wait, self._excluded(reader))

    def _all_ended(self, each: Gate | VoteNode) -> int:
        return max((self._ended(wait, each.unit) for wait in each.waits), default=-1)

    def _ended(self, wait: str, reader: str) -> int:
        if wait in self._now.outcomes:
            return -1
        return min(self._run_for(wait, reader), self._gone_for(wait, reader), self.lost(wait))

    def _missing(self, unit: str) -> int:
        return min(self.gone(unit), self.lost(unit)) if self._has_text(unit) else -1

    def _has_text(self, unit: str) -> bool:
        return not (self._now.states.get(unit) == "failed" and self._graph.nodes[unit].step.on_error == "skip")

    def _decided(self, use: GateUse) -> int:
        if use.gate in self._now.outcomes:
            return -1 if self._now.decisions.get(use.gate) is use.holds else INF
        return self.run(use.gate) if self._may(use.gate, use.holds) else INF

    def _decided_against(self, use: GateUse, without: frozenset[GateUse]) -> int:
        if use.gate in self._now.outcomes:
            return INF if self._now.decisions.get(use.gate) is use.holds else -1
        against = GateUse(use.gate, not use.holds)
        may = self._may(use.gate, against.holds) and against not in without
        return min(self.run(use.gate) if may else INF, self.gone(use.gate, without))

    def _may(self, gate: str, holds: bool) -> bool:
        return not holds or self._graph.gates[gate].condition is not None

    def _holds(self, gate: str) -> float:
        if gate in self._now.outcomes:
            return float(self._now.decisions.get(gate, False))
        return self._likelihoods.probability(self._graph.workflow.name, gate) if self._may(gate, True) else 0.0

    def _unit(self, unit: str) -> Node | Gate:
        return self._graph.nodes[unit] if unit in self._graph.nodes else self._graph.gates[unit]


def keys_read_of(graph: StepGraph, reader: Node, wait: str) -> list[str]:
    """The messages of a loop's steps that a node reads after its end; nothing of any other that it waits for."""
    if wait not in graph.loops:
        return []
    return list(dict.fromkeys(key for source in reader.sources if wait in source.waits for key in source.keys))


def _nth(times: Iterable[int], nth: int) -> int:
    """The `nth` fewest, from 1; -1 for the 0th, INF if there are not so many."""
    if nth <= 0:
        return -1
    found = sorted(times)
    return found[nth - 1] if len(found) >= nth else INF
