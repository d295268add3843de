"""The cheapest fidelity within a tolerance: of a whole step if it will do, else of those of its reads that cost least.

A level is within a tolerance t if the mean divergence is at most t nats a token and at most a share t of the decisions
flips, as measured. Where reads are taken one by one their divergences are added up: that is to first order, and worth
another audit of the file as it is then written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from laban.cluster.audit.records import AS_WRITTEN
from laban.cluster.audit.report import BASELINE, Measured, Report


@dataclass(frozen=True, slots=True)
class Advice:
    """For a step's reads: `level` for all, or for those of `reads` alone, the others being exact. `is_sure`: the upper
    ends of the intervals are within the tolerance too, not just what was measured."""

    step: str
    level: str
    reads: tuple[int, ...] = ()
    kl: float = 0.0
    is_sure: bool = False
    why: str = ""


def advise(report: Report, tolerance: float) -> tuple[Advice, ...]:
    """One for each step that was measured and whose view depends on the level."""
    by_step: dict[str, list[Measured]] = {}
    for row in report.steps:
        if row.level not in (AS_WRITTEN, BASELINE):
            by_step.setdefault(row.step, []).append(row)
    reads: dict[tuple[str, str], list[Measured]] = {}
    for row in report.reads:
        reads.setdefault((row.level, row.step), []).append(row)
    found = [(step, sorted(rows, key=lambda row: row.num_reencoded)) for step, rows in by_step.items()]
    return tuple(_of_step(step, rows, reads, tolerance) for step, rows in found if not all(r.is_same for r in rows))


def _of_step(
    step: str, rows: Sequence[Measured], reads: Mapping[tuple[str, str], Sequence[Measured]], tolerance: float
) -> Advice:
    for row in rows:
        if _is_within(row, tolerance):
            return Advice(step, row.level, (), row.kl_mean, _is_surely_within(row, tolerance), _told(row))
    for row in rows:
        if row.flip_share > tolerance:  # how many flips one read causes was not measured
            continue
        chosen, total = [], 0.0
        for one in sorted(reads.get((row.level, step), ()), key=lambda one: one.kl_mean):
            if total + one.kl_mean <= tolerance and one.read is not None:
                chosen.append(one.read)
                total += one.kl_mean
        if chosen:
            return Advice(step, row.level, tuple(sorted(chosen)), total, False, "each read by itself, added up")
    least = min(rows, key=lambda row: row.kl_mean)
    return Advice(step, BASELINE, why=f"{least.level} would cost {_told(least)}", is_sure=True)


def _is_within(row: Measured, tolerance: float) -> bool:
    return row.kl_mean <= tolerance and row.flip_share <= tolerance


def _is_surely_within(row: Measured, tolerance: float) -> bool:
    if row.kl_interval is None or row.kl_interval[1] > tolerance:
        return False
    return not row.num_decisions or row.flip_interval[1] <= tolerance


def _told(row: Measured) -> str:
    flips = f", {row.num_flips} of {row.num_decisions} decisions flip" if row.num_decisions else ""
    return f"KL {row.kl_mean:.3g}{flips}"
