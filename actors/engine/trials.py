"""How wrong predictions are, measured while there is nothing else to do.

After a call that read an encoding which was encoded although it might have been predicted: what would the call's own
message have been given, had it been predicted from the others? The message is scored twice, as any forced call is
(`scoring.py`): under the view that it had, and under the same with the prediction in its place. The mean divergence
teaches the pool, and nothing of it is told to anybody or kept. These are spare calls: all others go before them.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable
from dataclasses import dataclass, replace

from laban.actors.calls import Call, CallEvent, CallFailed, CallFinished, Sampling, Scoring
from laban.actors.engine.corrections import TRIAL, Corrections
from laban.actors.engine.planning import is_measured
from laban.kvstore.encodings import EncodingId, EncodingSpec, View, flatten, make_spec
from laban.kvstore.message_slots import SlotKey

SCORED_TOKENS = 48
"""Of a message, its first."""
MAX_WAITING = 32
LAST_RANK = 1 << 60
FIRST, SECOND = "keep", "against"
"""Of a trial's calls, after its key and a slash."""
MAX_REMEMBERED = 10_000
"""Encodings that were tried, once each."""


@dataclass(frozen=True, slots=True)
class _Trial:
    call: Call  # that read it
    forced: tuple[int, ...]
    spec: EncodingSpec  # as it was encoded
    names: frozenset[EncodingId]  # of all that it is made of
    is_true: bool  # nothing in its view was predicted


class Trials:
    """At most one at a time; of more than wait here the oldest are dropped."""

    def __init__(self, corrections: Corrections) -> None:
        self._corrections = corrections
        self._waiting: deque[_Trial] = deque(maxlen=MAX_WAITING)
        self._running: _Trial | None = None
        self._trial_spec: EncodingSpec | None = None
        self._number = 0
        self._rubbish: list[EncodingId] = []
        self._tried: OrderedDict[EncodingId, None] = OrderedDict()

    @property
    def is_waiting(self) -> bool:
        return bool(self._waiting) and self._running is None

    def ended(self, call: Call, generated: tuple[int, ...], message: EncodingId) -> None:
        """A call was answered, by `message`: what it read and what could be tried is put down."""
        if call.scoring is not None:
            return
        tokens = (*call.tokens, *generated)
        num_header = len(call.tokens) if generated else 1
        forced = tokens[num_header : num_header + SCORED_TOKENS]
        if not forced:
            return
        header = replace(call, tokens=tokens[:num_header], sampling=None, sources=())
        specs = {spec.encoding_id: spec for spec in call.specs}
        placed = [specs[p.encoding_id] for p in flatten(call.view, specs)]
        encoded = [spec for spec in placed if self._corrections.mix_of(spec.encoding_id) is None]
        is_true = len(encoded) == len(placed)
        slots = {slot.encoding_id for slot in call.slots} if call.kind else set()
        names = frozenset([*specs, message, *(slot.home_id for slot in call.slots)])
        for spec in encoded:
            known = is_true and spec.encoding_id in self._corrections.pool
            if (known or spec.encoding_id in slots) and spec.encoding_id not in self._tried:
                self._tried[spec.encoding_id] = None
                self._waiting.append(_Trial(header, forced, spec, names, is_true))
        while len(self._tried) > MAX_REMEMBERED:
            self._tried.popitem(last=False)

    def next(self) -> Call | None:
        """The call that begins the next trial; None if there is none that would tell anything."""
        while self._running is None and self._waiting:
            trial = self._waiting.popleft()
            specs = {spec.encoding_id: spec for spec in trial.call.specs}
            spec = trial.spec
            as_tried = make_spec(spec.namespace, spec.tokens, spec.start, spec.view, specs, tolerance=TRIAL)
            slots = [slot for slot in trial.call.slots if slot.encoding_id == spec.encoding_id]
            call = replace(trial.call, slots=tuple(replace(slot, encoding_id=as_tried.encoding_id) for slot in slots))
            mix = self._corrections.choose(as_tried, specs, call)
            if mix is None or (mix.slot is not None and self._is_known(mix.slot, trial)):
                continue
            self._number += 1
            self._running, self._trial_spec = replace(trial, call=call), as_tried
            return self._call(FIRST, trial.call.view, Scoring(keep=self._key))
        return None

    def _is_known(self, slot: SlotKey, trial: _Trial) -> bool:
        if trial.is_true and trial.spec.encoding_id in self._corrections.pool:
            return False  # its tokens' own errors may not be
        return self._corrections.pool.slots.knows_enough(slot) and not is_measured(trial.call)

    def take(self, events: Iterable[CallEvent]) -> tuple[list[CallEvent], Call | None]:
        """The events that are not of trials, and the call that goes on with one."""
        others: list[CallEvent] = []
        more: Call | None = None
        for event in events:
            if self._running is None or not event.call_id.startswith(f"{self._key}/"):
                others.append(event)
            elif isinstance(event, CallFailed):
                self._end()
            elif isinstance(event, CallFinished):
                self._rubbish.append(event.encoding.encoding_id)
                if event.comparison is None:
                    more = self._second()
                else:
                    self._learn(event.comparison.kl)
                    self._end()
        return others, more

    def forget(self, encoding_ids: Iterable[EncodingId]) -> str | None:
        """Drops what any of these is part of. The key of the trial that runs, if it is among that: its calls are to be
        aborted."""
        gone = set(encoding_ids)
        for trial in [each for each in self._waiting if not gone.isdisjoint(each.names)]:
            self._waiting.remove(trial)
        if self._running is None or gone.isdisjoint(self._running.names):
            return None
        self._end()
        return self._key

    def take_rubbish(self) -> list[EncodingId]:
        """Encodings that were only made for trials, to be removed from everywhere."""
        rubbish, self._rubbish = self._rubbish, []
        return rubbish

    @property
    def _key(self) -> str:
        return f"trial/{self._number}"

    def _second(self) -> Call:
        """The same with the prediction in its place: a view of placements, each where it stood."""
        trial, spec = self._running, self._trial_spec
        assert trial is not None
        assert spec is not None
        specs = {each.encoding_id: each for each in trial.call.specs}
        placements = tuple(
            replace(p, encoding_id=spec.encoding_id) if p.encoding_id == trial.spec.encoding_id else p
            for p in flatten(trial.call.view, specs)
        )
        call = self._call(SECOND, View(None, placements), Scoring(against=self._key, release=True))
        return replace(call, specs=(*call.specs, spec))

    def _call(self, name: str, view: View, scoring: Scoring) -> Call:
        trial = self._running
        assert trial is not None
        sampling = Sampling(max_tokens=len(trial.forced), forced=trial.forced)
        call_id = f"{self._key}/{name}"
        return replace(
            trial.call,
            call_id=call_id,
            view=view,
            sampling=sampling,
            scoring=scoring,
            rank=LAST_RANK,
            terminator=(),
            spare=True,
        )

    def _learn(self, kl: tuple[float, ...]) -> None:
        assert self._running is not None
        assert self._trial_spec is not None
        mix = self._corrections.mix_of(self._trial_spec.encoding_id)
        # Else its anchors had gone and it was encoded after all, or what it is compared with was evicted and predicted.
        if mix is not None and self._corrections.mix_of(self._running.spec.encoding_id) is None:
            error, pool = sum(kl) / len(kl), self._corrections.pool
            if self._running.is_true:
                pool.learn(self._running.spec, mix.distance, error)
            if mix.slot is not None:
                pool.slots.learn(mix.slot, error)

    def _end(self) -> None:
        assert self._trial_spec is not None
        self._rubbish.append(self._trial_spec.encoding_id)
        self._running = self._trial_spec = None
