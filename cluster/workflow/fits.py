"""Whether every view fits the model's context at its worst: every read there, every text as long as it may be."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sized
from dataclasses import dataclass
from typing import Protocol

from laban.cluster.workflow.diagnostics import Loc, Problem
from laban.cluster.workflow.facts import role_of
from laban.cluster.workflow.graph import Node, Source, StepGraph
from laban.cluster.workflow.overrides import SamplingPlan
from laban.cluster.workflow.states import MessageText


class Framing(Protocol):
    """What a model's framing says of a message: its tokens, of which only the number matters here."""

    def root(self, first_role: str) -> Sized: ...
    def message(self, role: str, text: str, name: str | None = None) -> Sized: ...
    def header(self, role: str, name: str | None = None, *, prefill: str = "") -> Sized: ...
    def terminator(self, role: str, *, after_stop_token: bool) -> Sized: ...


@dataclass(frozen=True, slots=True)
class ViewFit:
    """One instance's view at its worst, in tokens. `total` is what it reads and makes, root included."""

    address: str
    total: int
    made: int  # header, max_tokens and terminator
    max_context: int
    model: str = ""  # whose context that is, as the workflow names it; "": the default one

    @property
    def fits(self) -> bool:
        return self.total <= self.max_context


def view_fits(
    graph: StepGraph,
    messages: Mapping[str, MessageText],
    texts: Mapping[str, tuple[str, str | None]],
    plan: SamplingPlan,
    framing: Framing,
    max_context: int,
) -> list[ViewFit]:
    """A ViewFit for every generating instance, in order. A text that is not generated has no bound: it counts as
    empty."""
    size = _sizes(graph, messages, texts, plan, framing)
    roles = {key: message.role for key, message in messages.items()}
    roles |= {address: role_of(node) for address, node in graph.nodes.items()}
    roots = {role: len(framing.root(role)) for role in set(roles.values())}
    fits = []
    for address, node in graph.nodes.items():
        if node.kind != "generate":
            continue
        read = sum(_read(source, size) for source in node.sources)
        first = next((source.keys[0] for source in node.sources if source.keys), address)
        fits.append(
            ViewFit(address, roots[roles[first]] + read + size[address], size[address], max_context, node.model)
        )
    return fits


def range_problems(
    graph: StepGraph,
    messages: Mapping[str, MessageText],
    texts: Mapping[str, tuple[str, str | None]],
    plan: SamplingPlan,
    framing: Framing,
    model: str | None = None,
) -> Iterator[Problem]:
    """Reads whose `begin` or `end` lies beyond a message: for certain, as it is never longer than that. Those of steps
    that call `model`; None: of all."""
    size = _sizes(graph, messages, texts, plan, framing)
    said: set[Loc] = set()
    for address, node in graph.nodes.items():
        if node.kind != "generate" or (model is not None and node.model != model):
            continue
        for source in node.sources:
            if source.index is None or (source.begin is None and source.end is None):
                continue
            for key in (key for key in source.keys if key in messages or _is_bounded(graph.nodes[key], node)):
                name, value, most = "begin", source.begin or 0, size[key] - 1
                if value <= most:
                    name, value, most = "end", source.end or 0, size[key]
                loc = (*node.loc, "read", source.index, name)
                if value > most and loc not in said:
                    said.add(loc)
                    length = size[key] if key in messages else f"at most {size[key]}"
                    message = f"'{address}' reads beyond the end of '{key}', which has {length} tokens with its frame"
                    yield Problem(loc, message, value, f"at most {most}")


def choice_problems(
    graph: StepGraph,
    texts: Mapping[str, tuple[str, str | None]],
    plan: SamplingPlan,
    framing: Framing,
    model: str | None = None,
) -> Iterator[Problem]:
    """Warns of choices that have more tokens than `max_tokens` lets a step generate: it fails where it takes one. Of
    steps that call `model`; None: of all."""
    said: set[Loc] = set()
    for address, node in graph.nodes.items():
        chosen, sampling = node.step.choices, plan.of(node)
        if not isinstance(chosen, list | tuple) or sampling.forced_text is not None or node.loc in said:
            continue
        if model is not None and node.model != model:
            continue
        role, (prefill, name) = role_of(node), texts[address]
        before = len(framing.header(role, name, prefill=prefill))
        lengths = [len(framing.header(role, name, prefill=prefill + choice)) - before for choice in chosen]
        longest = max(lengths)
        if longest > sampling.max_tokens:
            said.add(node.loc)
            loc = (*node.loc, "choices", lengths.index(longest))
            message = f"this choice of '{address}' has {longest} tokens, more than its max_tokens"
            expected = f"a max_tokens of at least {longest}"
            yield Problem(loc, message, sampling.max_tokens, expected, severity="warning")


def _is_bounded(node: Node, reader: Node) -> bool:
    """Whether it is known how long a message can become for its reader. What comes from outside or from other
    workflows, says what failed, or is in another model's tokens may have any length."""
    return node.kind == "generate" and node.step.on_error != "message" and node.model == reader.model


def _sizes(
    graph: StepGraph,
    messages: Mapping[str, MessageText],
    texts: Mapping[str, tuple[str, str | None]],
    plan: SamplingPlan,
    framing: Framing,
) -> dict[str, int]:
    """The most tokens of each message, by key."""
    size = {key: len(framing.message(m.role, m.text, m.name)) for key, m in messages.items()}
    return size | {address: _made(node, texts[address], plan, framing) for address, node in graph.nodes.items()}


def _made(node: Node, texts: tuple[str, str | None], plan: SamplingPlan, framing: Framing) -> int:
    role, (prefill, name) = role_of(node), texts
    if node.kind != "generate":
        return len(framing.message(role, "", name))
    closing = max(len(framing.terminator(role, after_stop_token=after)) for after in (False, True))
    return len(framing.header(role, name, prefill=prefill)) + plan.of(node).max_tokens + closing


def _read(source: Source, size: Mapping[str, int]) -> int:
    """The most tokens that a source's placements take."""
    ends = (size[key] if source.end is None else min(size[key], source.end) for key in source.keys)
    lengths = [max(0, end - (source.begin or 0)) for end in ends]
    if source.num_rounds:  # of each member the last
        return sum(lengths[-len(lengths) // source.num_rounds :])
    # Of a vote's candidates one is read, but of each of its rounds: sum them, round by round, at their longest.
    return max(lengths, default=0) * source.num_chosen if source.vote is not None else sum(lengths)
