"""The texts that a run starts from: fixed messages, role prompts, and each instance's prefill and name line."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence

from laban.cluster.workflow.blocks import steps_of
from laban.cluster.workflow.diagnostics import Loc, Problem
from laban.cluster.workflow.graph import StepGraph, prompt_key
from laban.cluster.workflow.schema import Message, Step, Workflow
from laban.cluster.workflow.states import MessageText
from laban.cluster.workflow.templates import TemplateProblem, render, variables_of


def fixed_messages(
    workflow: Workflow, values: Mapping[str, object], without: Container[str] = ()
) -> tuple[dict[str, MessageText], list[Problem]]:
    """Every fixed message and role prompt, rendered with the inputs' `values`; `without` those that are given."""
    messages: dict[str, MessageText] = {}
    problems: list[Problem] = []
    for name, message in workflow.messages.items():
        if name in without:
            continue
        found: list[Problem] = []
        for key, own in _message_keys(name, message, values):
            text = _render(message.text, {**values, **own}, ("messages", name, "text"), found)
            varies = message.role != "system" and _varies(message)
            messages[key] = MessageText(key, message.role, message.name, text, message.private, varies)
        problems += found[:1]
    for name, agent in workflow.agents.items():
        if agent.prompt is not None:
            key = prompt_key(name)
            text = _render(agent.prompt, {**values, "agent": name}, ("agents", name, "prompt"), problems)
            messages[key] = MessageText(key, agent.role, None, text, agent.private)
    return messages, problems


def _varies(message: Message) -> bool:
    try:
        return message.for_each is not None or bool(variables_of(message.text))
    except TemplateProblem:
        return False


def _message_keys(name: str, message: Message, values: Mapping[str, object]) -> Iterator[tuple[str, dict[str, object]]]:
    """The keys of a fixed message, one for each item if it fans out, each with its own variables."""
    if message.for_each is None:
        yield name, {}
        return
    for index, item in enumerate(_items(values, message.for_each), 1):
        yield f"{name}[{index}]", {"item": item, "index": index}


def _items(values: Mapping[str, object], name: str) -> Sequence[object]:
    items = values[name]
    assert isinstance(items, tuple)
    return items


def instance_texts(
    graph: StepGraph, values: Mapping[str, object]
) -> tuple[dict[str, tuple[str, str | None]], list[Problem]]:
    """Address -> (prefill, name). Only one problem a template is reported."""
    texts: dict[str, tuple[str, str | None]] = {}
    problems: list[Problem] = []
    failed: set[Loc] = set()
    for address, node in graph.nodes.items():
        step = node.step
        given = {**values, **node.own} if _is_dynamic(step) else values
        found: list[Problem] = []
        prefill = _render(step.prefill, given, (*node.loc, "prefill"), found)
        name = None
        if step.name is not None:
            name = _render(step.name, given, (*node.loc, "name"), found)
        texts[address] = (prefill, name)
        problems += [problem for problem in found if problem.loc not in failed]
        failed |= {problem.loc for problem in found}
    return texts, problems


def used_variables(workflow: Workflow) -> set[str]:
    """Every variable that some template uses, of those that parse."""
    texts = [message.text for message in workflow.messages.values()]
    texts += [agent.prompt or "" for agent in workflow.agents.values()]
    texts += [text for step in steps_of(workflow) for text in (step.prefill, step.name or "")]
    used: set[str] = set()
    for text in texts:
        try:
            used |= variables_of(text)
        except TemplateProblem:
            continue
    return used


def _is_dynamic(step: Step) -> bool:
    return "{" in step.prefill or "{" in (step.name or "")


def _render(text: str, values: Mapping[str, object], loc: Loc, problems: list[Problem]) -> str:
    try:
        return render(text, values)
    except TemplateProblem as problem:
        problems.append(Problem(loc, f"the template does not render: {problem}"))
        return ""
