"""What an audit came to: the measurements of all inputs put together, by level, step and read. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from laban.cluster.audit.records import AuditItem, Decision, Refused, Replayed, StepAudit
from laban.cluster.audit.statistics import Interval, bootstrap, pooled_mean, quantile, ratio_of_sums, wilson

BASELINE = "exact"


@dataclass(frozen=True, slots=True)
class AuditedInput:
    """One line of the data, or the one set of inputs that was given, and what was found of it."""

    line: int
    items: tuple[AuditItem, ...]
    error: str = ""  # why its run under `exact` failed: there is nothing to compare then


@dataclass(frozen=True, slots=True)
class Measured:
    """A step under a level, over all inputs; `step` "" is the whole workflow. With `read` that entry alone was at the
    level, in the `num_cases` instances that were taken apart.

    KL in nats a token. `num_reencoded` of `num_read` tokens are encoded again under the level, whatever is cached.
    """

    level: str
    step: str
    read: int | None
    num_cases: int
    num_tokens: int
    kl_mean: float
    kl_interval: Interval | None
    kl_p95: float
    agreement: float
    logprob_change: float
    num_read: int
    num_reencoded: int
    is_same: bool
    num_decisions: int = 0
    num_flips: int = 0
    flip_interval: Interval = (0.0, 1.0)

    @property
    def flip_share(self) -> float:
        return self.num_flips / self.num_decisions if self.num_decisions else 0.0

    @property
    def reencoded_share(self) -> float:
        return self.num_reencoded / self.num_read if self.num_read else 0.0


@dataclass(frozen=True, slots=True)
class Gain:
    """How many times faster a level was than `exact`, over all inputs, and how many times fewer tokens it encoded."""

    level: str
    ttft: float
    ttft_interval: Interval | None
    wall: float
    wall_interval: Interval | None
    encoded: float
    ttft_ms: float
    wall_ms: float


@dataclass(frozen=True, slots=True)
class Flip:
    """A decision that went otherwise."""

    line: int
    decision: Decision


@dataclass(frozen=True, slots=True)
class Report:
    name: str
    levels: tuple[str, ...]
    num_inputs: int
    failed: tuple[AuditedInput, ...]
    wholes: tuple[Measured, ...]  # a level each
    steps: tuple[Measured, ...]
    reads: tuple[Measured, ...]
    gains: tuple[Gain, ...]
    flips: tuple[Flip, ...]
    refused: tuple[Refused, ...]
    why: tuple[str, ...] = field(default=())  # leakage and blockage under `direct`, of the steps that differ most


def summarize(name: str, inputs: Sequence[AuditedInput], why: Iterable[str] = ()) -> Report:
    """Puts the measurements together."""
    measured = [one for one in inputs if not one.error]
    audits = [[item for item in one.items if isinstance(item, StepAudit)] for one in measured]
    decisions = [[item for item in one.items if isinstance(item, Decision)] for one in measured]
    everything = [item for items in audits for item in items]
    levels = tuple(dict.fromkeys(item.level for item in everything))
    steps = dict.fromkeys((item.level, item.step) for item in everything)
    reads = dict.fromkeys((i.level, i.step, i.read) for i in everything if i.read is not None)
    refused = dict.fromkeys(item for one in measured for item in one.items if isinstance(item, Refused))
    flips = [
        Flip(one.line, item) for one in measured for item in one.items if isinstance(item, Decision) and item.flips
    ]
    return Report(
        name,
        levels,
        len(measured),
        tuple(one for one in inputs if one.error),
        tuple(_measured(level, "", None, audits, decisions) for level in levels),
        tuple(_measured(level, step, None, audits, decisions) for level, step in steps),
        tuple(_measured(level, step, read, audits, decisions) for level, step, read in sorted(reads)),
        _gains([[item for item in one.items if isinstance(item, Replayed)] for one in measured]),
        tuple(flips),
        tuple(refused),
        tuple(why),
    )


def _measured(
    level: str,
    step: str,
    read: int | None,
    audits: Sequence[Sequence[StepAudit]],
    decisions: Sequence[Sequence[Decision]],
) -> Measured:
    def own(item: StepAudit | Decision) -> bool:
        return item.level == level and step in ("", item.step)

    kept = [[item for item in items if own(item) and item.read == read] for items in audits]
    kept = [items for items in kept if items]
    cases = [item for items in kept for item in items]
    by_input = [[kl for item in items for kl in item.kl] for items in kept]
    kls = sorted(kl for numbers in by_input for kl in numbers)
    agrees = [agrees for item in cases for agrees in item.agrees]
    changes = [change for item in cases for change in item.logprob_changes]
    decided = [] if read is not None else [item for items in decisions for item in items if own(item)]
    num_flips = sum(item.flips for item in decided)
    num_read = sum(item.num_read for item in cases)
    return Measured(
        level,
        step,
        read,
        len(cases),
        len(kls),
        pooled_mean(by_input),
        bootstrap(by_input, pooled_mean),
        quantile(kls, 0.95),
        sum(agrees) / len(agrees) if agrees else 1.0,
        sum(changes) / len(changes) if changes else 0.0,
        num_read,
        num_read - sum(item.num_reused for item in cases),
        all(item.is_same for item in cases),
        len(decided),
        num_flips,
        wilson(num_flips, len(decided)),
    )


def _gains(replays: Sequence[Sequence[Replayed]]) -> tuple[Gain, ...]:
    """Of inputs that were replayed under `exact` and the level."""
    by_level = [{replayed.level: replayed for replayed in one} for one in replays]
    levels = dict.fromkeys(level for one in by_level for level in one if level != BASELINE)
    gains = []
    for level in levels:
        pairs = [(one[BASELINE], one[level]) for one in by_level if BASELINE in one and level in one]
        if not pairs:
            continue

        def ratio(of: Callable[[Replayed], float], pairs: list[tuple[Replayed, Replayed]] = pairs) -> list[Interval]:
            return [(of(exact), of(other)) for exact, other in pairs]

        ttfts, walls = ratio(lambda run: run.ttft_ms), ratio(lambda run: run.wall_ms)
        gains.append(
            Gain(
                level,
                ratio_of_sums(ttfts),
                bootstrap(ttfts, ratio_of_sums),
                ratio_of_sums(walls),
                bootstrap(walls, ratio_of_sums),
                ratio_of_sums(ratio(lambda run: run.num_encoded)),
                sum(other.ttft_ms for _, other in pairs) / len(pairs),
                sum(other.wall_ms for _, other in pairs) / len(pairs),
            )
        )
    return tuple(gains)
