"""A workflow drawn: its steps in ranks from left to right, what each reads, and the same as lines of text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from html import escape

from laban.cluster.workflow.blocks import steps_of
from laban.cluster.workflow.graph import Node, StepGraph
from laban.cluster.workflow.selectors import parse_selector

CHAR_PX, LINE_PX = 6.8, 16  # of 12 px sans-serif
GAP_X_PX, GAP_Y_PX, PAD_PX = 56, 18, 10
INK, FAINT = "#1d2b36", "#6b7a86"
FILLS = {"message": "#f4f1e8", "generate": "#e3f0ea", "external": "#e8ecf6", "vote": "#fbeee0", "output": "#ffffff"}


@dataclass(frozen=True, slots=True)
class Box:
    """A fixed message, a step with all its instances, or an output."""

    name: str
    kind: str  # a key of FILLS
    rank: int
    lines: tuple[str, ...]  # below the name
    reads: tuple[str, ...]  # as written


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


def picture_of(graph: StepGraph) -> Picture:
    """Steps as boxes, one however many instances it has. An agent's prompt is named in its box, not drawn."""
    workflow, steps = graph.workflow, steps_of(graph.workflow)
    outputs = {f"outputs.{name}": output for name, output in graph.outputs.items()}
    sources = {step.step: _names_read([read.read for read in step.read]) for step in steps}
    sources |= {unit: [_step_of(key, graph) for key in output.source.keys] for unit, output in outputs.items()}
    sources = {reader: list(dict.fromkeys(names)) for reader, names in sources.items()}
    ranks, back = _ranks(sources)
    read = {name for names in sources.values() for name in names}
    fixed = {name: message for name, message in workflow.messages.items() if name in read}
    boxes = [
        Box(name, "message", 0, (message.role if message.for_each is None else f"for each of {message.for_each}",), ())
        for name, message in fixed.items()
    ]
    for step in steps:
        kind = "external" if step.external is not None else "vote" if step.vote is not None else "generate"
        instances = [node for node in graph.nodes.values() if node.step is step]
        boxes.append(Box(step.step, kind, ranks[step.step], _about(instances), tuple(r.read for r in step.read)))
    last = max(box.rank for box in boxes) + 1
    boxes += [Box(unit, "output", last, (), ()) for unit in outputs]
    arrows = [Arrow(s, reader, (s, reader) in back) for reader, names in sources.items() for s in names]
    return Picture(workflow.name, tuple(sorted(boxes, key=lambda box: box.rank)), tuple(arrows))


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


def _about(instances: list[Node]) -> tuple[str, ...]:
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
    if rounds:
        lines.append(f"{rounds} rounds")
    return tuple(lines)


def _ranks(sources: Mapping[str, list[str]]) -> tuple[dict[str, int], set[tuple[str, str]]]:
    """Each step one right of the rightmost that it reads; reads that close a cycle (of rounds) do not count."""
    ranks: dict[str, int] = {}
    back: set[tuple[str, str]] = set()
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
    about = {box.name: ", ".join(box.lines) for box in steps}
    about_width = max(map(len, about.values()))
    lines = [picture.title]
    fixed = [box.name for box in picture.boxes if box.kind == "message"]
    if fixed:
        lines.append(f"   given: {', '.join(fixed)}")
    for box in steps:
        reads = f"reads {', '.join(box.reads)}" if box.reads else "reads nothing"
        lines.append(f"{box.rank:>2} {box.name:<{width}}  {about[box.name]:<{about_width}}  {reads}".rstrip())
    for arrow in picture.arrows:
        if arrow.reader.startswith("outputs."):
            lines.append(f"-> {arrow.reader.removeprefix('outputs.')}: {arrow.source}")
    return lines


def svg_of(picture: Picture) -> str:
    """The picture as one SVG document, without scripts or fonts of its own."""
    ranks = sorted({box.rank for box in picture.boxes})
    placed: dict[str, tuple[float, float, float, float]] = {}  # name -> x, y, width, height
    x, bottom = float(PAD_PX), 0.0
    for rank in ranks:
        column = [box for box in picture.boxes if box.rank == rank]
        width = max(len(text) for box in column for text in (_shown(box), *box.lines)) * CHAR_PX + 2 * PAD_PX
        y = 2.0 * PAD_PX + LINE_PX
        for box in column:
            height = (1 + len(box.lines)) * LINE_PX + PAD_PX
            placed[box.name] = (x, y, width, height)
            y += height + GAP_Y_PX
        bottom = max(bottom, y)
        x += width + GAP_X_PX
    total_width, total_height = x - GAP_X_PX + PAD_PX, bottom + PAD_PX
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {total_width:.0f} {total_height:.0f}"'
        f' width="{total_width:.0f}" font-family="Helvetica, Arial, sans-serif" font-size="12">',
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        f'<path d="M0 0L8 4L0 8z" fill="{FAINT}"/></marker></defs>',
        f'<rect width="100%" height="100%" fill="#ffffff"/><text x="{PAD_PX}" y="{PAD_PX + 12}" fill="{INK}"'
        f' font-weight="bold">{escape(picture.title)}</text>',
    ]
    parts += [_arrow(arrow, placed) for arrow in picture.arrows]
    parts += [_box(box, placed[box.name]) for box in picture.boxes]
    return "\n".join([*parts, "</svg>", ""])


def _shown(box: Box) -> str:
    return box.name.removeprefix("outputs.") if box.kind == "output" else box.name


def _box(box: Box, place: tuple[float, float, float, float]) -> str:
    x, y, width, height = place
    styles = [f'fill="{INK}" font-weight="bold"', *[f'fill="{FAINT}"'] * len(box.lines)]
    texts = [
        f'<text x="{x + PAD_PX:.0f}" y="{y + number * LINE_PX:.0f}" {style}>{escape(line)}</text>'
        for number, (line, style) in enumerate(zip((_shown(box), *box.lines), styles, strict=True), 1)
    ]
    dashes = ' stroke-dasharray="4 3"' if box.kind in ("message", "output") else ""
    shape = (
        f'<rect x="{x:.0f}" y="{y:.0f}" width="{width:.0f}" height="{height:.0f}" rx="6" fill="{FILLS[box.kind]}"'
        f' stroke="{FAINT}"{dashes}/>'
    )
    reads = f"<title>reads {escape(', '.join(box.reads))}</title>" if box.reads else ""
    return f"<g>{reads}{shape}{''.join(texts)}</g>"


def _arrow(arrow: Arrow, placed: Mapping[str, tuple[float, float, float, float]]) -> str:
    from_x, from_y, from_width, from_height = placed[arrow.source]
    to_x, to_y, to_width, to_height = placed[arrow.reader]
    if arrow.earlier:  # back, or around itself: below the boxes, dashed
        x1, x2 = from_x + from_width * 0.7, to_x + to_width * 0.3
        y1, y2 = from_y + from_height, to_y + to_height
        low = max(y1, y2) + GAP_Y_PX * 0.9
        corners, dashes = (x1, y1, x1, low, x2, low, x2, y2 + 1), ' stroke-dasharray="3 3"'
    else:
        x1, y1 = from_x + from_width, from_y + from_height / 2
        x2, y2 = to_x, to_y + to_height / 2
        bend = max(GAP_X_PX / 2, (x2 - x1) / 2)
        corners, dashes = (x1, y1, x1 + bend, y1, x2 - bend, y2, x2 - 1, y2), ""
    at = [f"{corner:.0f}" for corner in corners]
    curve = f"M{' '.join(at[:2])}C{' '.join(at[2:])}"
    return f'<path d="{curve}" fill="none" stroke="{FAINT}" marker-end="url(#tip)"{dashes}/>'
