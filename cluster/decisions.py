"""Where calls went and why, kept for those who ask."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, replace

from laban.cluster.records import RoutingCandidate, RoutingDecision
from laban.cluster.routing.router import COST, Candidate, Choice

MAX_DECISIONS = 10_000
MANY_NEEDS = 64
"""A call of so many is explained at once, so that it need not be kept for that: others once somebody asks."""


@dataclass(frozen=True, slots=True)
class _Kept:
    attempt: int
    at: float
    num_workers: int
    told: Choice | RoutingDecision


class Decisions:
    """The last one of each call; the oldest are forgotten first."""

    def __init__(self, name: str) -> None:
        """`name` is the policy's."""
        self._name = name
        self._kept: OrderedDict[str, _Kept] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def keep(self, key: str, attempt: int, at: float, choice: Choice, num_workers: int) -> None:
        kept = _Kept(attempt, at, num_workers, choice)
        if len(choice.call.needs) > MANY_NEEDS:
            kept = replace(kept, told=self._explain(key, kept, choice))
        self._kept[key] = kept
        self._kept.move_to_end(key)
        if len(self._kept) > MAX_DECISIONS:
            self._kept.popitem(last=False)

    def explain(self, key: str) -> RoutingDecision | None:
        """None for a call that was not routed, or too long ago."""
        kept = self._kept.get(key)
        if kept is None:
            return None
        return kept.told if isinstance(kept.told, RoutingDecision) else self._explain(key, kept, kept.told)

    def _explain(self, key: str, kept: _Kept, choice: Choice) -> RoutingDecision:
        call = choice.call
        name = self._name if choice.policy is not COST else f"cost, as {self._name} failed"
        tokens = call.own_tokens + call.tokens_of(call.wanted)
        return RoutingDecision(
            call_id=key,
            attempt=kept.attempt,
            at=kept.at,
            policy=name,
            chosen=choice.worker_id,
            candidates=tuple(_candidate(each, tokens) for each in choice.candidates()),
            key_names=tuple(getattr(choice.policy, "key_names", ())),
            num_workers=kept.num_workers,
        )


def _candidate(candidate: Candidate, tokens: int) -> RoutingCandidate:
    key, worker = candidate
    return RoutingCandidate(
        worker_id=worker.worker_id,
        key=key,
        queue_ms=float(worker.queue_ms),
        encode_ms=worker.encode_ns / 1e6,
        load_ms=worker.load_ns / 1e6,
        fetch_ms=worker.fetch_ns / 1e6,
        tokens_device=max(0, tokens - worker.tokens_missing),
        tokens_host=worker.tokens_host,
        tokens_disk=worker.tokens_disk,
        tokens_peer=worker.tokens_peer,
        tokens_encode=worker.tokens_encode,
    )
