"""Hints of sessions: what a client says that its agents will read, made into uses and pins of encodings.

Whatever is wrong with a hint, it is answered and never raised: no result depends on one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from laban.actors.errors import LabanError
from laban.cluster.messages import MessageBook
from laban.cluster.records import Hint, HintOutcome, HintStatus
from laban.cluster.views import Entry, compose
from laban.kvstore.encodings import EncodingId, EncodingSpec, closure, dependencies, flatten
from laban.kvstore.uses import Use


class HintTaker(Protocol):
    """What is needed of `cluster.foresight.Foresight`."""

    @property
    def step_s(self) -> float:
        """How long a step takes, as far as is known."""

    def hint(
        self,
        source: str,
        uses: Mapping[EncodingId, Use],
        pins: Mapping[EncodingId, float],
        specs: Sequence[EncodingSpec],
        ttl_s: float,
    ) -> None:
        """Replaces all that `source` said. `uses` count from now, as do `pins`, in seconds; `specs` are all that it
        takes to compute the encodings. Forgotten after `ttl_s`."""

    def forget(self, source: str) -> None:
        """Lets go of its pins, too. An unknown source is no error."""


@dataclass(frozen=True, slots=True)
class HintLimits:
    default_ttl_s: float = 60.0  # and longer, where the read or the pin is
    max_ttl_s: float = 3600.0
    max_pin_s: float = 600.0
    max_in_s: float = 86_400.0
    max_agents: int = 4096  # of one session
    max_reads: int = 4096  # of one hint
    pinned_share: float = 0.5  # of a worker's pool, for all pins together


@dataclass(frozen=True, slots=True)
class _Given:
    """A hint that holds, until `expires_at`, and what it pins, until `pinned_until`, which is no later."""

    expires_at: float
    pinned_until: float = 0.0
    pinned: Mapping[EncodingId, int] = field(default_factory=dict)  # and their tokens


@dataclass(frozen=True, slots=True)
class Reading:
    """What a hint's view comes to: the encodings that it places, and every spec that it takes to compute them.

    `problem` says why entries were left out, "" if none was.
    """

    encodings: Mapping[EncodingId, int] = field(default_factory=dict)  # and the tokens placed
    specs: tuple[EncodingSpec, ...] = ()
    num_reads: int = 0
    problem: str = ""

    @property
    def num_tokens(self) -> int:
        return sum(self.encodings.values())


class SessionHints:
    """Lives in the sessions' event loop."""

    def __init__(
        self,
        taker: HintTaker | None,
        pool_tokens: int,
        *,
        limits: HintLimits | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`pool_tokens` are those of one worker. Without a taker every hint is ignored."""
        self._taker = taker
        self._limits = limits or HintLimits()
        self._max_pinned = int(pool_tokens * self._limits.pinned_share)
        self._clock = clock
        self._given: dict[str, dict[str, _Given]] = {}  # by session and agent

    def take(
        self, session_id: str, book: MessageBook, hints: Sequence[Hint], ttl_s: float | None = None
    ) -> tuple[HintOutcome, ...]:
        """What became of each hint. `book` has the session's messages. `ttl_s` None: long enough for each."""
        self._expire()
        return tuple(self._take(session_id, book, hint, ttl_s) for hint in hints)

    def release(self, session_id: str, agents: Collection[str] = (), *, everything: bool = False) -> int:
        """Forget hints; how many there were."""
        self._expire()
        given = self._given.get(session_id, {})
        going = [agent for agent in list(given) if everything or agent in agents]
        for agent in going:
            self._forget(session_id, agent)
        return len(going)

    def _take(self, session_id: str, book: MessageBook, hint: Hint, asked_s: float | None) -> HintOutcome:
        taker, limits = self._taker, self._limits
        self._forget(session_id, hint.agent)
        if taker is None:
            return _ignored(hint, "this server does not look ahead")
        if not hint.reads:
            return HintOutcome(hint.agent, "accepted")  # what was said before is forgotten
        if len(self._given.get(session_id, ())) >= limits.max_agents:
            return _ignored(hint, f"{limits.max_agents} agents of the session have hints, expected no more")
        if len(hint.reads) > limits.max_reads:
            return _ignored(hint, f"{len(hint.reads)} reads, expected at most {limits.max_reads}")
        reading = read(book, hint)
        if not reading.num_reads:
            return _ignored(hint, reading.problem)
        clips = [reading.problem] if reading.problem else []
        in_s, steps = _when(hint, taker.step_s)
        in_s = _clipped(in_s, limits.max_in_s, "uses are foreseen {:g} s ahead at most", clips)
        pin_s = self._pin_s(hint, reading, clips)
        if asked_s is None:
            ttl_s = min(max(limits.default_ttl_s, 2 * in_s, pin_s), limits.max_ttl_s)
        else:
            ttl_s = _clipped(asked_s, limits.max_ttl_s, "a hint lasts {:g} s at most", clips)
        pin_s = _clipped(pin_s, ttl_s, "a pin ends with its hint, after {:g} s", clips)
        use = Use(steps, in_s, hint.likelihood)
        pins = dict.fromkeys(reading.encodings, pin_s) if pin_s else {}
        taker.hint(_source(session_id, hint.agent), dict.fromkeys(reading.encodings, use), pins, reading.specs, ttl_s)
        now = self._clock()
        given = _Given(now + ttl_s, now + pin_s, reading.encodings) if pin_s else _Given(now + ttl_s)
        self._given.setdefault(session_id, {})[hint.agent] = given
        status: HintStatus = "clipped" if clips else "accepted"
        return HintOutcome(hint.agent, status, "; ".join(clips), reading.num_reads, reading.num_tokens, pin_s, ttl_s)

    def _pin_s(self, hint: Hint, reading: Reading, clips: list[str]) -> float:
        """For how long to pin; 0 if that would be more than all pins together may hold."""
        if not hint.pin_s:
            return 0.0
        now = self._clock()
        pinned = dict(reading.encodings)
        for given in self._given.values():
            for each in given.values():
                if each.pinned_until > now:
                    pinned |= each.pinned
        total = sum(pinned.values())
        if total > self._max_pinned:
            clips.append(f"not pinned: {total} tokens would be, expected at most {self._max_pinned}")
            return 0.0
        return _clipped(hint.pin_s, self._limits.max_pin_s, "a pin lasts {:g} s at most", clips)

    def _forget(self, session_id: str, agent: str) -> None:
        given = self._given.get(session_id, {})
        if given.pop(agent, None) is not None and self._taker is not None:
            self._taker.forget(_source(session_id, agent))
        if not given:
            self._given.pop(session_id, None)

    def _expire(self) -> None:
        """The taker forgets by itself what has had its time."""
        now = self._clock()
        for session_id, given in list(self._given.items()):
            kept = {agent: each for agent, each in given.items() if each.expires_at > now}
            if kept:
                self._given[session_id] = kept
            else:
                del self._given[session_id]


def read(book: MessageBook, hint: Hint) -> Reading:
    """What the hint's agent will read, as far as its messages are there: of `direct` reads those that are, of `exact`
    ones those before the first that is not, since an encoding depends on all that comes before it."""
    entries: list[Entry] = []
    missing: list[str] = []
    left = 0
    for place, placed in enumerate(hint.reads):
        message = book.messages.get(placed.message_id)
        if message is None:
            missing.append(placed.message_id)
            if hint.fidelity == "exact":
                left = len(hint.reads) - place - 1
                break
            continue
        entries.append(Entry(message, hint.fidelity, placed.position, placed.begin, placed.end))
    problem = f"the session has no message {', '.join(missing)}" if missing else ""
    if left:
        problem += ", nor exact encodings of what comes after it"
    if not entries:
        return Reading(problem=problem)
    language = book.language
    try:
        composed = compose(
            language.space,
            language.framing.root(entries[0].message.role),
            entries,
            book.specs,
            max_context=language.max_context,
            layout=hint.layout,
        )
    except LabanError as error:
        return Reading(problem=str(error))
    specs = {**book.specs, **composed.added}
    encodings: dict[EncodingId, int] = {}
    for placement in flatten(composed.view, specs)[int(composed.has_root) :]:
        encodings[placement.encoding_id] = max(placement.num_tokens, encodings.get(placement.encoding_id, 0))
    return Reading(encodings, tuple(closure(dependencies(composed.view), specs)), len(entries), problem)


def _when(hint: Hint, step_s: float) -> tuple[float, int]:
    """Seconds until the agent's turn, and steps: each as it was said, or worked out from the other."""
    if hint.in_s is None:
        steps = hint.steps or 0
        return steps * step_s, steps
    if hint.steps is None:
        return hint.in_s, round(hint.in_s / step_s) if step_s > 0 else 0
    return hint.in_s, hint.steps


def _clipped(asked_s: float, most_s: float, what: str, clips: list[str]) -> float:
    if asked_s > most_s:
        clips.append(what.format(most_s))
    return min(asked_s, most_s)


def _ignored(hint: Hint, reason: str) -> HintOutcome:
    return HintOutcome(hint.agent, "ignored", reason)


def _source(session_id: str, agent: str) -> str:
    return f"hint {session_id}/{agent}"
