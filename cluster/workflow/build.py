"""Builds the step graph of a workflow, or says everything that keeps it from being one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from laban.cluster.workflow.blocks import Condition, Layout, LoopPlace, Placed, lay_out
from laban.cluster.workflow.close import close_graph
from laban.cluster.workflow.diagnostics import Problem
from laban.cluster.workflow.fidelity import Fidelity
from laban.cluster.workflow.graph import Gate, Node, OutputNode, Source, StepGraph, VoteNode, vote_unit
from laban.cluster.workflow.inputs import known_values, num_items
from laban.cluster.workflow.instances import Builder, Understood, understand_step
from laban.cluster.workflow.resolve import Ballot, Member, Selection, Shape
from laban.cluster.workflow.schema import Output, Step, Workflow
from laban.cluster.workflow.selectors import parse_selector
from laban.cluster.workflow.shapes import ballots_of, check_steps, shapes_of
from laban.cluster.workflow.sources import Meant, Reader, Scope, chosen_source, waits_of

MAX_INSTANCES = 10_000
MAX_READS = 250_000  # entries of all views together


def build_graph(
    workflow: Workflow, fidelity: Fidelity | None = None, values: Mapping[str, object] | None = None
) -> tuple[StepGraph | None, list[Problem]]:
    """The graph, or None with at least one error. `fidelity` replaces every fidelity that the workflow states.

    `values` of the inputs: their lists say how many members a fan-out has.
    """
    layout = lay_out(workflow)
    problems = check_steps(workflow, layout)
    known = known_values(workflow, values or {})
    shapes, broken, more = shapes_of(workflow, layout, num_items(workflow, known))
    problems += more
    ballots, more = ballots_of(layout, shapes, broken)
    problems += more
    undecided = frozenset(p.step.step for p in layout.steps if p.step.vote is not None and p.step.step not in ballots)
    scope = Scope(workflow, layout, shapes, broken, undecided, ballots)
    understood = [understand_step(scope, placed) for placed in layout.steps]
    conditions = {name: _condition(scope, layout, condition) for name, condition in layout.conditions.items()}
    untils = {name: _until(scope, place) for name, place in layout.loops.items()}
    outputs = workflow.outputs or _last_step(layout)
    selected = {n: scope.understand(o.read, Shape(""), ("outputs", n, "read")) for n, o in outputs.items()}
    problems += scope.problems
    problems = problems or _too_large(shapes, understood) or _too_much_asked(layout, {**conditions, **untils})
    if problems:
        return None, problems
    builder = Builder(workflow, layout, shapes, known, fidelity)
    nodes: dict[str, Node] = {}
    gates: dict[str, Gate] = {}
    for each in understood:
        made = list(builder.nodes(each))
        nodes.update((node.address, node) for node, _ in made)
        gates.update((gate.unit, gate) for _, own in made for gate in own)
        problems += _joins_that_cannot_fire(each.placed, [node for node, _ in made])
    for name, condition in layout.conditions.items():
        meant = conditions[name]
        assert meant is not None  # or it had a problem
        gates.update((gate.unit, gate) for gate in builder.conditions(condition, meant))
    for name, place in layout.loops.items():
        members = _members_by_round(name, layout, shapes)
        gates.update((gate.unit, gate) for gate in builder.untils(place, untils[name], members))
    loops = {node.unit: node for node in map(builder.loop_node, layout.loops.values())}
    ends = {name: _output(name, output, selected[name]) for name, output in outputs.items()}
    problems += [problem for end in ends.values() for problem in _incomplete(end)]
    if problems:
        return None, problems
    waited = {unit for node in nodes.values() for unit in node.waits}
    waited |= {unit for end in ends.values() for unit in end.waits}
    votes = {u.placed.step.step: u.placed.step for u in understood if vote_unit(u.placed.step.step) in waited}
    fixed = {name: shape.keys() for name, shape in shapes.items() if shape.fixed}
    fixed = {name: fixed.get(name, (name,)) for name in workflow.messages}
    counted = {name: _vote(step, shapes, ballots) for name, step in votes.items()}
    return close_graph(workflow, fixed, nodes, counted, ends, gates, loops)


def _last_step(layout: Layout) -> dict[str, Output]:
    """Without outputs the last step is one, under its own name."""
    last = layout.steps[-1].step.step if layout.steps else ""
    return {last: Output(read=last)} if last else {}


def _condition(scope: Scope, layout: Layout, condition: Condition) -> Meant | None:
    rounds = None if condition.loop is None else layout.loops[condition.loop].loop.max
    reader = Shape("", rounds=rounds, loop=condition.loop)
    return scope.mean(condition.text, reader, condition.loc, set() if rounds is None else {"round"})


def _until(scope: Scope, place: LoopPlace) -> Meant | None:
    if place.loop.until is None:
        return None
    reader = Shape("", rounds=place.loop.max, loop=place.name)
    return scope.mean(place.loop.until, reader, (*place.loc, "until"), {"round"})


def _members_by_round(loop: str, layout: Layout, shapes: Mapping[str, Shape]) -> dict[int, list[str]]:
    inside = [shapes[placed.step.step] for placed in layout.steps if placed.loop == loop]
    return {
        round_: [s.address(member, round_) for s in inside for member in s.members or (None,)]
        for round_ in range(1, layout.loops[loop].loop.max + 1)
    }


def _too_large(shapes: Mapping[str, Shape], understood: list[Understood]) -> list[Problem]:
    num_instances = num_reads = 0
    for each in understood:
        instances = shapes[each.placed.step.step].num_instances
        num_instances += instances
        num_reads += instances * sum(1 if chosen is None else chosen.width() for chosen in each.selections())
        loc = each.placed.loc
        if num_instances > MAX_INSTANCES:
            return [Problem(loc, "too many instances in all", num_instances, f"at most {MAX_INSTANCES}")]
        if num_reads > MAX_READS:
            return [Problem(loc, "too many reads in all", num_reads, f"at most {MAX_READS}")]
    return []


def _too_much_asked(layout: Layout, asked: Mapping[str, Meant | None]) -> list[Problem]:
    """The same for the conditions of blocks and loops, each of which is asked once a round."""
    num_reads = 0
    for name, meant in asked.items():
        loop = name if name in layout.loops else layout.conditions[name].loop
        rounds = 1 if loop is None else layout.loops[loop].loop.max
        num_reads += 0 if meant is None else rounds * sum(chosen.width() for chosen in meant.selections())
        if meant is not None and num_reads > MAX_READS:
            return [Problem(meant.loc, "too many values looked at in all", num_reads, f"at most {MAX_READS}")]
    return []


def _joins_that_cannot_fire(placed: Placed, nodes: list[Node]) -> list[Problem]:
    wanted = placed.step.join.at_least
    if wanted is None:
        return []
    loc = (*placed.loc, "join")
    if not any(node.waits for node in nodes):
        return [Problem(loc, "a join with nothing to wait for can never fire", expected="a read of another step")]
    for node in nodes:
        # No waits at all: the first round of `previous`, which starts at once.
        if 0 < len(node.waits) < wanted:
            message = f"the join of '{node.address}' can never fire: it waits for {len(node.waits)}"
            return [Problem(loc, message, wanted, f"at most {len(node.waits)}")]
    return []


def _output(name: str, output: Output, chosen: Selection | None) -> OutputNode:
    if chosen is None:
        source = Source((parse_selector(output.read).name,), "exact", fixed=True)
    else:
        source = chosen_source(chosen, Reader(), "exact")
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
    return VoteNode(step.step, voters, candidates, quorum, step.vote.ballot == "last", step.vote.value)
