"""The papers' workflows played on an engine in this process: what is said, ways of reading it, and what each took.

All is token ids, so that it runs on a random model of any shape as well as on a real one. Each way of reading (an arm)
has a namespace of its own, in which nothing of the others' is found; what is said is the same in all of them.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Final

from flat import FlatStep, Workload

from laban.actors.calls import Call, CallFailed, CallFinished, CallTokens, Sampling, Scoring
from laban.actors.engine.engine import Engine
from laban.actors.frames import Framing
from laban.cluster.views import Composed, Entry, Message, compose
from laban.cluster.workflow.fidelity import RECOMPUTE_SHARE, TOLERANCE, Fidelity
from laban.kvstore.encodings import EMPTY_VIEW, EncodingId, EncodingSpec, View, closure, dependencies, make_spec
from laban.kvstore.spaces import Space

_ids = count()
_clocks = [time.perf_counter]
RANDOM_HEADER_TOKENS = 16
"""New tokens of a call on a model that has no template."""


@dataclass(frozen=True, slots=True)
class Arm:
    """A way of reading. `shared_first` orders the reads as `Workload.shared_first` does."""

    name: str
    fidelity: Fidelity = "exact"
    shared_first: bool = False


PREFIX: Final = Arm("prefix")
"""Dense, with prefix caching: our own `exact`, of the views as the paper orders them."""
ARMS: Final = (
    PREFIX,
    Arm("prefix_shared_first", shared_first=True),
    Arm("direct", "direct"),
    Arm("corrected", "corrected"),
    Arm("blended", "blended"),
)


def now_s() -> float:
    return _clocks[-1]()


def use_process_time() -> None:
    """From now on times are of this process alone, of all its threads: for a machine that does other things, too."""
    _clocks.append(time.process_time)


class Prose:
    """Token ids of texts of exact lengths, no two alike: stretches of `stream`, or any ids where there is none."""

    def __init__(self, rng: random.Random, vocab_size: int, stream: Sequence[int] = ()) -> None:
        self._rng, self._vocab_size, self._stream = rng, vocab_size, stream
        self._given: set[tuple[int, ...]] = set()

    def take(self, num_tokens: int) -> tuple[int, ...]:
        """Raises ValueError where the stream is too short."""
        if self._stream and len(self._stream) < 2 * num_tokens:
            raise ValueError(f"the texts have {len(self._stream)} tokens, expected twice {num_tokens} or more")
        while True:
            if self._stream:
                begin = self._rng.randrange(len(self._stream) - num_tokens + 1)
                tokens = tuple(self._stream[begin : begin + num_tokens])
            else:
                tokens = tuple(self._rng.choices(range(self._vocab_size), k=num_tokens))
            if tokens not in self._given:
                self._given.add(tokens)
                return tokens


@dataclass(frozen=True, slots=True)
class Frames:
    """What stands around a message, by its role, and what opens and closes a generated one."""

    around: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]
    header: tuple[int, ...]
    terminator: tuple[int, ...] = ()

    @classmethod
    def of(cls, framing: Framing) -> Frames:
        """A real model's. Raises ValueError where its frames cannot be told from the text."""
        around = {}
        for role in ("system", "user"):
            x, y = framing.message(role, "cat"), framing.message(role, "dog")
            (at,) = (i for i, (one, other) in enumerate(zip(x, y, strict=True)) if one != other)
            around[role] = x[:at], x[at + 1 :]
        return cls(around, framing.header("assistant"), framing.terminator("assistant", after_stop_token=False))

    @classmethod
    def plain(cls, prose: Prose) -> Frames:
        return cls({}, prose.take(RANDOM_HEADER_TOKENS))

    def framed(self, role: str, prose: Prose, num_tokens: int) -> tuple[int, ...]:
        """A message of `num_tokens` in all."""
        before, after = self.around.get(role, ((), ()))
        return (*before, *prose.take(max(1, num_tokens - len(before) - len(after))), *after)


@dataclass(slots=True)
class Script:
    """One run of a workload: the tokens of its given messages, and what each step says.

    The first `num_compared` of these are what `exact` writes itself, once it has: what is compared is of the model.
    """

    workload: Workload
    given: dict[str, tuple[int, ...]]
    said: dict[str, tuple[int, ...]]
    frames: Frames
    num_compared: int

    def written(self, step: FlatStep) -> tuple[int, ...]:
        """The whole message."""
        return (*self.frames.header, *self.said[step.key], *self.frames.terminator)


def write_script(
    workload: Workload, lengths: Mapping[str, int], frames: Frames, prose: Prose, num_compared: int
) -> Script:
    """`lengths` are those of the given messages, in tokens."""
    given = {key: frames.framed(m.role, prose, lengths[key]) for key, m in workload.messages.items()}
    said = {step.key: prose.take(step.num_tokens) for step in workload.steps}
    return Script(workload, given, said, frames, num_compared)


@dataclass(frozen=True, slots=True)
class Played:
    """`firsts_s` are when each call had its first token, `last_s` when all had ended."""

    firsts_s: list[float]
    last_s: float
    finished: list[CallFinished]


def play(engine: Engine, calls: Sequence[Call], began: float | None = None) -> Played:
    """Submits `calls` together, and runs them to their ends. Times are from `began`; what follows is left to `rest`.

    Raises RuntimeError for a call that fails.
    """
    began = now_s() if began is None else began
    firsts: dict[str, float] = {}
    finished: dict[str, CallFinished] = {}
    for call in calls:
        engine.submit(call)
    while len(finished) < len(calls):
        events = engine.step().events
        passed = now_s() - began
        for event in events:
            if isinstance(event, CallFailed):
                raise RuntimeError(f"{event.call_id}: {event.message}")
            if isinstance(event, CallTokens):
                firsts.setdefault(event.call_id, passed)
            if isinstance(event, CallFinished):
                firsts.setdefault(event.call_id, passed)
                finished[event.call_id] = event
    return Played([firsts[c.call_id] for c in calls], passed if calls else 0.0, [finished[c.call_id] for c in calls])


def rest(engine: Engine) -> float:
    """What the engine does while nobody waits, `corrected`'s measurements of itself for one. In seconds."""
    began = now_s()
    while engine.has_work():
        engine.step()
    return now_s() - began


@dataclass(slots=True)
class Stage:
    """One arm's encodings on an engine."""

    engine: Engine
    arm: Arm
    tolerance: float = TOLERANCE
    specs: dict[EncodingId, EncodingSpec] = field(default_factory=dict)
    homes: dict[str, EncodingSpec] = field(default_factory=dict)

    @property
    def namespace(self) -> str:
        return f"{self.engine.info.namespace}/{self.arm.name}"

    def give(self, script: Script) -> None:
        """Its messages, none of them encoded."""
        for key, tokens in script.given.items():
            self.homes[key] = self._known(make_spec(self.namespace, tokens, 0, EMPTY_VIEW, self.specs))

    def encode(self, keys: Iterable[str]) -> None:
        """Messages as they are by themselves."""
        homes = [self.homes[key] for key in keys]
        play(self.engine, [Call(_id(), self.namespace, EMPTY_VIEW, 0, home.tokens, ()) for home in homes])
        rest(self.engine)

    def reads(self, script: Script, step: FlatStep) -> tuple[str, ...]:
        return script.workload.shared_first(step) if self.arm.shared_first else step.reads

    def compose(self, script: Script, step: FlatStep) -> Composed:
        entries = [self._entry(key) for key in self.reads(script, step)]
        return self._composed(entries)

    def begin(self, script: Script, steps: Sequence[FlatStep], num_tokens: int | None, forced: bool = True) -> Played:
        """`steps`, which are ready together, say their first `num_tokens`; None: all, which their readers then read.

        Times are from when it is known what they read.
        """
        began = now_s()
        composed = [self.compose(script, step) for step in steps]
        calls = []
        for step, found in zip(steps, composed, strict=True):
            tokens = script.said[step.key][:num_tokens]
            sampling = Sampling(max_tokens=len(tokens), forced=tokens if forced else ())
            call = self.call(found.view, found.start, script.frames.header)
            terminator = script.frames.terminator if num_tokens is None else ()
            calls.append(replace(call, sampling=sampling, terminator=terminator))
        played = play(self.engine, calls, began)
        if num_tokens is None:
            for step, done in zip(steps, played.finished, strict=True):
                self.homes[step.key] = self._known(done.encoding)
        return played

    def score(self, script: Script, step: FlatStep, key: str, *, keep: bool) -> CallFinished:
        """What is said first, compared with what `exact` gave, which is kept under `key`."""
        found = self.compose(script, step)
        tokens = script.said[step.key][: script.num_compared]
        sampling = Sampling(max_tokens=len(tokens), forced=tokens)
        scoring = Scoring(keep=key) if keep else Scoring(against=key)
        call = self.call(found.view, found.start, script.frames.header)
        return play(self.engine, [replace(call, sampling=sampling, scoring=scoring)]).finished[0]

    def say(self, script: Script, step: FlatStep) -> None:
        """The whole message is encoded as its decode would have left it, in one go."""
        found = self.compose(script, step)
        call = self.call(found.view, found.start, script.written(step))
        self.homes[step.key] = self._known(play(self.engine, [call]).finished[0].encoding)

    def call(self, view: View, start: int, tokens: Sequence[int]) -> Call:
        needed = tuple(closure(dependencies(view), self.specs))
        return Call(_id(), self.namespace, view, start, tuple(tokens), needed)

    def _entry(self, key: str) -> Entry:
        fidelity = self.arm.fidelity
        message = Message("user", self.homes[key])
        return Entry(message, fidelity, recompute_share=RECOMPUTE_SHARE, tolerance=self.tolerance)

    def _composed(self, entries: Sequence[Entry]) -> Composed:
        found = compose(Space(self.namespace), (), entries, self.specs, max_context=self.engine.info.max_context)
        self.specs.update(found.added)
        return found

    def _known(self, spec: EncodingSpec) -> EncodingSpec:
        return self.specs.setdefault(spec.encoding_id, spec)


@dataclass(slots=True)
class Taken:
    """What one arm's steps took and gave, over runs. Lists have an item a call, `kl` and `agrees` one a token."""

    firsts_ms: dict[str, list[float]] = field(default_factory=dict)  # by step
    waits_ms: list[float] = field(default_factory=list)  # of a run: until all that are ready have begun, summed
    walls_s: list[float] = field(default_factory=list)  # of a run
    encoded: int = 0
    read: int = 0
    reused: int = 0
    kl: dict[str, list[float]] = field(default_factory=dict)
    agrees: list[bool] = field(default_factory=list)
    rest_s: float = 0.0

    def began(self, step: FlatStep, first_s: float, done: CallFinished) -> None:
        self.firsts_ms.setdefault(step.key, []).append(1000 * first_s)
        self.encoded += done.tokens_encoded
        self.read += done.tokens_read
        self.reused += done.tokens_reused

    def compared(self, step: FlatStep, done: CallFinished) -> None:
        if done.comparison is not None:
            self.kl.setdefault(step.key, []).extend(done.comparison.kl)
            self.agrees += done.comparison.agrees

    @property
    def all_kl(self) -> list[float]:
        return [each for found in self.kl.values() for each in found]


def act(
    script: Script,
    stages: Sequence[Stage],
    taken: Mapping[str, Taken],
    *,
    scored: bool,
    turn: int = 0,
    writes: bool = True,
) -> None:
    """One step after another, each in all arms side by side: its first tokens, timed, and then its whole message, all
    at once.

    The first of `stages` is `exact`, and `writes` what is compared. The others take turns in going first.
    """
    exact, others = stages[0], list(stages[1:])
    by = turn % max(1, len(others))
    ordered = [exact, *others[by:], *others[:by]]
    for step in script.workload.steps:
        for stage in ordered:
            forced = stage is not exact or not writes
            played = stage.begin(script, [step], script.num_compared, forced=forced)
            taken[stage.arm.name].began(step, played.firsts_s[0], played.finished[0])
            taken[stage.arm.name].rest_s += rest(stage.engine)
            if not forced:
                own = played.finished[0].generated
                script.said[step.key] = (*own, *script.said[step.key][len(own) :])
        for stage in ordered:
            if scored and not stage.arm.shared_first:  # another prompt has other answers
                key = f"{step.key}/written"
                taken[stage.arm.name].compared(step, stage.score(script, step, key, keep=stage is exact))
        for stage in ordered:
            stage.say(script, step)
            taken[stage.arm.name].rest_s += rest(stage.engine)


def perform(script: Script, stage: Stage, taken: Taken) -> None:
    """A whole run as it is served: every token is decoded, those of steps that are ready together in a batch."""
    waits_s = wall_s = 0.0
    for wave in script.workload.waves():
        played = stage.begin(script, wave, None)
        waits_s += max(played.firsts_s)
        wall_s += played.last_s
        for step, first_s, done in zip(wave, played.firsts_s, played.finished, strict=True):
            taken.began(step, first_s, done)
        taken.rest_s += rest(stage.engine)
    taken.waits_ms.append(1000 * waits_s)
    taken.walls_s.append(wall_s)


def _id() -> str:
    return f"paper-{next(_ids)}"
