"""Checks of steps that need no reads: names, agents, fan-outs, votes; and the shapes that follow."""

from __future__ import annotations

from collections.abc import Mapping

from laban.cluster.workflow.diagnostics import MAX_PROBLEMS, Loc, Problem, suggest
from laban.cluster.workflow.resolve import Ballot, Member, Shape
from laban.cluster.workflow.schema import Step, Workflow
from laban.cluster.workflow.selectors import parse_selector


def check_steps(workflow: Workflow) -> list[Problem]:
    """Names given twice, unknown agents, and what an external step cannot have."""
    problems: list[Problem] = []
    seen: dict[str, str] = {name: "a message" for name in workflow.messages}
    for index, step in enumerate(workflow.steps):
        if len(problems) >= MAX_PROBLEMS:
            break
        if step.step in seen:
            problems.append(Problem(("steps", index, "step"), f"'{step.step}' is also {seen[step.step]}", step.step))
        seen[step.step] = "an earlier step"
        if step.agent is not None and step.agent not in workflow.agents:
            problems.append(
                Problem(
                    ("steps", index, "agent"),
                    f"unknown agent '{step.agent}'",
                    None,
                    suggest(step.agent, workflow.agents),
                )
            )
        if step.external is None:
            continue
        for key in sorted({"sampling", "prefill"} & step.model_fields_set):
            problems.append(Problem(("steps", index, key), f"an external step generates nothing: `{key}` has no use"))
    return problems


def shapes_of(
    workflow: Workflow, num_items: Mapping[str, int]
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
    batched: dict[str, tuple[int, Step]] = {}
    for index, step in enumerate(workflow.steps):
        fan_out = step.for_each
        if len(problems) >= MAX_PROBLEMS:
            broken.add(step.step)
        elif fan_out is not None and fan_out.batch is not None:
            batched[step.step] = (index, step)
        else:
            members, more = _members(workflow, index, step, num_items)
            problems += more
            if more:
                broken.add(step.step)
            else:
                over = step.step if fan_out is None or fan_out.input is None else fan_out.input
                shapes[step.step] = Shape(step.step, members, step.rounds, step.agent, over)
    for index, step in batched.values():
        shape = _batches(index, step, shapes, broken, batched, ())
        if isinstance(shape, Problem):
            problems.append(shape)
        if not isinstance(shape, Shape):
            broken.add(step.step)
    return shapes, frozenset(broken), problems


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
    index: int,
    step: Step,
    shapes: dict[str, Shape],
    broken: set[str],
    batched: Mapping[str, tuple[int, Step]],
    within: tuple[str, ...],
) -> Shape | Problem | None:
    """The shape of a step over batches, after that of what it batches. None: that has an error of its own."""
    assert step.for_each is not None
    assert step.for_each.batch is not None
    assert step.for_each.size is not None
    if step.step in shapes:
        return shapes[step.step]
    base, size, loc = step.for_each.batch, step.for_each.size, ("steps", index, "for_each", "batch")
    if base == step.step or base in within:
        return Problem(loc, "a cycle of batches", base, "a step or message that fans out by itself")
    if base in batched and base not in shapes:
        below = _batches(*batched[base], shapes, broken, batched, (*within, step.step))
        if isinstance(below, Problem):
            return below
    if base in broken:
        return None
    target = shapes.get(base)
    if target is None:
        return Problem(loc, f"unknown step or message '{base}'", None, suggest(base, shapes))
    if target.members is None:
        return Problem(loc, f"'{base}' has no members to batch: it does not fan out", base)
    members = tuple(range(1, -(-len(target.members) // size) + 1))
    shape = Shape(step.step, members, step.rounds, step.agent, step.step, (base, size))
    shapes[step.step] = shape
    return shape


def _members(
    workflow: Workflow, index: int, step: Step, num_items: Mapping[str, int]
) -> tuple[tuple[Member, ...] | None, list[Problem]]:
    fan_out = step.for_each
    if fan_out is None:
        return None, []
    if fan_out.count is not None:
        return tuple(range(1, fan_out.count + 1)), []
    loc = ("steps", index, "for_each")
    if fan_out.input is not None:
        found = _items(workflow, fan_out.input, num_items, (*loc, "input"))
        return (None, [found]) if isinstance(found, Problem) else (found, [])
    names = fan_out.agents if fan_out.agents is not None else list(workflow.agents)
    problems = []
    if not names:
        problems.append(Problem(loc, "a fan-out over no agents", expected="at least one agent"))
    if step.agent is not None:
        problems.append(Problem(("steps", index, "agent"), "a step for each agent runs as each of them", step.agent))
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
    workflow: Workflow, shapes: dict[str, Shape], broken: frozenset[str]
) -> tuple[dict[str, Ballot], list[Problem]]:
    """What each voting step votes over."""
    ballots: dict[str, Ballot] = {}
    problems: list[Problem] = []
    for index, step in enumerate(workflow.steps):
        if step.vote is None or step.step in broken or len(problems) >= MAX_PROBLEMS:
            continue
        loc = ("steps", index, "vote", "over")
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
        if problem:
            problems.append(Problem(loc, problem, step.vote.over, "STEP, STEP[all,last] or STEP[all,ROUND]"))
            continue
        num_voters = len(shapes[step.step].members or (None,))
        if (step.vote.quorum or 0) > num_voters:
            problems.append(
                Problem(
                    ("steps", index, "vote", "quorum"),
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
