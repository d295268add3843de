"""A picture as one SVG document, without scripts or fonts of its own."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

from laban.cluster.workflow.picture import Arrow, Box, Picture

CHAR_PX, LINE_PX = 6.8, 16  # of 12 px sans-serif
GAP_X_PX, GAP_Y_PX, PAD_PX = 56, 18, 10
INK, FAINT = "#1d2b36", "#6b7a86"
FILLS = {
    "message": "#f4f1e8", "generate": "#e3f0ea", "external": "#e8ecf6", "workflow": "#efe6f5", "vote": "#fbeee0",
    "output": "#ffffff",
}  # fmt: skip

Place = tuple[float, float, float, float]  # x, y, width, height


def svg_of(picture: Picture) -> str:
    """The whole document."""
    placed, frames = _place(picture)
    right = max(x + width for x, _, width, _ in (*placed.values(), *frames.values()))
    bottom = max(y + height for _, y, _, height in (*placed.values(), *frames.values()))
    total_width, total_height = right + PAD_PX, bottom + 2 * GAP_Y_PX
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {total_width:.0f} {total_height:.0f}"'
        f' width="{total_width:.0f}" font-family="Helvetica, Arial, sans-serif" font-size="12">',
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        f'<path d="M0 0L8 4L0 8z" fill="{FAINT}"/></marker></defs>',
        f'<rect width="100%" height="100%" fill="#ffffff"/><text x="{PAD_PX}" y="{PAD_PX + 12}" fill="{INK}"'
        f' font-weight="bold">{escape(picture.title)}</text>',
    ]
    parts += [_frame(name, picture.loops.get(name, ""), place) for name, place in frames.items()]
    parts += [_arrow(arrow, placed) for arrow in picture.arrows]
    parts += [_box(box, placed[box.name]) for box in picture.boxes]
    return "\n".join([*parts, "</svg>", ""])


def _place(picture: Picture) -> tuple[dict[str, Place], dict[str, Place]]:
    """Where boxes stand, and the frames of loops: each loop has a band of its own below what is in no loop."""
    columns: dict[int, tuple[float, float]] = {}  # rank -> x, width
    x = float(PAD_PX)
    for rank in sorted({box.rank for box in picture.boxes}):
        texts = (text for box in picture.boxes if box.rank == rank for text in (_shown(box), *box.lines))
        columns[rank] = x, max(map(len, texts)) * CHAR_PX + 2 * PAD_PX
        x += columns[rank][1] + GAP_X_PX
    placed: dict[str, Place] = {}
    frames: dict[str, Place] = {}
    top = 2.0 * PAD_PX + LINE_PX
    for band in ("", *dict.fromkeys(box.loop for box in picture.boxes if box.loop)):
        first = top + (LINE_PX + PAD_PX if band else 0)
        at = dict.fromkeys(columns, first)
        inside = [box for box in picture.boxes if box.loop == band]
        for box in inside:
            height = (1 + len(box.lines)) * LINE_PX + PAD_PX
            placed[box.name] = (*columns[box.rank][:1], at[box.rank], columns[box.rank][1], height)
            at[box.rank] += height + GAP_Y_PX
        bottom = max(at.values())
        if band:
            left = min(columns[box.rank][0] for box in inside) - PAD_PX / 2
            right = max(sum(columns[box.rank]) for box in inside) + PAD_PX / 2
            said = len(f"{band}: {picture.loops.get(band, '')}") * CHAR_PX + 2 * PAD_PX
            frames[band] = (left, top, max(right - left, said), bottom - top + GAP_Y_PX / 2)
            bottom += GAP_Y_PX
        top = bottom + (GAP_Y_PX if band else 0)
    return placed, frames


def _frame(name: str, said: str, place: Place) -> str:
    x, y, width, height = place
    return (
        f'<rect x="{x:.0f}" y="{y:.0f}" width="{width:.0f}" height="{height:.0f}" rx="8" fill="none" stroke="{FAINT}"'
        f' stroke-dasharray="2 3"/><text x="{x + PAD_PX:.0f}" y="{y + LINE_PX:.0f}" fill="{FAINT}">'
        f"{escape(f'{name}: {said}' if said else name)}</text>"
    )


def _shown(box: Box) -> str:
    return box.name.removeprefix("outputs.") if box.kind == "output" else box.name


def _box(box: Box, place: Place) -> str:
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


def _arrow(arrow: Arrow, placed: Mapping[str, Place]) -> str:
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
