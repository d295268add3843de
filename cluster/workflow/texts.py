"""The texts that a run starts from: fixed messages, role prompts, and each instance's prefill and name line."""

from __future__ import annotations

from collections.abc import Mapping

from laban.cluster.workflow.diagnostics import Loc, Problem
from laban.cluster.workflow.graph import Node, StepGraph, prompt_key
from laban.cluster.workflow.schema import Step, Workflow
from laban.cluster.workflow.states import MessageText
from laban.cluster.workflow.templates import TemplateProblem, render, variables_of


def fixed_messages(workflow: Workflow, values: Mapping[str, object]) -> tuple[dict[str, MessageText], list[Problem]]:
    """Every fixed message and role prompt, rendered with the inputs' `values`."""
    messages: dict[str, MessageText] = {}
    problems: list[Problem] = []
    for name, message in workflow.messages.items():
        text = _render(message.text, values, ("messages", name, "text"), problems)
        messages[name] = MessageText(name, message.role, message.name, text, message.private)
    for name, agent in workflow.agents.items():
        if agent.prompt is not None:
            key = prompt_key(name)
            text = _render(agent.prompt, {**values, "agent": name}, ("agents", name, "prompt"), problems)
            messages[key] = MessageText(key, agent.role, None, text, agent.private)
    return messages, problems


def instance_texts(
    graph: StepGraph, values: Mapping[str, object]
) -> tuple[dict[str, tuple[str, str | None]], list[Problem]]:
    """Address -> (prefill, name). Only one problem a template is reported."""
    texts: dict[str, tuple[str, str | None]] = {}
    problems: list[Problem] = []
    failed: set[Loc] = set()
    for address, node in graph.nodes.items():
        step = node.step
        given = {**values, **_own_variables(node)} if _is_dynamic(step) else values
        found: list[Problem] = []
        prefill = _render(step.prefill, given, ("steps", node.step_index, "prefill"), found)
        name = None
        if step.name is not None:
            name = _render(step.name, given, ("steps", node.step_index, "name"), found)
        texts[address] = (prefill, name)
        problems += [problem for problem in found if problem.loc not in failed]
        failed |= {problem.loc for problem in found}
    return texts, problems


def used_variables(workflow: Workflow) -> set[str]:
    """Every variable that some template uses, of those that parse."""
    texts = [message.text for message in workflow.messages.values()]
    texts += [agent.prompt or "" for agent in workflow.agents.values()]
    texts += [text for step in workflow.steps for text in (step.prefill, step.name or "")]
    used: set[str] = set()
    for text in texts:
        try:
            used |= variables_of(text)
        except TemplateProblem:
            continue
    return used


def _is_dynamic(step: Step) -> bool:
    return "{" in step.prefill or "{" in (step.name or "")


def _own_variables(node: Node) -> dict[str, object]:
    """`step`, and where they mean something `agent`, `index` (the member's number, from 1) and `round`."""
    own: dict[str, object] = {"step": node.step.step}
    if node.agent is not None:
        own["agent"] = node.agent
    if node.index is not None:
        own["index"] = node.index
    if node.round is not None:
        own["round"] = node.round
    return own


def _render(text: str, values: Mapping[str, object], loc: Loc, problems: list[Problem]) -> str:
    try:
        return render(text, values)
    except TemplateProblem as problem:
        problems.append(Problem(loc, f"the template does not render: {problem}"))
        return ""
