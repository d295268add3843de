"""From what was told of tasks to rows: means with intervals, flips with intervals, and the numbers to reach."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from report import Row
from task_runs import EXACT, Told
from tasks import Case, Task

from laban.cluster.audit.records import Decision, StepAudit
from laban.cluster.audit.statistics import Interval, bootstrap, quantile, ratio_of_sums, wilson

TO_DIRECT = {"corrected": 0.5, "blended": 0.35, "tuned": 0.2}
TO_RANDOM = 0.7
REUSED = 0.7
LEAST_SHARE = 0.05
"""Of what only `direct` reuses: with less, `corrected` and reads at random are both `exact`, but for noise."""


@dataclass(frozen=True, slots=True)
class Measured:
    """`told` has, for each held-out case, what each arm came to. `served` is of what `corrected` learnt from, by arm;
    `chosen` what `auto` became, of each step, by tolerance."""

    task: Task
    told: Sequence[Mapping[str, Told]]
    served: Mapping[str, Told]
    chosen: Mapping[float, Sequence[str]]


def rows_of(measured: Measured, tolerances: Sequence[float]) -> list[Row]:
    name = measured.task.name
    rows = _rows(name, measured.told, tolerances)
    rows += _right_rows(name, measured.task.held_out, measured.told)
    for arm, served in measured.served.items():
        told = [each[arm] for each in measured.told]
        read, reused = (sum(getattr(each, f"num_{what}") for each in (served, *told)) for what in ("read", "reused"))
        rows.append(Row(f"{name}.{arm}.reused_with_learning", reused / max(1, read), ""))
    for tolerance, levels in measured.chosen.items():
        counts = Counter(levels)
        rows += [Row(f"{name}.auto_{tolerance:g}.steps_{level}", counts[level], "") for level in sorted(counts)]
    rows.append(Row(f"{name}.held_out", len(measured.told), ""))
    return rows


def rows_of_all(measured: Sequence[Measured], tolerances: Sequence[float]) -> list[Row]:
    """Of all tasks' inputs together. An arm that not every task has is compared on those that have it."""
    return _rows("all", [told for each in measured for told in each.told], tolerances)


def _rows(name: str, cases: Sequence[Mapping[str, Told]], tolerances: Sequence[float]) -> list[Row]:
    rows = [Row(f"{name}.exact.reused", _reused([told[EXACT] for told in cases]), "")]
    for arm in dict.fromkeys(arm for told in cases for arm in told if arm != EXACT):
        there = [told for told in cases if arm in told]
        rows += _arm_rows(f"{name}.{arm}", [told[arm] for told in there], arm)
        if arm != "direct":
            rows += _ratio_rows(
                f"{name}.{arm}.kl_to_direct", there, arm, "direct", TO_DIRECT.get(arm.partition("_")[0])
            )
    for tolerance in tolerances:
        one, other = f"corrected_{tolerance:g}", f"random_{tolerance:g}"
        there = [told for told in cases if one in told and other in told]
        share = share_beyond_exact(there, one)
        rows.append(Row(f"{name}.{one}.reused_beyond_exact", share, ""))
        if share >= LEAST_SHARE:
            rows += _ratio_rows(f"{name}.{one}.kl_to_random", there, one, other, TO_RANDOM)
    return rows


def share_beyond_exact(told: Sequence[Mapping[str, Told]], arm: str) -> float:
    """Of the tokens that `direct` reuses and `exact` does not, how many the arm does."""
    mine, direct, exact = (sum(each[name].num_reused for each in told) for name in (arm, "direct", EXACT))
    return min(1.0, max(0.0, (mine - exact) / (direct - exact))) if direct > exact else 0.0


def random_share(told: Sequence[Mapping[str, Told]], arm: str) -> float:
    """The share of reads that are to be `direct` at random to have as many tokens reused as the arm: 0 where the arm is
    as good as exact. An exact read after a direct one reuses nothing, so what `exact` reuses does not come on top."""
    mine, direct = (sum(each[name].num_reused for each in told) for name in (arm, "direct"))
    return min(1.0, mine / direct) if direct and share_beyond_exact(told, arm) >= LEAST_SHARE else 0.0


def _arm_rows(prefix: str, told: Sequence[Told], arm: str) -> list[Row]:
    """Units are cases, as everywhere in an audit."""
    audits = [[item for item in each.items if isinstance(item, StepAudit)] for each in told]
    decided = [item for each in told for item in each.items if isinstance(item, Decision)]
    sums = [(sum(sum(item.kl) for item in items), float(sum(len(item.kl) for item in items))) for items in audits]
    kls = sorted(kl for items in audits for item in items for kl in item.kl)
    agrees = [each for items in audits for item in items for each in item.agrees]
    rows = [
        Row(f"{prefix}.reused", _reused(told), "", REUSED if arm.startswith("corrected") else None),
        Row(f"{prefix}.kl_mean", ratio_of_sums(sums), "nats", better="lower"),
        *_between(f"{prefix}.kl_mean", bootstrap(sums, ratio_of_sums), "nats"),
        Row(f"{prefix}.kl_p95", quantile(kls, 0.95), "nats", better="lower"),
        Row(f"{prefix}.top1_agreement", sum(agrees) / max(1, len(agrees)), ""),
    ]
    if decided:
        num_flips = sum(each.flips for each in decided)
        target = float(arm.partition("_")[2]) if arm.startswith("auto_") else None
        rows.append(Row(f"{prefix}.flips", num_flips / len(decided), "", target, "lower"))
        rows += _between(f"{prefix}.flips", wilson(num_flips, len(decided)), "")
        rows.append(Row(f"{prefix}.decisions", len(decided), ""))
    return rows


def _between(prefix: str, interval: Interval | None, unit: str) -> list[Row]:
    """Of 95 %."""
    ends = () if interval is None else zip(("low", "high"), interval, strict=True)
    return [Row(f"{prefix}.{end}", value, unit, better="lower") for end, value in ends]


def _ratio_rows(
    prefix: str, cases: Sequence[Mapping[str, Told]], one: str, other: str, target: float | None
) -> list[Row]:
    """Of two arms' divergences on the same tokens, with the interval of resampled inputs; nothing where the other's
    is none."""
    sums = [(each[one].kl_sum, each[other].kl_sum) for each in cases]
    if not sum(below for _, below in sums):
        return []
    return [
        Row(prefix, ratio_of_sums(sums), "x", target, "lower"),
        *_between(prefix, bootstrap(sums, ratio_of_sums), "x"),
    ]


def _right_rows(name: str, cases: Sequence[Case], told: Sequence[Mapping[str, Told]]) -> list[Row]:
    """How often what is said is right, of `exact` and each arm: for a probe, what it probes. With three orders of the
    same candidates also how often the three agree."""
    rows = []
    for arm in told[0] if told else ():
        for what in cases[0].right:
            hits = [_is_right(case, each[arm], what) for case, each in zip(cases, told, strict=True)]
            rows.append(Row(f"{name}.{arm}.{what}", sum(hits) / len(hits), ""))
        if name == "judge":
            agree = [_agrees(each[arm]) for each in told]
            rows.append(Row(f"{name}.{arm}.same_in_all_orders", sum(agree) / len(agree), ""))
    return rows


def _is_right(case: Case, told: Told, what: str) -> bool:
    step, wanted = case.right[what]
    return wanted in told.texts.get(step, "")


def _agrees(told: Told) -> bool:
    """Whether the judge chooses the same candidate in every order that the workflow reads them in."""
    places = {"forwards": (0, 1, 2), "backwards": (2, 1, 0), "turned": (1, 2, 0)}
    words = ("first", "second", "third")
    chosen = {places[step][words.index(text)] for step, text in told.texts.items()}
    return len(chosen) == 1


def _reused(told: Sequence[Told]) -> float:
    return sum(each.num_reused for each in told) / max(1, sum(each.num_read for each in told))
