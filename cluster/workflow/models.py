"""Which model each step calls, and with which adapter: its own, its agent's, its workflow's."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import replace

from laban.cluster.workflow.blocks import Placed, lay_out
from laban.cluster.workflow.diagnostics import Loc, Problem
from laban.cluster.workflow.schema import Step, Workflow

NONE = "none"
"""Names no adapter: the plain model is called, whatever the agent or the workflow says."""


def model_of(workflow: Workflow, step: Step, agent: str | None) -> str:
    """Of an instance that runs as `agent`; "" is the server's default."""
    role = None if agent is None else workflow.agents.get(agent)
    return step.model or (role.model if role is not None else None) or workflow.model or ""


def adapter_of(workflow: Workflow, step: Step, agent: str | None) -> str:
    """As `model_of`; "" is none."""
    return _adapter_of(workflow, step, agent)[0]


def _adapter_of(workflow: Workflow, step: Step, agent: str | None) -> tuple[str, Loc | None]:
    """And where it is named, in the workflow; None if in the step."""
    role = None if agent is None else workflow.agents.get(agent)
    of_role = role.adapter if role is not None else None
    found = step.adapter or of_role or workflow.adapter or ""
    place: Loc | None = None if step.adapter else ("agents", agent or "", "adapter") if of_role else ("adapter",)
    return "" if found == NONE else found, place


def unknown_adapters(workflow: Workflow, known: Callable[[str], Collection[str]]) -> list[Problem]:
    """A problem for each adapter that is none of those `known` of the model that it would be used with. Names of models
    have been checked."""
    found: dict[Loc, Problem] = {}
    for placed in lay_out(workflow).steps:
        step = placed.step
        if step.external is not None or step.workflow is not None:
            continue
        members = () if step.for_each is None or not step.for_each.over_agents else step.for_each.agents
        for agent in members if members is not None else workflow.agents or (None,):
            _check_adapter(workflow, placed, agent, known, found)
        if members is not None and not members:
            _check_adapter(workflow, placed, step.agent, known, found)
    for name, inner in workflow.workflows.items():
        for problem in unknown_adapters(inner, known):
            loc = ("workflows", name, *problem.loc)
            found[loc] = replace(problem, loc=loc)
    return list(found.values())


def _check_adapter(
    workflow: Workflow,
    placed: Placed,
    agent: str | None,
    known: Callable[[str], Collection[str]],
    found: dict[Loc, Problem],
) -> None:
    adapter, place = _adapter_of(workflow, placed.step, agent)
    model = model_of(workflow, placed.step, agent)
    served = known(model)
    if adapter and adapter not in served:
        loc = (*placed.loc, "adapter") if place is None else place
        of_model = f" of the model {model}" if model else ""
        expected = f"one of {', '.join(served)}, or {NONE}" if served else f"{NONE}: there are no adapters{of_model}"
        found[loc] = Problem(loc, f"no such adapter{of_model} is served", adapter, expected)


def named_adapters(workflow: Workflow) -> list[str]:
    """All that a workflow names, and those in it."""
    agents = (agent.adapter for agent in workflow.agents.values())
    steps = (placed.step.adapter for placed in lay_out(workflow).steps)
    own = [name for name in (workflow.adapter, *agents, *steps) if name is not None and name != NONE]
    return own + [name for inner in workflow.workflows.values() for name in named_adapters(inner)]


def named_models(workflow: Workflow) -> Iterator[tuple[Loc, str]]:
    """Every model that a workflow names, and those in it, with the place."""
    if workflow.model is not None:
        yield ("model",), workflow.model
    for name, agent in workflow.agents.items():
        if agent.model is not None:
            yield ("agents", name, "model"), agent.model
    for placed in lay_out(workflow).steps:
        if placed.step.model is not None:
            yield (*placed.loc, "model"), placed.step.model
    for name, inner in workflow.workflows.items():
        for loc, model in named_models(inner):
            yield ("workflows", name, *loc), model


def unknown_models(workflow: Workflow, known: Collection[str]) -> list[Problem]:
    """A problem for each name that is none of `known`."""
    served = f"one of {', '.join(known)}"
    return [
        Problem(loc, "no such model is served", name, served)
        for loc, name in named_models(workflow)
        if name not in known
    ]
