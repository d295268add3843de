"""Which model each step calls: its own, its agent's, its workflow's; "" is the server's default."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from laban.cluster.workflow.blocks import lay_out
from laban.cluster.workflow.diagnostics import Loc, Problem
from laban.cluster.workflow.schema import Step, Workflow


def model_of(workflow: Workflow, step: Step, agent: str | None) -> str:
    """Of an instance that runs as `agent`."""
    role = None if agent is None else workflow.agents.get(agent)
    return step.model or (role.model if role is not None else None) or workflow.model or ""


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
