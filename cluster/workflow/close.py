"""Closes a step graph: who waits for whom, in what order, and that nothing waits for itself."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from laban.cluster.workflow.diagnostics import Loc, Problem
from laban.cluster.workflow.graph import Gate, LoopNode, Node, OutputNode, StepGraph, VoteNode, vote_unit
from laban.cluster.workflow.order import find_cycle, topological
from laban.cluster.workflow.schema import Workflow


def close_graph(
    workflow: Workflow,
    fixed: Mapping[str, tuple[str, ...]],
    nodes: Mapping[str, Node],
    votes: Mapping[str, VoteNode],
    outputs: Mapping[str, OutputNode],
    gates: Mapping[str, Gate],
    loops: Mapping[str, LoopNode],
) -> tuple[StepGraph | None, list[Problem]]:
    """The graph, or None and the cycle that keeps it from being one."""
    waits = {address: node.waits for address, node in nodes.items()}
    waits |= {vote.unit: vote.waits for vote in votes.values()}
    before = {**waits, **{unit: gate.waits for unit, gate in gates.items()}}
    gated: dict[str, Node | Gate] = {**nodes, **gates}
    for unit, each in gated.items():
        before[unit] = (*before[unit], *(use.gate for use in each.gates))
    before |= {unit: loop.gates for unit, loop in loops.items()}
    order = topological(before)
    if len(order) < len(before):
        return None, [_cycle(find_cycle(before, order), nodes, gates)]
    ends = {output.unit: output.waits for output in outputs.values()}
    needed = {unit: gate.needed for unit, gate in gates.items()}
    read = {address: _keys_read(node) for address, node in nodes.items()}
    read |= {output.unit: output.source.keys for output in outputs.values()}
    graph = StepGraph(
        workflow, fixed, nodes, votes, outputs, gates, loops,
        consumers=_inverse({**waits, **ends}, before),
        deciders=_inverse({unit: gate.waits for unit, gate in gates.items()}, before),
        readers=_inverse(_joined(waits, ends, needed, read), before),
        order=tuple(order),
    )  # fmt: skip
    return graph, []


def _keys_read(node: Node) -> tuple[str, ...]:
    return tuple(key for source in node.sources for key in source.keys if not source.fixed)


def _joined(*parts: Mapping[str, Iterable[str]]) -> dict[str, dict[str, None]]:
    """Each unit's needs of all parts, each once."""
    joined: dict[str, dict[str, None]] = {}
    for part in parts:
        for unit, needs in part.items():
            joined.setdefault(unit, {}).update(dict.fromkeys(needs))
    return joined


def _inverse(needs: Mapping[str, Iterable[str]], units: Iterable[str]) -> dict[str, tuple[str, ...]]:
    users: dict[str, list[str]] = {unit: [] for unit in units}
    for unit, needed in needs.items():
        for need in needed:
            if need in users:
                users[need].append(unit)
    return {unit: tuple(found) for unit, found in users.items()}


def _cycle(cycle: list[str], nodes: Mapping[str, Node], gates: Mapping[str, Gate]) -> Problem:
    reader = next((unit for unit in cycle if unit in nodes), None)
    if reader is None:  # conditions that wait for each other's loops
        condition = next(gate.condition for gate in map(gates.get, cycle) if gate is not None and gate.condition)
        around = " -> ".join([*cycle[:6], *(["..."] if len(cycle) > 6 else []), cycle[0]])
        return Problem(condition.loc, f"a cycle of conditions: {around}", expected="conditions on what comes before")
    node = nodes[reader]
    following = cycle[(cycle.index(reader) + 1) % len(cycle)]
    read = next((s.index for s in node.sources if following in s.waits or following == vote_unit(s.vote or "")), None)
    loc: Loc = node.loc if read is None else (*node.loc, "read", read)
    start = cycle.index(reader)
    shown = [*cycle[start:], *cycle[:start], reader]
    text = " -> ".join(shown if len(shown) <= 8 else [*shown[:6], "...", shown[-1]])
    return Problem(loc, f"a cycle of reads: {text}", expected="reads that end at the fixed messages")
