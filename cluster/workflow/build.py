"""Builds the step graph of a workflow, or says everything that keeps it from being one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from laban.cluster.workflow.diagnostics import Loc, Problem
from laban.cluster.workflow.graph import Fidelity, Node, OutputNode, Source, StepGraph, VoteNode, vote_unit
from laban.cluster.workflow.inputs import num_items
from laban.cluster.workflow.order import find_cycle, topological
from laban.cluster.workflow.resolve import Ballot, Member, Selection, Shape
from laban.cluster.workflow.schema import Output, Step, Workflow
from laban.cluster.workflow.selectors import parse_selector
from laban.cluster.workflow.shapes import ballots_of, check_steps, shapes_of
from laban.cluster.workflow.sources import Entry, Scope, chosen_source, sources_of, waits_of

MAX_INSTANCES = 10_000
MAX_READS = 250_000  # entries of all views together


def build_graph(
    workflow: Workflow, fidelity: Fidelity | None = None, values: Mapping[str, object] | None = None
) -> tuple[StepGraph | None, list[Problem]]:
    """The graph, or None with at least one error. `fidelity` replaces every fidelity that the workflow states.

    `values` of the inputs: their lists say how many members a fan-out has.
    """
    problems = check_steps(workflow)
    shapes, broken, more = shapes_of(workflow, num_items(workflow, values or {}))
    problems += more
    ballots, more = ballots_of(workflow, shapes, broken)
    undecided = frozenset(s.step for s in workflow.steps if s.vote is not None and s.step not in ballots)
    scope = Scope(workflow, shapes, broken, undecided, ballots)
    entries = [scope.entries(index, step) for index, step in enumerate(workflow.steps)]
    outputs = workflow.outputs or {workflow.steps[-1].step: Output(read=workflow.steps[-1].step)}
    selected = {n: scope.understand(o.read, Shape(""), ("outputs", n, "read")) for n, o in outputs.items()}
    problems += more + scope.problems
    problems = problems or _too_large(workflow, shapes, entries)
    if problems:
        return None, problems
    nodes: dict[str, Node] = {}
    for index, step in enumerate(workflow.steps):
        own = list(_instances(workflow, index, step, shapes[step.step], entries[index], fidelity))
        nodes.update((node.address, node) for node in own)
        problems += _joins_that_cannot_fire(index, step, own)
    ends = {name: _output(name, output, selected[name]) for name, output in outputs.items()}
    problems += [problem for end in ends.values() for problem in _incomplete(end)]
    if problems:
        return None, problems
    waited = {unit for node in nodes.values() for unit in node.waits}
    waited |= {unit for end in ends.values() for unit in end.waits}
    votes = {s.step: _vote(s, shapes, ballots) for s in workflow.steps if vote_unit(s.step) in waited}
    fixed = {name: shape.keys() for name, shape in shapes.items() if shape.fixed}
    return _close(workflow, {name: fixed.get(name, (name,)) for name in workflow.messages}, nodes, votes, ends)


def _close(
    workflow: Workflow,
    fixed: dict[str, tuple[str, ...]],
    nodes: dict[str, Node],
    votes: dict[str, VoteNode],
    outputs: dict[str, OutputNode],
) -> tuple[StepGraph | None, list[Problem]]:
    waits = {address: node.waits for address, node in nodes.items()}
    waits |= {vote.unit: vote.waits for vote in votes.values()}
    order = topological(waits)
    if len(order) < len(waits):
        return None, [_cycle(find_cycle(waits, order), nodes)]
    consumers: dict[str, list[str]] = {unit: [] for unit in waits}
    for unit, needed in (*waits.items(), *((o.unit, o.waits) for o in outputs.values())):
        for need in needed:
            consumers[need].append(unit)
    frozen = {unit: tuple(users) for unit, users in consumers.items()}
    return StepGraph(workflow, fixed, nodes, votes, outputs, frozen, tuple(order)), []


def _cycle(cycle: list[str], nodes: dict[str, Node]) -> Problem:
    reader = next(unit for unit in cycle if unit in nodes)
    node = nodes[reader]
    following = cycle[(cycle.index(reader) + 1) % len(cycle)]
    read = next((s.index for s in node.sources if following in s.keys or following == vote_unit(s.vote or "")), None)
    loc: Loc = ("steps", node.step_index) if read is None else ("steps", node.step_index, "read", read)
    start = cycle.index(reader)
    shown = [*cycle[start:], *cycle[:start], reader]
    text = " -> ".join(shown if len(shown) <= 8 else [*shown[:6], "...", shown[-1]])
    return Problem(loc, f"a cycle of reads: {text}", expected="reads that end at the fixed messages")


def _too_large(workflow: Workflow, shapes: Mapping[str, Shape], entries: list[list[Entry]]) -> list[Problem]:
    num_instances = num_reads = 0
    for index, step in enumerate(workflow.steps):
        instances = shapes[step.step].num_instances
        num_instances += instances
        num_reads += instances * sum(1 if chosen is None else chosen.width() for _, chosen in entries[index])
        if num_instances > MAX_INSTANCES:
            return [Problem(("steps", index), "too many instances in all", num_instances, f"at most {MAX_INSTANCES}")]
        if num_reads > MAX_READS:
            return [Problem(("steps", index), "too many reads in all", num_reads, f"at most {MAX_READS}")]
    return []


def _instances(
    workflow: Workflow, index: int, step: Step, shape: Shape, entries: list[Entry], fidelity: Fidelity | None
) -> Iterator[Node]:
    shared: dict[tuple[str, ...], tuple[str, ...]] = {}
    for round_ in range(1, shape.rounds + 1) if shape.rounds else (None,):
        for place, member in enumerate(shape.members if shape.members is not None else (None,), start=1):
            agent = member if isinstance(member, str) else step.agent
            found = sources_of(workflow, step, entries, agent, member, round_, fidelity)
            sources = tuple(_share(source, shared) for source in found)
            waits = waits_of(sources)
            waits = shared.setdefault(waits, waits)
            needed = len(waits) if step.join.at_least is None else min(step.join.at_least, len(waits))
            cancels = step.join.rest == "cancel"
            address = shape.address(member, round_)
            number = None if member is None else place
            yield Node(address, step, index, agent, member, number, round_, sources, waits, needed, cancels)


def _share(source: Source, shared: dict[tuple[str, ...], tuple[str, ...]]) -> Source:
    """Equal selections of many instances are one tuple."""
    keys = shared.setdefault(source.keys, source.keys)
    return replace(source, keys=keys, waits=shared.setdefault(source.waits, source.waits))


def _joins_that_cannot_fire(index: int, step: Step, nodes: list[Node]) -> list[Problem]:
    wanted = step.join.at_least
    if wanted is None:
        return []
    loc = ("steps", index, "join")
    if not any(node.waits for node in nodes):
        return [Problem(loc, "a join with nothing to wait for can never fire", expected="a read of another step")]
    for node in nodes:
        # No waits at all: the first round of `previous`, which starts at once.
        if 0 < len(node.waits) < wanted:
            return [
                Problem(
                    loc,
                    f"the join of '{node.address}' can never fire: it waits for {len(node.waits)}",
                    wanted,
                    f"at most {len(node.waits)}",
                )
            ]
    return []


def _output(name: str, output: Output, chosen: Selection | None) -> OutputNode:
    if chosen is None:
        source = Source((parse_selector(output.read).name,), "exact", fixed=True)
    else:
        source = chosen_source(chosen, None, None, None, "exact")
    waits = waits_of([source])
    required = len(waits) if output.join.at_least is None else output.join.at_least
    return OutputNode(name, source, waits, required, output.separator)


def _incomplete(output: OutputNode) -> Iterator[Problem]:
    if output.required > len(output.waits):
        message = f"the output can never be complete: it waits for {len(output.waits)}"
        yield Problem(("outputs", output.name, "join"), message, output.required, f"at most {len(output.waits)}")


def _vote(step: Step, shapes: Mapping[str, Shape], ballots: Mapping[str, Ballot]) -> VoteNode:
    assert step.vote is not None
    shape, ballot = shapes[step.step], ballots[step.step]
    members: tuple[Member | None, ...] = shape.members if shape.members is not None else (None,)
    voters = tuple(shape.address(member, shape.rounds) for member in members)
    over = shapes[ballot.over]
    candidates = {over.address(member, ballot.round): member for member in ballot.members}
    quorum = step.vote.quorum if step.vote.quorum is not None else len(voters)
    return VoteNode(step.step, voters, candidates, quorum, step.vote.ballot == "last")
