"""An audit's report as text, for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from laban.cluster.audit.advice import Advice
from laban.cluster.audit.records import AS_WRITTEN
from laban.cluster.audit.report import Measured, Report
from laban.cluster.audit.statistics import Interval

MAX_FLIPS = 10
HEAD = ("step", "level", "KL mean", "95 %", "KL p95", "top-1", "log-lik.", "re-encoded", "flips", "95 %")


def lines(report: Report, advice: Sequence[Advice], tolerance: float) -> Iterator[str]:
    """The whole report."""
    plural = "" if report.num_inputs == 1 else "s"
    yield f"{report.name}: {report.num_inputs} input{plural}, replayed on the text of its runs under exact"
    for failed in report.failed:
        yield f"  line {failed.line}: left out, its run under exact failed: {failed.error}"
    for refused in report.refused:
        what = f"level {refused.level}" if refused.level else f"step {refused.address}"
        yield f"  {what} was not measured: {refused.reason}"
    yield ""
    yield from _table([HEAD, *map(_row, [*report.wholes, *report.steps])])
    if report.reads:
        yield ""
        yield "the steps that differ most, with one read at the level and the others exact:"
        yield from _table([HEAD, *map(_row, report.reads)])
    if report.gains:
        yield ""
        yield "against exact, same text, from an empty cache, whatever else ran meanwhile:"
        for gain in report.gains:
            yield (
                f"  {gain.level}: time to first token {gain.ttft:.2f}x{_of(gain.ttft_interval)}, end to end"
                f" {gain.wall:.2f}x{_of(gain.wall_interval)}, {gain.encoded:.2f}x fewer tokens encoded"
            )
    if report.flips:
        yield ""
        yield "decisions that flip:"
        for flip in report.flips[:MAX_FLIPS]:
            told = flip.decision
            yield (
                f"  line {flip.line}, {told.address} under {told.level}: {told.name} was {told.was[:60]},"
                f" becomes {told.becomes[:60]}"
            )
        if len(report.flips) > MAX_FLIPS:
            yield f"  ... and {len(report.flips) - MAX_FLIPS} more; --json has them all"
    yield from report.why
    yield ""
    yield f"within a tolerance of {tolerance:g} (nats a token, and share of decisions that flip):"
    if not advice:
        yield "  no step depends on the level"
    for one in advice:
        yield f"  {advice_line(one)}"
    if any(one.reads for one in advice):
        yield f"  single reads were not measured together: --write them, then audit --levels {AS_WRITTEN}"


def advice_line(one: Advice) -> str:
    """One recommendation in words."""
    where = f" for read {', '.join(str(read + 1) for read in one.reads)}, the others exact" if one.reads else ""
    sure = "" if one.is_sure or one.level == "exact" else "; the intervals reach beyond it: more inputs would tell"
    return f"{one.step}: {one.level}{where} ({one.why}{sure})"


def _row(row: Measured) -> tuple[str, ...]:
    step = (row.step or "all steps") + ("" if row.read is None else f", read {row.read + 1}")
    if row.is_same:
        return step, row.level, "0", "", "0", "100 %", "0", f"{row.reencoded_share:.0%}", *_flips(row)
    return (
        step,
        row.level,
        f"{row.kl_mean:.4f}",
        _of(row.kl_interval, 4),
        f"{row.kl_p95:.4f}",
        f"{row.agreement:.1%}",
        f"{row.logprob_change:+.4f}",
        f"{row.reencoded_share:.0%}",
        *_flips(row),
    )


def _flips(row: Measured) -> tuple[str, str]:
    if not row.num_decisions:
        return "", ""
    low, high = row.flip_interval
    return f"{row.num_flips} of {row.num_decisions}", f"{low:.0%} to {high:.0%}"


def _of(interval: Interval | None, digits: int = 2) -> str:
    if interval is None:
        return ""
    return f" ({interval[0]:.{digits}f} to {interval[1]:.{digits}f})"


def _table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [cell.ljust(w) if n < 2 else cell.rjust(w) for n, (cell, w) in enumerate(zip(row, widths, strict=True))]
        yield ("  " + "  ".join(cells)).rstrip()
