"""A workflow as a picture: its steps in ranks from left to right and what each reads; and the same as lines of text."""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from typing import Literal

from laban.cluster.workflow.blocks import Layout, Placed, lay_out
from laban.cluster.workflow.expressions import parse_expression
from laban.cluster.workflow.graph import Node, StepGraph
from laban.cluster.workflow.schema import Loop, Step
from laban.cluster.workflow.selectors import parse_selector


@dataclass(frozen=True, slots=True)
class Box:
    """A fixed message, a step with all its instances, or an output; `loop` names the loop that it is in."""

    name: str
    kind: Literal["message", "generate", "external", "workflow", "vote", "output"]
    rank: int
    lines: tuple[str, ...]  # below the name
    reads: tuple[str, ...]  # as written
    loop: str = ""


@dataclass(frozen=True, slots=True)
class Arrow:
    """`reader` reads what `source` made; `earlier`: in a round before its own."""

    source: str
    reader: str
    earlier: bool


@dataclass(frozen=True, slots=True)
class Picture:
    title: str
    boxes: tuple[Box, ...]  # by rank, then as in the file
    arrows: tuple[Arrow, ...]
    loops: Mapping[str, str] = field(default_factory=dict)  # name -> what is said of it


def picture_of(graph: StepGraph) -> Picture:
    """Steps as boxes, one however many instances it has. An agent's prompt is named in its box, not drawn."""
    workflow, layout = graph.workflow, lay_out(graph.workflow)
    outputs = {f"outputs.{name}": output for name, output in graph.outputs.items()}
    sources = {placed.step.step: _sources(placed.step) for placed in layout.steps}
    sources |= {unit: [_step_of(key, graph) for key in output.source.keys] for unit, output in outputs.items()}
    sources = {reader: list(dict.fromkeys(names)) for reader, names in sources.items()}
    earlier = {(s, placed.step.step) for placed in layout.steps for s in _read_late(placed.step)}
    ranks, back = _ranks(sources, earlier)
    read = {name for names in sources.values() for name in names}
    fixed = {name: message for name, message in workflow.messages.items() if name in read}
    boxes = [
        Box(name, "message", 0, (message.role if message.for_each is None else f"for each of {message.for_each}",), ())
        for name, message in fixed.items()
    ]
    instances: dict[str, list[Node]] = {}
    for node in graph.nodes.values():
        instances.setdefault(node.step.step, []).append(node)
    for placed in layout.steps:
        step = placed.step
        lines = (*_about(instances[step.step], in_loop=placed.loop is not None), *_guards(placed, layout))
        reads = (*(r.read for r in step.read), *(m.read for m in step.messages.values()))
        boxes.append(Box(step.step, _kind(step), ranks[step.step], lines, reads, placed.loop or ""))
    last = max(box.rank for box in boxes) + 1
    boxes += [Box(unit, "output", last, (), ()) for unit in outputs]
    arrows = [Arrow(s, reader, (s, reader) in back) for reader, names in sources.items() for s in names]
    loops = {name: _said(place.loop) for name, place in layout.loops.items()}
    return Picture(workflow.name, tuple(sorted(boxes, key=lambda box: box.rank)), tuple(arrows), loops)


def _kind(step: Step) -> Literal["generate", "external", "workflow", "vote"]:
    if step.external is not None:
        return "external"
    return "workflow" if step.workflow is not None else "vote" if step.vote is not None else "generate"


def _sources(step: Step) -> list[str]:
    """The messages and steps whose texts or values a step takes."""
    given = step.external.args if step.external is not None else step.inputs
    expressions = [value for value in given.values() if isinstance(value, str)]
    expressions += [step.choices] if isinstance(step.choices, str) else []
    expressions += [read.order for read in step.read if read.order is not None]
    reads = [read.read for read in step.read] + [message.read for message in step.messages.values()]
    reads += [reference.selector for text in expressions for reference in parse_expression(text).references]
    return _names_read(reads)


def _guards(placed: Placed, layout: Layout) -> list[str]:
    """The conditions under which a step runs, its loop's apart."""
    outside = () if placed.loop is None else layout.loops[placed.loop].guards
    conditions = [(layout.conditions[g.condition].text, g.holds) for g in placed.guards if g not in outside]
    lines = [_cut(f"when {text}" if holds else f"unless {text}") for text, holds in conditions]
    return lines + ([_cut(f"when {placed.step.when}")] if placed.step.when is not None else [])


def _said(loop: Loop) -> str:
    until = f", until {loop.until}" if loop.until is not None else ""
    return _cut(f"{'at most ' if until else ''}{loop.max} rounds{until}", 90)


def _cut(text: str, size: int = 40) -> str:
    return text if len(text) <= size else f"{text[: size - 3]}..."


def _read_late(step: Step) -> set[str]:
    """What a step reads of earlier rounds only."""
    read = [parse_selector(read.read) for read in step.read]
    late = {selector.name for selector in read if "previous" in selector.arguments or selector.name == step.step}
    return late - {selector.name for selector in read if "previous" not in selector.arguments} | (late & {step.step})


def _names_read(reads: list[str]) -> list[str]:
    """The messages and steps that reads name, a winner's vote included."""
    names = []
    for text in reads:
        selector = parse_selector(text)
        names.append(selector.name)
        names += [argument.vote for argument in selector.arguments if not isinstance(argument, str | int)]
    return [name for name in names if name != "prompt"]


def _step_of(key: str, graph: StepGraph) -> str:
    return graph.nodes[key].step.step if key in graph.nodes else key.partition("[")[0]


def _about(instances: list[Node], *, in_loop: bool) -> tuple[str, ...]:
    """Who runs a step, and how often."""
    members = list(dict.fromkeys(node.member for node in instances if node.member is not None))
    rounds = len({node.round for node in instances if node.round is not None})
    lines = []
    fan_out = instances[0].step.for_each
    if fan_out is not None and fan_out.input is not None:
        lines.append(f"for each of {fan_out.input}")
    elif fan_out is not None and fan_out.batch is not None:
        lines.append(f"for each {fan_out.size} of {fan_out.batch}")
    elif members and isinstance(members[0], str):
        names = ", ".join(map(str, members[:3])) + (f" and {len(members) - 3} more" if len(members) > 3 else "")
        lines.append(f"for each of {names}")
    elif members:
        lines.append(f"{len(members)} times, side by side")
    elif instances[0].agent is not None:
        lines.append(f"as {instances[0].agent}")
    step = instances[0].step
    if step.workflow is not None:
        lines.append(f"runs {step.workflow}")
    if step.external is not None:
        lines.append(f"asks {step.external.tool or step.step}")
    if rounds and not in_loop:
        lines.append(f"{rounds} rounds")
    models = list(dict.fromkeys(node.model for node in instances if node.model and node.kind == "generate"))
    if models:
        lines.append(f"by {', '.join(models)}")
    return tuple(lines)


def _ranks(
    sources: Mapping[str, list[str]], earlier: Set[tuple[str, str]]
) -> tuple[dict[str, int], set[tuple[str, str]]]:
    """Each step one right of the rightmost that it reads; reads of `earlier` rounds, and others that close a cycle of
    rounds, do not count."""
    ranks: dict[str, int] = {}
    back = set(earlier)
    for start in sources:
        stack = [(start, iter(sources[start]))] if start not in ranks else []
        open_ = {start}
        while stack:
            reader, rest = stack[-1]
            source = next(rest, None)
            if source is None:
                stack.pop()
                open_.discard(reader)
                before = [ranks.get(s, 0) for s in sources[reader] if (s, reader) not in back]
                ranks[reader] = 1 + max(before, default=0)
            elif (source, reader) in back:
                continue
            elif source in open_:
                back.add((source, reader))
            elif source in sources and source not in ranks:
                open_.add(source)
                stack.append((source, iter(sources[source])))
    return ranks, back


def lines_of(picture: Picture) -> list[str]:
    """The picture as text: a line a step, those that can start sooner first."""
    steps = [box for box in picture.boxes if box.kind not in ("message", "output")]
    width = max(len(box.name) for box in steps)
    about = {box.name: ", ".join((*box.lines, *([f"in {box.loop}"] if box.loop else []))) for box in steps}
    about_width = max(map(len, about.values()))
    lines = [picture.title]
    fixed = [box.name for box in picture.boxes if box.kind == "message"]
    if fixed:
        lines.append(f"   given: {', '.join(fixed)}")
    for name, said in picture.loops.items():
        lines.append(f"   loop {name}: {said}")
    for box in steps:
        reads = f"reads {', '.join(box.reads)}" if box.reads else "reads nothing"
        lines.append(f"{box.rank:>2} {box.name:<{width}}  {about[box.name]:<{about_width}}  {reads}".rstrip())
    for arrow in picture.arrows:
        if arrow.reader.startswith("outputs."):
            lines.append(f"-> {arrow.reader.removeprefix('outputs.')}: {arrow.source}")
    return lines
