"""An audit's report as one HTML page that needs nothing else: styles and pictures are in it, scripts are none."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape

from laban.cluster.audit.advice import Advice
from laban.cluster.audit.report import Measured, Report
from laban.cluster.audit.table import advice_line

COLOURS = ("#3b6fb6", "#c0701f", "#3f8f5b", "#8a4fa3", "#a33f4f", "#5f6b73")
WIDTH = 720
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1c2126;
       background: #fff; }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2rem }
table { border-collapse: collapse; font-variant-numeric: tabular-nums } td, th { padding: .2rem .6rem;
       text-align: right; border-bottom: 1px solid #d8dde2 } td:nth-child(-n+2), th:nth-child(-n+2) { text-align: left }
svg text { font: 12px system-ui, sans-serif; fill: #1c2126 } .faint { color: #5f6b73 }
@media (prefers-color-scheme: dark) { body { color: #e4e8eb; background: #15191c } svg text { fill: #e4e8eb }
       td, th { border-color: #343b41 } .faint { color: #9aa5ad } }
"""


def page(report: Report, advice: Sequence[Advice], tolerance: float) -> str:
    """The whole page. Texts come from models and files: all are escaped."""
    title = f"Audit of {report.name}"
    parts = [
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{escape(title)}</title><style>{STYLE}</style>",
        f"<h1>{escape(title)}</h1>",
        f"<p>{report.num_inputs} inputs were run under <b>exact</b>; each run was replayed on the same text under "
        f"{escape(', '.join(report.levels)) or 'no other level'}. KL is of the whole vocabulary, in nats a token; "
        "intervals are of 95 %, over inputs.</p>",
        "<h2>What it costs, what it saves</h2>",
        _trade(report),
        "<h2>Divergence by step</h2>",
        _bars([row for row in report.steps if not row.is_same], tolerance),
        _table(report.wholes + report.steps),
    ]
    if report.reads:
        parts += ["<h2>One read at the level, the others exact</h2>", _bars(report.reads, tolerance)]
        parts.append(_table(report.reads))
    if any(row.num_decisions for row in report.wholes):
        parts += ["<h2>Decisions that flip</h2>", _flips(report)]
    if report.gains:
        parts += ["<h2>Time</h2>", _gains(report)]
    parts += ["<h2>Recommendation</h2>", f"<p>Within a tolerance of {tolerance:g}:</p>"]
    parts.append(_list(advice_line(one) for one in advice) or "<p>No step depends on the level.</p>")
    notes = [f"line {one.line} was left out: {one.error}" for one in report.failed]
    notes += [f"{one.level or one.address} was not measured: {one.reason}" for one in report.refused]
    if report.why or notes:
        parts += ["<h2>Notes</h2>", _list([*report.why, *notes])]
    return "\n".join(parts) + "\n"


def _colour(report_levels: Sequence[str], level: str) -> str:
    return COLOURS[list(report_levels).index(level) % len(COLOURS)]


def _trade(report: Report) -> str:
    """Each level's share of tokens encoded again, and its divergence."""
    rows, height, left, bottom = report.wholes, 240, 70, 200
    most = max((row.kl_interval[1] if row.kl_interval else row.kl_mean for row in rows), default=0.0) or 1.0
    drawn = [f'<svg viewBox="0 0 {WIDTH} {height}" width="100%" role="img" aria-label="divergence against cost">']
    drawn.append(_axes(left, bottom, "share of the tokens read that are encoded again", "KL"))
    for share in (0, 0.25, 0.5, 0.75, 1):
        x = left + share * (WIDTH - left - 120)
        drawn.append(f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{share:.0%}</text>')
    for share in (0.0, 0.5, 1.0):
        y = bottom - share * (bottom - 20)
        drawn.append(f'<text x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{share * most:.3g}</text>')
    for row in rows:
        x = left + row.reencoded_share * (WIDTH - left - 120)
        low, high = row.kl_interval or (row.kl_mean, row.kl_mean)
        y, top, base = (bottom - kl / most * (bottom - 20) for kl in (row.kl_mean, high, low))
        colour = _colour(report.levels, row.level)
        drawn.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{top:.1f}" y2="{base:.1f}" stroke="{colour}"/>')
        drawn.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="{colour}"/>')
        drawn.append(f'<text x="{x + 9:.1f}" y="{y + 4:.1f}">{escape(row.level)}</text>')
    return "".join([*drawn, "</svg>"])


def _axes(left: int, bottom: int, below: str, beside: str) -> str:
    grey = "#9aa5ad"
    return (
        f'<line x1="{left}" x2="{WIDTH - 100}" y1="{bottom}" y2="{bottom}" stroke="{grey}"/>'
        f'<line x1="{left}" x2="{left}" y1="10" y2="{bottom}" stroke="{grey}"/>'
        f'<text x="{(left + WIDTH - 100) / 2}" y="{bottom + 34}" text-anchor="middle">{below}</text>'
        f'<text x="8" y="20">{beside}</text>'
    )


def _bars(rows: Sequence[Measured], tolerance: float) -> str:
    """The mean of each, its interval or else the 95th percentile as a line, and the tolerance."""
    if not rows:
        return "<p>Every view is the one that exact gives.</p>"
    left, step, levels = 220, 22, list(dict.fromkeys(row.level for row in rows))
    most = max([tolerance, *(max(row.kl_mean, (row.kl_interval or (0, 0))[1]) for row in rows)]) or 1.0
    scale = (WIDTH - left - 80) / most
    height = step * len(rows) + 30
    drawn = [f'<svg viewBox="0 0 {WIDTH} {height}" width="100%" role="img" aria-label="divergence by step">']
    for number, row in enumerate(rows):
        y, colour = step * number + 6, _colour(levels, row.level)
        name = f"{row.step}{'' if row.read is None else f', read {row.read + 1}'} · {row.level}"
        drawn.append(f'<text x="{left - 8}" y="{y + 12}" text-anchor="end">{escape(name)}</text>')
        width = max(1.0, row.kl_mean * scale)
        drawn.append(f'<rect x="{left}" y="{y}" width="{width:.1f}" height="14" fill="{colour}" opacity="0.75"/>')
        end = width
        if row.kl_interval is not None:
            low, high = (left + kl * scale for kl in row.kl_interval)
            drawn.append(f'<line x1="{low:.1f}" x2="{high:.1f}" y1="{y + 7}" y2="{y + 7}" stroke="{colour}"/>')
            end = max(width, high - left)
        drawn.append(f'<text x="{left + end + 6:.1f}" y="{y + 12}">{row.kl_mean:.3g}</text>')
    x = left + tolerance * scale
    drawn.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{height - 24}" stroke="#a33f4f" stroke-dasharray="4 3"/>')
    drawn.append(f'<text x="{x:.1f}" y="{height - 8}" text-anchor="middle">tolerance {tolerance:g}</text>')
    return "".join([*drawn, "</svg>"])


def _table(rows: Sequence[Measured]) -> str:
    head = ("step", "level", "KL mean", "95 %", "KL p95", "top-1", "log-likelihood", "re-encoded", "flips")
    cells = [_cells(head, "th")]
    for row in rows:
        interval = "" if row.kl_interval is None else f"{row.kl_interval[0]:.4f} to {row.kl_interval[1]:.4f}"
        flips = f"{row.num_flips} of {row.num_decisions}" if row.num_decisions else ""
        cells.append(
            _cells(
                (
                    (row.step or "all steps") + ("" if row.read is None else f", read {row.read + 1}"),
                    row.level,
                    f"{row.kl_mean:.4f}",
                    interval,
                    f"{row.kl_p95:.4f}",
                    f"{row.agreement:.1%}",
                    f"{row.logprob_change:+.4f}",
                    f"{row.reencoded_share:.0%}",
                    flips,
                )
            )
        )
    return f"<table>{''.join(cells)}</table>"


def _flips(report: Report) -> str:
    rows = [_cells(("level", "", "flips", "of", "share, 95 %"), "th")]
    for row in report.wholes:
        low, high = row.flip_interval
        share = f"{row.flip_share:.0%} ({low:.0%} to {high:.0%})"
        rows.append(_cells((row.level, "", str(row.num_flips), str(row.num_decisions), share)))
    told = [
        f"line {flip.line}, {flip.decision.address} under {flip.decision.level}: {flip.decision.name} was "
        f"{flip.decision.was[:200]}, becomes {flip.decision.becomes[:200]}"
        for flip in report.flips
    ]
    return f"<table>{''.join(rows)}</table>{_list(told)}"


def _gains(report: Report) -> str:
    rows = [_cells(("level", "", "time to first token", "end to end", "tokens encoded"), "th")]
    for gain in report.gains:
        ttft = f"{gain.ttft:.2f}x" + _interval(gain.ttft_interval)
        wall = f"{gain.wall:.2f}x" + _interval(gain.wall_interval)
        rows.append(_cells((gain.level, "", ttft, wall, f"{gain.encoded:.2f}x fewer")))
    note = "Whole runs with the same text, from an empty cache, with nothing else of the audit running beside them."
    return f"<table>{''.join(rows)}</table><p class=faint>{note}</p>"


def _interval(interval: tuple[float, float] | None) -> str:
    return "" if interval is None else f" ({interval[0]:.2f} to {interval[1]:.2f})"


def _cells(values: Sequence[str], tag: str = "td") -> str:
    return "<tr>" + "".join(f"<{tag}>{escape(value)}</{tag}>" for value in values) + "</tr>"


def _list(items: Iterator[str] | Sequence[str]) -> str:
    told = "".join(f"<li>{escape(item)}</li>" for item in items)
    return f"<ul>{told}</ul>" if told else ""
