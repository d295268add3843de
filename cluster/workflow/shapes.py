"""Checks of steps that need no reads: names, agents, fan-outs, votes; and the shapes that follow."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from laban.cluster.workflow.blocks import Layout, Placed
from laban.cluster.workflow.diagnostics import MAX_PROBLEMS, Loc, Problem, suggest
from laban.cluster.workflow.resolve import Ballot, Member, Shape
from laban.cluster.workflow.schema import Workflow
from laban.cluster.workflow.selectors import parse_selector


def check_steps(workflow: Workflow, layout: Layout) -> list[Problem]:
    """Names given twice, unknown agents, and what one kind of step cannot have."""
    problems: list[Problem] = list(layout.problems)
    seen: dict[str, str] = {name: "a message" for name in workflow.messages}
    for placed in layout.steps:
        step, loc = placed.step, placed.loc
        if len(problems) >= MAX_PROBLEMS:
            break
        if step.step in seen:
            problems.append(Problem((*loc, "step"), f"'{step.step}' is also {seen[step.step]}", step.step))
        seen[step.step] = "an earlier step"
        if step.agent is not None and step.agent not in workflow.agents:
            hint = suggest(step.agent, workflow.agents)
            problems.append(Problem((*loc, "agent"), f"unknown agent '{step.agent}'", None, hint))
        problems += _out_of_place(placed)
    return problems


def _out_of_place(placed: Placed) -> Iterator[Problem]:
    step, given = placed.step, placed.step.model_fields_set
    if step.external is not None and step.workflow is not None:
        yield Problem((*placed.loc, "workflow"), "a step is either `external` or runs a `workflow`: keep one")
    if step.external is not None or step.workflow is not None:
        kind = "an external step" if step.external is not None else "a step that runs a workflow"
        for key in sorted({"sampling", "prefill", "response_schema", "choices", "model", "adapter"} & given):
            yield Problem((*placed.loc, key), f"{kind} generates nothing: `{key}` has no use")
    if step.workflow is None:
        for key in sorted({"inputs", "messages", "output"} & given):
            yield Problem((*placed.loc, key), f"`{key}` goes with `workflow`")
    elif step.read:
        expected = "`messages`, which says what its messages are"
        yield Problem((*placed.loc, "read"), "a step that runs a workflow reads nothing itself", expected=expected)
    for key in ("text", "code", "failed"):
        if key in step.values:
            yield Problem((*placed.loc, "values", key), f"every step has a value '{key}'", None, "another name")


def shapes_of(
    workflow: Workflow, layout: Layout, num_items: Mapping[str, int]
) -> tuple[dict[str, Shape], frozenset[str], list[Problem]]:
    """The members and rounds of each step and each message that fans out, and those that have errors instead.

    `num_items` of each list input.
    """
    shapes: dict[str, Shape] = {}
    broken: set[str] = set()
    problems: list[Problem] = []
    for name, message in workflow.messages.items():
        if message.for_each is None:
            continue
        found = _items(workflow, message.for_each, num_items, ("messages", name, "for_each"))
        if isinstance(found, Problem):
            problems.append(found)
            broken.add(name)
        else:
            shapes[name] = Shape(name, found, over=message.for_each, fixed=True)
    batched: dict[str, Placed] = {}
    for placed in layout.steps:
        step, fan_out = placed.step, placed.step.for_each
        if len(problems) >= MAX_PROBLEMS:
            broken.add(step.step)
        elif fan_out is not None and fan_out.batch is not None:
            batched[step.step] = placed
        else:
            members, more = _members(workflow, placed, num_items)
            problems += more
            if more:
                broken.add(step.step)
            else:
                over = step.step if fan_out is None or fan_out.input is None else fan_out.input
                rounds = rounds_of(layout, placed)
                shapes[step.step] = Shape(step.step, members, rounds, step.agent, over, loop=placed.loop)
    for placed in batched.values():
        shape = _batches(layout, placed, shapes, broken, batched, ())
        if isinstance(shape, Problem):
            problems.append(shape)
        if not isinstance(shape, Shape):
            broken.add(placed.step.step)
    return shapes, frozenset(broken), problems


def rounds_of(layout: Layout, placed: Placed) -> int | None:
    """The step's rounds, or its loop's."""
    return placed.step.rounds if placed.loop is None else layout.loops[placed.loop].loop.max


def _items(workflow: Workflow, name: str, num_items: Mapping[str, int], loc: Loc) -> tuple[Member, ...] | Problem:
    """The numbers of a list input's items."""
    declared = workflow.inputs.get(name)
    if declared is None:
        lists = [other for other, given in workflow.inputs.items() if given.type == "list"]
        hint = suggest(name, lists) or "an input of the type list"
        return Problem(loc, f"unknown list '{name}'", None, hint)
    if declared.type != "list":
        return Problem(loc, f"the input '{name}' is no list", declared.type, "an input of the type list")
    if num_items[name] == 0:
        return Problem(loc, f"the list '{name}' is empty", expected="at least one item to fan out over")
    return tuple(range(1, num_items[name] + 1))


def _batches(
    layout: Layout,
    placed: Placed,
    shapes: dict[str, Shape],
    broken: set[str],
    batched: Mapping[str, Placed],
    within: tuple[str, ...],
) -> Shape | Problem | None:
    """The shape of a step over batches, after that of what it batches. None: that has an error of its own."""
    step = placed.step
    assert step.for_each is not None
    assert step.for_each.batch is not None
    assert step.for_each.size is not None
    if step.step in shapes:
        return shapes[step.step]
    base, size, loc = step.for_each.batch, step.for_each.size, (*placed.loc, "for_each", "batch")
    if base == step.step or base in within:
        return Problem(loc, "a cycle of batches", base, "a step or message that fans out by itself")
    if base in batched and base not in shapes:
        below = _batches(layout, batched[base], shapes, broken, batched, (*within, step.step))
        if isinstance(below, Problem):
            return below
    if base in broken:
        return None
    target = shapes.get(base)
    if target is None:
        if base in layout.messages:
            return Problem(loc, f"the message '{base}' has no members to batch", base, "one with `for_each`")
        return Problem(loc, f"unknown step or message '{base}'", None, suggest(base, shapes))
    if target.members is None:
        return Problem(loc, f"'{base}' has no members to batch: it does not fan out", base)
    members = tuple(range(1, -(-len(target.members) // size) + 1))
    rounds = rounds_of(layout, placed)
    shape = Shape(step.step, members, rounds, step.agent, step.step, (base, size), loop=placed.loop)
    shapes[step.step] = shape
    return shape


def _members(
    workflow: Workflow, placed: Placed, num_items: Mapping[str, int]
) -> tuple[tuple[Member, ...] | None, list[Problem]]:
    step, fan_out = placed.step, placed.step.for_each
    if fan_out is None:
        return None, []
    if fan_out.count is not None:
        return tuple(range(1, fan_out.count + 1)), []
    loc = (*placed.loc, "for_each")
    if fan_out.input is not None:
        found = _items(workflow, fan_out.input, num_items, (*loc, "input"))
        return (None, [found]) if isinstance(found, Problem) else (found, [])
    names = fan_out.agents if fan_out.agents is not None else list(workflow.agents)
    problems = []
    if not names:
        problems.append(Problem(loc, "a fan-out over no agents", expected="at least one agent"))
    if step.agent is not None:
        problems.append(Problem((*placed.loc, "agent"), "a step for each agent runs as each of them", step.agent))
    seen: set[str] = set()
    for place, name in enumerate(names):
        if len(problems) >= MAX_PROBLEMS:
            break
        if name not in workflow.agents:
            problems.append(Problem((*loc, place), f"unknown agent '{name}'", None, suggest(name, workflow.agents)))
        elif name in seen:
            problems.append(Problem((*loc, place), f"agent '{name}' is listed twice"))
        seen.add(name)
    return tuple(names), problems


def ballots_of(
    layout: Layout, shapes: dict[str, Shape], broken: frozenset[str]
) -> tuple[dict[str, Ballot], list[Problem]]:
    """What each voting step votes over."""
    ballots: dict[str, Ballot] = {}
    problems: list[Problem] = []
    for placed in layout.steps:
        step = placed.step
        if step.vote is None or step.step in broken or len(problems) >= MAX_PROBLEMS:
            continue
        loc = (*placed.loc, "vote", "over")
        selector = parse_selector(step.vote.over)
        if selector.name in broken:
            continue
        over = shapes.get(selector.name)
        if over is None:
            hint = suggest(selector.name, shapes)
            problems.append(Problem(loc, f"unknown step '{selector.name}'", None, hint))
            continue
        problem, round_ = _voted_round(selector.arguments, over)
        if over.members is None:
            problem = f"step '{over.step}' has no members to choose among: it does not fan out"
        elif over.step == step.step:
            problem = "a step cannot vote over itself"
        elif over.loop is not None or placed.loop is not None:
            problem = "votes and loops do not go together: take `values`, and `majority` in an expression"
        if problem:
            problems.append(Problem(loc, problem, step.vote.over, "STEP, STEP[all,last] or STEP[all,ROUND]"))
            continue
        if step.vote.value is not None and step.vote.value not in step.value_names:
            hint = suggest(step.vote.value, step.value_names) or f"{step.vote.value} among the step's `values`"
            problems.append(Problem((*placed.loc, "vote", "value"), "not a value of the step", step.vote.value, hint))
        num_voters = len(shapes[step.step].members or (None,))
        if (step.vote.quorum or 0) > num_voters:
            problems.append(
                Problem(
                    (*placed.loc, "vote", "quorum"),
                    f"the vote can never be decided: it has {num_voters} voters",
                    step.vote.quorum,
                    f"at most {num_voters}",
                )
            )
        ballots[step.step] = Ballot(over.step, over.members or (), round_)
    return ballots, problems


def _voted_round(arguments: tuple[object, ...], over: Shape) -> tuple[str, int | None]:
    if arguments[:1] not in ((), ("all",)):
        return "a vote is over all members", None
    if len(arguments) < 2:
        return "", over.rounds
    if over.rounds is None:
        return f"step '{over.step}' has no rounds", None
    round_ = over.rounds if arguments[1] == "last" else arguments[1]
    if not isinstance(round_, int) or round_ > over.rounds:
        return f"not one of the {over.rounds} rounds of '{over.step}'", None
    return "", round_
