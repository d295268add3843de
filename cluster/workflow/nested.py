"""Workflows in workflows: what keeps a step from running another one, and what passes between the two."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace

from laban.cluster.workflow.blocks import Placed, lay_out
from laban.cluster.workflow.build import MAX_INSTANCES, build_graph
from laban.cluster.workflow.diagnostics import Problem, suggest
from laban.cluster.workflow.graph import StepGraph
from laban.cluster.workflow.includes import ENDINGS, MAX_DEPTH
from laban.cluster.workflow.inputs import check_inputs
from laban.cluster.workflow.schema import Workflow
from laban.cluster.workflow.static import static_problems


def check_whole(workflow: Workflow, checked: Collection[int] = (), depth: int = 0) -> list[Problem]:
    """What is wrong with a workflow and with those in it, but for those `checked` already, by identity."""
    if depth > MAX_DEPTH:
        return [Problem(("workflows",), "workflows nested too deep", expected=f"at most {MAX_DEPTH} levels")]
    problems = static_problems(workflow)
    graph, more = build_graph(workflow)
    problems += more
    for name, inner in workflow.workflows.items():
        found = [] if id(inner) in checked else check_whole(inner, checked, depth + 1)
        problems += [replace(problem, loc=("workflows", name, *problem.loc)) for problem in found]
    problems += [problem for placed in lay_out(workflow).steps for problem in _step_problems(workflow, placed)]
    if not problems and graph is not None and num_instances(graph) > MAX_INSTANCES:
        expected = f"at most {MAX_INSTANCES}"
        problems.append(Problem(("steps",), "too many instances with the workflows that steps run", None, expected))
    return problems


def _step_problems(workflow: Workflow, placed: Placed) -> Iterator[Problem]:
    step, loc = placed.step, placed.loc
    if step.workflow is None:
        return
    inner = workflow.workflows.get(step.workflow)
    if inner is None:
        is_file = step.workflow.endswith(ENDINGS)
        other = "it among this workflow's own `workflows`" if is_file else "a file that ends in .yaml"
        hint = other if is_file else f"a name among this workflow's own `workflows`, or {other}"
        hint = suggest(step.workflow, workflow.workflows) or hint
        yield Problem((*loc, "workflow"), f"unknown workflow '{step.workflow}'", None, hint)
        return
    for name in step.inputs:
        if name not in inner.inputs:
            hint = suggest(name, inner.inputs)
            yield Problem((*loc, "inputs", name), f"'{step.workflow}' has no input '{name}'", None, hint)
    for name, declared in inner.inputs.items():
        if declared.default is None and name not in step.inputs:
            expected = f"inputs: {{{name}: ...}}"
            yield Problem(loc, f"the input '{name}' of '{step.workflow}' is not given", expected=expected)
    plain = {n: v for n, v in step.inputs.items() if not isinstance(v, str) and n in inner.inputs}
    missing = {n: d.default for n, d in inner.inputs.items() if n not in plain}
    for problem in check_inputs(inner, {**{n: v for n, v in missing.items() if v is not None}, **plain})[1]:
        if problem.loc[1:2] and problem.loc[1] in plain:
            yield replace(problem, loc=(*loc, *problem.loc), in_file=True)
    for name in step.messages:
        message = inner.messages.get(name)
        if message is None:
            hint = suggest(name, inner.messages)
            yield Problem((*loc, "messages", name), f"'{step.workflow}' has no message '{name}'", None, hint)
        elif message.for_each is not None:
            expected = "one without for_each"
            yield Problem((*loc, "messages", name), f"'{name}' is one message for each item", None, expected)
    outputs = list(inner.outputs) or [lay_out(inner).steps[-1].step.step]
    if step.output is not None and step.output not in outputs:
        yield Problem((*loc, "output"), f"no output of '{step.workflow}'", step.output, suggest(step.output, outputs))
    elif step.output is None and len(outputs) > 1:
        yield Problem(loc, f"'{step.workflow}' has several outputs", None, f"output: one of {', '.join(outputs)}")
    for key in sorted({"timeout_s", "retries"} & step.model_fields_set):
        yield Problem((*loc, key), f"`{key}` is for steps that are called", None, "it among the workflow's own steps")


def num_instances(graph: StepGraph, known: dict[int, int] | None = None) -> int:
    """All instances, those of the workflows that steps run included, as far as their lists are known.

    `known` are the sizes of workflows by identity: one may stand in many places.
    """
    known = {} if known is None else known
    sizes: dict[str, int] = {}
    for name, inner in graph.workflow.workflows.items():
        if id(inner) not in known:
            inside, _ = build_graph(inner)
            known[id(inner)] = 0 if inside is None else num_instances(inside, known)
        sizes[name] = known[id(inner)]
    return sum(1 + sizes.get(node.step.workflow or "", 0) for node in graph.nodes.values())
