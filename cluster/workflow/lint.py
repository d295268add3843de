"""Everything that can be said of a workflow before it runs."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice

from laban.cluster.workflow.autos import unchosen
from laban.cluster.workflow.blocks import lay_out, steps_of
from laban.cluster.workflow.build import build_graph
from laban.cluster.workflow.diagnostics import Diagnostic, Loc, Problem
from laban.cluster.workflow.fits import Framing, ViewFit, choice_problems, range_problems, view_fits
from laban.cluster.workflow.graph import Bound, StepGraph, prompt_key
from laban.cluster.workflow.inputs import check_inputs, placeholder
from laban.cluster.workflow.models import unknown_adapters, unknown_models
from laban.cluster.workflow.overrides import SamplingPlan, check_fidelity, plan_sampling
from laban.cluster.workflow.schema import Workflow
from laban.cluster.workflow.states import MessageText, Overrides
from laban.cluster.workflow.texts import fixed_messages, instance_texts, used_variables
from laban.cluster.workflow.visibility import Blockage, Leak, Visibility, private_leaks

MAX_LEAKS = 1_000  # listed; private ones are all errors besides

_NO_OVERRIDES = Overrides()


@dataclass(frozen=True, slots=True)
class LintReport:
    """`views` is empty unless a framing and a context were given, or if there are errors before it.

    `leaks` lists at most MAX_LEAKS.
    """

    diagnostics: tuple[Diagnostic, ...] = ()
    num_instances: int = 0
    leaks: tuple[Leak, ...] = ()
    blockages: tuple[Blockage, ...] = ()
    views: tuple[ViewFit, ...] = ()

    @property
    def ok(self) -> bool:
        return not any(d.severity == "error" for d in self.diagnostics)


def lint(
    workflow: Workflow,
    inputs: Mapping[str, object] | None = None,
    overrides: Overrides = _NO_OVERRIDES,
    *,
    framing: Framing | None = None,
    max_context: int | None = None,
    models: Mapping[str, tuple[Framing, int]] | None = None,
    adapters: Mapping[str, Collection[str]] | None = None,
    configured: bool = True,
    estimated: bool = False,
) -> LintReport:
    """What a parsed workflow would do wrong, leak or block. `parse_yaml` has found what keeps it from running at all.

    Inputs that are missing are stood in for, and said so: the lengths of views then leave them out. `models` are those
    that steps may name, each with its framing and its context; None: all are measured as the default one. `adapters`
    are those of each model that is served, by its name, the default's first; None: nothing is said of either. A name
    that is none of these is an error; a warning if nobody `configured` what is served: the file may be for another one.
    `estimated`: the framing's lengths are no model's own, so nothing is said of token ranges.
    """
    level, problems = check_fidelity(overrides)
    given = dict(inputs or {})
    is_whole = not estimated  # whether lengths are known
    for name, declared in workflow.inputs.items():
        if name not in given and declared.default is None:
            given[name], is_whole = placeholder(declared), False
            message = f"input '{name}' has no default: its length is not counted"
            problems.append(Problem(("inputs", name), message, severity="info"))
    values, more = check_inputs(workflow, given)
    problems += more
    if _fatal(problems):
        return LintReport(tuple(workflow.marks.locate(problems)))
    graph, more = build_graph(workflow, level, values)
    problems += more
    if graph is None:
        return LintReport(tuple(workflow.marks.locate(problems)))
    messages, more = fixed_messages(workflow, values)
    texts, even_more = instance_texts(graph, values)
    plan, last = plan_sampling(graph, overrides)
    problems += [*more, *even_more, *last, *private_leaks(graph)]
    problems += [*_unused(workflow, graph), *_empty(messages), *_same_texts(graph, plan, texts)]
    problems += [*_trailing_spaces(graph, texts), *unchosen(workflow, overrides)]
    problems += [] if adapters is None else _not_served(workflow, adapters, configured)
    views: list[ViewFit] = []
    if framing is not None and max_context is not None and not more and not even_more:
        parts = (graph, messages, texts, plan)
        views = _views(*parts, framing, max_context, models)
        problems += _too_long(graph, views)
        problems += [] if estimated else _long_choices(graph, texts, plan, framing, models)
        problems += _within(workflow, framing, max_context, models, estimated)
        if is_whole:
            problems += range_problems(*parts, framing, None if models is None else "")
            for name, (own_framing, _) in (models or {}).items():
                problems += range_problems(*parts, own_framing, name)
    visibility = Visibility(graph)
    leaks, blockages = tuple(islice(visibility.leaks(), MAX_LEAKS)), tuple(visibility.blockages())
    return LintReport(tuple(workflow.marks.locate(problems)), len(graph.nodes), leaks, blockages, tuple(views))


def _not_served(workflow: Workflow, adapters: Mapping[str, Collection[str]], configured: bool) -> Iterator[Problem]:
    default = next(iter(adapters.values()))
    found = unknown_models(workflow, adapters) or unknown_adapters(workflow, lambda name: adapters.get(name, default))
    for problem in found:
        yield problem if configured else replace(problem, severity="warning")


def _views(
    graph: StepGraph,
    messages: Mapping[str, MessageText],
    texts: Mapping[str, tuple[str, str | None]],
    plan: SamplingPlan,
    framing: Framing,
    max_context: int,
    models: Mapping[str, tuple[Framing, int]] | None,
) -> list[ViewFit]:
    """Each measured with the model that its step calls."""
    views = view_fits(graph, messages, texts, plan, framing, max_context)
    for name, measure in (models or {}).items():
        own = {fit.address: fit for fit in view_fits(graph, messages, texts, plan, *measure)}
        views = [own[fit.address] if graph.nodes[fit.address].model == name else fit for fit in views]
    return views


def _long_choices(
    graph: StepGraph,
    texts: Mapping[str, tuple[str, str | None]],
    plan: SamplingPlan,
    framing: Framing,
    models: Mapping[str, tuple[Framing, int]] | None,
) -> Iterator[Problem]:
    yield from choice_problems(graph, texts, plan, framing, None if models is None else "")
    for name, (own_framing, _) in (models or {}).items():
        yield from choice_problems(graph, texts, plan, own_framing, name)


def _within(
    workflow: Workflow,
    framing: Framing,
    max_context: int,
    models: Mapping[str, tuple[Framing, int]] | None,
    estimated: bool,
) -> Iterator[Problem]:
    """Views and choices of the workflows that steps run. Warnings: what a step puts in the place of inputs and messages
    may be shorter."""
    for name, inner in workflow.workflows.items():
        given = {key: placeholder(declared) for key, declared in inner.inputs.items() if declared.default is None}
        values, problems = check_inputs(inner, given)
        graph, more = build_graph(inner, None, values)
        problems += more
        if graph is None or _fatal(problems):
            continue
        messages, problems = fixed_messages(inner, values)
        texts, more = instance_texts(graph, values)
        if problems or more:
            continue
        plan, _ = plan_sampling(graph, _NO_OVERRIDES)
        found = [*_too_long(graph, _views(graph, messages, texts, plan, framing, max_context, models))]
        found += [] if estimated else _long_choices(graph, texts, plan, framing, models)
        found += _within(inner, framing, max_context, models, estimated)
        for problem in found:
            yield replace(problem, loc=("workflows", name, *problem.loc), severity="warning")


def _fatal(problems: list[Problem]) -> bool:
    return any(problem.severity == "error" for problem in problems)


def _too_long(graph: StepGraph, views: list[ViewFit]) -> Iterator[Problem]:
    """One error a step, for its longest view."""
    worst: dict[Loc, ViewFit] = {}
    for view in views:
        loc = graph.nodes[view.address].loc
        if not view.fits and (loc not in worst or view.total > worst[loc].total):
            worst[loc] = view
    for loc, view in worst.items():
        read = view.total - view.made
        message = (
            f"the view of '{view.address}' may outgrow the model's context: reads {read} tokens, makes {view.made}"
        )
        yield Problem(loc, message, view.total, f"at most {view.max_context} tokens")


def _unused(workflow: Workflow, graph: StepGraph) -> Iterator[Problem]:
    """Warnings for parts that nothing uses."""
    read = {key for node in graph.nodes.values() for source in node.sources for key in source.keys}
    read |= {key for output in graph.outputs.values() for key in output.source.keys}
    variables = used_variables(workflow) | _fanned_out(workflow)
    for bound in _expressions(graph):
        variables |= bound.expression.variables
        read |= {key for use in bound.uses for key in use.keys}
    agents = {node.agent for node in graph.nodes.values()}
    steps = {node.step.step for address, node in graph.nodes.items() if graph.readers[address]}
    for name in workflow.inputs:
        if name not in variables:
            yield Problem(("inputs", name), f"no template or expression uses the input '{name}'", severity="warning")
    for name, keys in graph.fixed.items():
        if read.isdisjoint(keys):
            yield Problem(("messages", name), f"no step reads the message '{name}'", severity="warning")
    for name in workflow.agents:
        if name not in agents:
            yield Problem(("agents", name), f"no step runs as the agent '{name}'", severity="warning")
    for placed in lay_out(workflow).steps:
        if placed.step.step not in steps:
            message = f"no step and no output reads the step '{placed.step.step}'"
            yield Problem(placed.loc, message, severity="warning")


def _expressions(graph: StepGraph) -> Iterator[Bound]:
    """Every expression, as each instance sees it."""
    yield from (gate.condition for gate in graph.gates.values() if gate.condition is not None)
    for node in graph.nodes.values():
        yield from (value for value in node.arguments.values() if isinstance(value, Bound))
        yield from (source.order for source in node.sources if source.order is not None)


def _fanned_out(workflow: Workflow) -> set[str | None]:
    """The lists that something fans out over."""
    lists = {message.for_each for message in workflow.messages.values()}
    return lists | {step.for_each.input for step in steps_of(workflow) if step.for_each is not None}


def _empty(messages: Mapping[str, MessageText]) -> Iterator[Problem]:
    for key, message in messages.items():
        if not message.text.strip():
            name = key.removeprefix("agent:")
            agents = key == prompt_key(name)
            loc = ("agents", name, "prompt") if agents else ("messages", key.partition("[")[0], "text")
            which = "" if agents or "[" not in key else f" of '{key}'"
            yield Problem(loc, f"the text{which} is empty", severity="warning")


def _same_texts(graph: StepGraph, plan: SamplingPlan, texts: Mapping[str, tuple[str, str | None]]) -> Iterator[Problem]:
    """Warns of a greedy fan-out whose members read and start the same: they will all say the same."""
    groups: dict[object, list[str]] = {}
    for address, node in graph.nodes.items():
        if node.member is not None and node.kind == "generate" and plan.of(node).temperature == 0:
            key = (node.loc, node.round, node.sources, texts[address], plan.of(node).forced_text)
            groups.setdefault(key, []).append(address)
    said: set[Loc] = set()
    for group in groups.values():
        loc = graph.nodes[group[0]].loc
        if len(group) > 1 and loc not in said:
            said.add(loc)
            message = f"'{group[0]}' and '{group[1]}' read the same and are greedy: they will say the same"
            yield Problem(loc, message, expected="a temperature above 0", severity="warning")


def _trailing_spaces(graph: StepGraph, texts: Mapping[str, tuple[str, str | None]]) -> Iterator[Problem]:
    """Warns of prefills that end in a space: tokenizers join it to the next word, so models go astray after one."""
    ending = {graph.nodes[address].loc for address, (prefill, _) in texts.items() if prefill.endswith(" ")}
    for loc in sorted(ending, key=str):
        message = "the prefill ends in a space: most tokenizers join it to the word that follows"
        yield Problem((*loc, "prefill"), message, expected="no space at the end", severity="warning")
