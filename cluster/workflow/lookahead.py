"""Steps-to-execution: how soon each instance can run, and each message be read next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from laban.cluster.workflow.graph import StepGraph
from laban.cluster.workflow.states import InstanceState

_THERE = -1  # a message that is there: a reader of nothing else can run now, in 0 steps


def steps_to_execution(graph: StepGraph, states: Mapping[str, InstanceState]) -> dict[str, int]:
    """The fewest steps before each instance that may still run can: 0 if it runs or is ready.

    A join on all is the most of what it waits for plus 1, on any the fewest plus 1, on at least n the
    n-th fewest plus 1. A vote takes no step of its own. What can never run is left out.
    """
    known: dict[str, int] = {}  # units that are there, or can be
    for unit in graph.order:
        node = graph.nodes.get(unit)
        if node is None:
            vote = graph.votes[unit.removeprefix("winner(").removesuffix(")")]
            soonest = _nth(vote.voters, vote.quorum, known)
            candidate = _nth(tuple(vote.candidates), 1, known)
            if soonest is not None and candidate is not None:
                known[unit] = max(known[need] for need in vote.waits if need in known)
            continue
        state = states[unit]
        if state == "succeeded" or (state == "failed" and node.step.on_error == "skip"):
            known[unit] = _THERE
        elif state in ("ready", "running"):
            known[unit] = 0
        elif state == "waiting":
            soonest = _nth(node.waits, node.required, known)
            if soonest is not None:
                known[unit] = soonest + 1
    return {unit: steps for unit, steps in known.items() if unit in graph.nodes and steps >= 0}


def _nth(waits: Sequence[str], required: int, known: Mapping[str, int]) -> int | None:
    """The `required`-th fewest steps among `waits`; None if too few can ever be there."""
    if required == 0:
        return _THERE
    found = sorted(known[unit] for unit in waits if unit in known)
    return found[required - 1] if len(found) >= required else None


def next_uses(graph: StepGraph, states: Mapping[str, InstanceState]) -> dict[str, tuple[int, str]]:
    """For each message that a waiting or ready instance may read: in how many steps at the soonest, and by which.

    Keys as in ReadRef. For a vote's winner every candidate counts.
    """
    uses: dict[str, tuple[int, str]] = {}
    for address, steps in steps_to_execution(graph, states).items():
        if states[address] not in ("waiting", "ready"):
            continue
        for source in graph.nodes[address].sources:
            for key in source.keys:
                if key not in uses or steps < uses[key][0]:
                    uses[key] = (steps, address)
    return uses
