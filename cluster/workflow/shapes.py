"""Checks of steps that need no reads: names, agents, fan-outs, votes; and the shapes that follow."""

from __future__ import annotations

from laban.cluster.workflow.diagnostics import MAX_PROBLEMS, Problem, suggest
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


def shapes_of(workflow: Workflow) -> tuple[dict[str, Shape], frozenset[str], list[Problem]]:
    """The members and rounds of each step, and the steps that have errors instead."""
    shapes: dict[str, Shape] = {}
    broken: set[str] = set()
    problems: list[Problem] = []
    for index, step in enumerate(workflow.steps):
        if len(problems) >= MAX_PROBLEMS:
            broken.add(step.step)
            continue
        members, more = _members(workflow, index, step)
        problems += more
        if more:
            broken.add(step.step)
        else:
            shapes[step.step] = Shape(step.step, members, step.rounds, step.agent)
    return shapes, frozenset(broken), problems


def _members(workflow: Workflow, index: int, step: Step) -> tuple[tuple[Member, ...] | None, list[Problem]]:
    fan_out = step.for_each
    if fan_out is None:
        return None, []
    if fan_out.count is not None:
        return tuple(range(1, fan_out.count + 1)), []
    loc = ("steps", index, "for_each")
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
