"""A workflow's steps out of the loops and blocks that they stand in: one flat list, each with what guards it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from laban.cluster.workflow.diagnostics import MAX_PROBLEMS, Loc, Problem
from laban.cluster.workflow.schema import Entry, Loop, LoopBlock, Step, WhenBlock, Workflow
from laban.cluster.workflow.schema_types import MAX_STEPS


@dataclass(frozen=True, slots=True)
class Guard:
    """A condition that must hold, or must not."""

    condition: str
    holds: bool


@dataclass(frozen=True, slots=True)
class Placed:
    """A step and where it stands; `loop` names the loop that it is in."""

    step: Step
    loc: Loc
    loop: str | None
    guards: tuple[Guard, ...]


@dataclass(frozen=True, slots=True)
class Condition:
    """The `when` of a block: asked once, or in a loop once a round."""

    name: str
    text: str
    loc: Loc
    loop: str | None
    guards: tuple[Guard, ...]  # of the blocks around it


@dataclass(frozen=True, slots=True)
class LoopPlace:
    """A loop, where it stands, and the conditions under which it runs."""

    name: str
    loop: Loop
    loc: Loc
    guards: tuple[Guard, ...]


@dataclass(slots=True)
class Layout:
    """Steps, conditions and loops, in the order of the file; and the names of the fixed messages."""

    steps: list[Placed] = field(default_factory=list)
    by_name: dict[str, Placed] = field(default_factory=dict)
    conditions: dict[str, Condition] = field(default_factory=dict)
    loops: dict[str, LoopPlace] = field(default_factory=dict)
    messages: frozenset[str] = frozenset()
    problems: list[Problem] = field(default_factory=list)


def lay_out(workflow: Workflow) -> Layout:
    """Everything of `workflow.steps`, and what is wrong with how it is nested."""
    layout = Layout(messages=frozenset(workflow.messages))
    _enter(layout, workflow.steps, ("steps",), None, ())
    if not layout.steps and not layout.problems:
        layout.problems.append(Problem(("steps",), "no steps", expected="at least one step"))
    if len(layout.steps) > MAX_STEPS:
        layout.problems.append(Problem(("steps",), "too many steps", len(layout.steps), f"at most {MAX_STEPS}"))
    return layout


def steps_of(workflow: Workflow) -> list[Step]:
    """Every step, in the order of the file."""
    return [placed.step for placed in lay_out(workflow).steps]


def _enter(layout: Layout, entries: Sequence[Entry], loc: Loc, loop: str | None, guards: tuple[Guard, ...]) -> None:
    for index, entry in enumerate(entries):
        at = (*loc, index)
        if len(layout.problems) >= MAX_PROBLEMS:
            return
        if isinstance(entry, Step):
            placed = Placed(entry, at, loop, guards)
            layout.steps.append(placed)
            layout.by_name.setdefault(entry.step, placed)
            if loop is not None and entry.rounds is not None:
                problem = "a step in a loop has the loop's rounds"
                layout.problems.append(Problem((*at, "rounds"), problem, entry.rounds, "no `rounds` here"))
        elif isinstance(entry, WhenBlock):
            guard = _condition(layout, entry.when, (*at, "when"), loop, guards)
            _enter(layout, entry.steps, (*at, "steps"), loop, (*guards, Guard(guard, True)))
            _enter(layout, entry.otherwise, (*at, "otherwise"), loop, (*guards, Guard(guard, False)))
        else:
            _enter_loop(layout, entry, at, loop, guards)


def _enter_loop(layout: Layout, block: LoopBlock, at: Loc, outer: str | None, guards: tuple[Guard, ...]) -> None:
    if outer is not None:
        expected = "a step that runs a `workflow` of its own for the loop inside"
        layout.problems.append(Problem((*at, "loop"), f"a loop inside of the loop '{outer}'", expected=expected))
        return
    name = block.loop.name or f"loop{len(layout.loops) + 1}"
    if name in layout.loops:
        layout.problems.append(Problem((*at, "loop", "name"), f"'{name}' is also an earlier loop", name))
        return
    if block.when is not None:
        guards = (*guards, Guard(_condition(layout, block.when, (*at, "when"), None, guards), True))
    layout.loops[name] = LoopPlace(name, block.loop, (*at, "loop"), guards)
    _enter(layout, block.steps, (*at, "steps"), name, guards)


def _condition(layout: Layout, text: str, loc: Loc, loop: str | None, guards: tuple[Guard, ...]) -> str:
    name = f"when({len(layout.conditions) + 1})"
    layout.conditions[name] = Condition(name, text, loc, loop, guards)
    return name


def condition_unit(condition: Condition, round_: int | None) -> str:
    return condition.name if condition.loop is None else f"{condition.name}[{round_}]"
