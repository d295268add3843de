"""What an instance's text decides: values found in it, its ballot, branches and loops, the order in which others read.

Asked of a run that is over, once with the text that was and once with another, it says what would have gone otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from laban.cluster.workflow import votes
from laban.cluster.workflow.expressions import ExpressionProblem
from laban.cluster.workflow.facts import Facts, ordered
from laban.cluster.workflow.graph import Gate, Source, StepGraph, VoteNode

UNFIT = "(unfit)"
"""A text without a value that it must have, or one that an expression cannot make anything of."""


def may_decide(graph: StepGraph, address: str) -> bool:
    """Whether there is anything that the text of an instance decides."""
    has_values = bool(graph.nodes[address].step.value_names)
    return has_values or any(True for _ in (*_votes(graph, address), *_gates(graph, address), *_orders(graph, address)))


def decisions_of(
    graph: StepGraph, facts: Facts, decided: Mapping[str, bool], address: str, text: str
) -> dict[str, object]:
    """Each decision by its name, were the text of `address` this one. `decided` has the gates that were asked."""
    values, problem = facts.values_in(address, text)
    found: dict[str, object] = {f"value {name}": value for name, value in values.items()}
    if problem:
        found["values"] = UNFIT
    supposed = facts.supposing(address, text)
    for vote in _votes(graph, address):
        tally = votes.count(replace(vote, voters=(address,), quorum=1), supposed.texts, supposed.values)
        ballots = dict(tally.ballots) if tally is not None and not tally.abstained else {}
        found[f"vote of {vote.step}"] = next((member for member, count in ballots.items() if count), None)
    for gate in _gates(graph, address):
        if gate.unit in decided:
            found[gate.unit] = _holds(supposed, gate)
    for reader, source in _orders(graph, address):
        found[f"order of {reader}"] = _order(supposed, source)
    return found


def _votes(graph: StepGraph, address: str) -> Iterator[VoteNode]:
    return (vote for vote in graph.votes.values() if address in vote.voters)


def _gates(graph: StepGraph, address: str) -> Iterator[Gate]:
    return (gate for gate in graph.gates.values() if gate.condition is not None and address in gate.condition.waits)


def _orders(graph: StepGraph, address: str) -> Iterator[tuple[str, Source]]:
    for reader, node in graph.nodes.items():
        for source in node.sources:
            if source.order is not None and address in source.order.waits:
                yield reader, source


def _holds(facts: Facts, gate: Gate) -> object:
    try:
        return facts.holds(gate)
    except ExpressionProblem:
        return UNFIT


def _order(facts: Facts, source: Source) -> object:
    assert source.order is not None
    members = dict(zip(source.keys, source.members, strict=True))
    there = [key for key in source.keys if key in facts.texts]
    try:
        return ordered(there, members, facts.evaluate(source.order))
    except ExpressionProblem:
        return UNFIT
