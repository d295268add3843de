"""What the engine is timed on: dense prefills, cached contexts, connected agents, a panel of voters, long decodes.

Every repetition has tokens of its own, so nothing is found that was not put there. Times are of the wall clock, from
the first submission to the end of the step whose report has the token.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import count, pairwise
from statistics import fmean, median

from gpu_model import NAMESPACE, Size
from gpu_peer import FIGURES
from gpu_timing import WARM_UPS, median_of
from report import Row

from laban.actors.calls import Call, CallFailed, CallTokens, Sampling
from laban.actors.engine.engine import Engine
from laban.kvstore.encodings import (
    EMPTY_VIEW,
    EncodingSpec,
    Placement,
    View,
    closure,
    dependencies,
    extend,
    make_spec,
    view_stop,
)

HEADER = 16  # new tokens of a call that reads
LIMIT_S = 60.0  # of one play: something hangs
UNSTEADY_STEPS = 4  # of a decode, at its beginning
_ids = count()


@dataclass(frozen=True, slots=True)
class Played:
    """When the calls' tokens were told, in milliseconds from the first submission: a list a call."""

    tokens_ms: list[list[float]]

    @property
    def first_ms(self) -> float:
        """When all had their first."""
        return max(times[0] for times in self.tokens_ms)

    @property
    def last_ms(self) -> float:
        return max(times[-1] for times in self.tokens_ms)

    @property
    def gaps_ms(self) -> list[float]:
        """Between the steps that gave every call a token."""
        steps = [max(times) for times in zip(*self.tokens_ms, strict=True)]
        return [after - before for before, after in pairwise(steps)]


@dataclass(slots=True)
class Desk:
    """Makes messages, views and calls, and plays calls on the engine."""

    engine: Engine
    rng: random.Random
    specs: dict[str, EncodingSpec] = field(default_factory=dict)

    def clear(self) -> None:
        """Forgets every message, here and in the store."""
        self.specs.clear()
        self.engine.store.evict_all()

    def message(self, num_tokens: int, view: View = EMPTY_VIEW) -> EncodingSpec:
        """A new one under `view`, not encoded."""
        spec = make_spec(NAMESPACE, self._tokens(num_tokens), view_stop(view, self.specs), view, self.specs)
        self.specs[spec.encoding_id] = spec
        return spec

    def encode(self, messages: Iterable[EncodingSpec]) -> None:
        """Together."""
        self.play([Call(_call_id(), NAMESPACE, m.view, m.start, m.tokens, self._needed(m.view)) for m in messages])

    def view(self, messages: Iterable[EncodingSpec]) -> View:
        """One after another from position 0, wherever they were encoded."""
        view, position = EMPTY_VIEW, 0
        for message in messages:
            view = extend(view, Placement(message.encoding_id, position, 0, message.num_tokens), self.specs)
            position += message.num_tokens
        return view

    def decode(self, view: View, num_new: int, num_out: int) -> Call:
        """Greedy, of exactly `num_out` tokens after `num_new` that nobody has seen."""
        start, sampling = view_stop(view, self.specs), Sampling(max_tokens=num_out)
        return Call(_call_id(), NAMESPACE, view, start, self._tokens(num_new), self._needed(view), sampling)

    def play(self, calls: Sequence[Call]) -> Played:
        """Submits `calls` together and runs until nothing is left to do. Raises RuntimeError for one that fails."""
        told: dict[str, list[float]] = {call.call_id: [] for call in calls}
        began = time.perf_counter()
        for call in calls:
            self.engine.submit(call)
        while self.engine.has_work():
            events = self.engine.step().events
            passed_s = time.perf_counter() - began
            for event in events:
                if isinstance(event, CallFailed):
                    raise RuntimeError(f"{event.call_id}: {event.message}")
                if isinstance(event, CallTokens):
                    told[event.call_id] += [1000 * passed_s] * len(event.token_ids)
            if passed_s > LIMIT_S:
                raise RuntimeError(f"{len(calls)} calls are not done after {LIMIT_S:.0f} s")
        for call in calls:
            wanted = 0 if call.sampling is None else call.sampling.max_tokens
            if len(told[call.call_id]) != wanted:
                raise RuntimeError(f"{call.call_id} gave {len(told[call.call_id])} tokens of {wanted}")
        return Played(list(told.values()))

    def _tokens(self, num_tokens: int) -> tuple[int, ...]:
        return tuple(self.rng.choices(range(self.engine.info.vocab_size), k=num_tokens))

    def _needed(self, view: View) -> tuple[EncodingSpec, ...]:
        return tuple(closure(dependencies(view), self.specs))


def _call_id() -> str:
    return f"call-{next(_ids)}"


def _ms(name: str, value: float, target: float | None = None) -> Row:
    return Row(name, value, "ms", target, "lower")


def measure_dense(desk: Desk, size: Size, reps: int) -> list[Row]:
    """One prompt, nothing cached, and one token. Compute bound: 2 operations a weight and token."""
    rows = []
    for num_tokens in (1024, 2560, 5120, 8192):

        def once(num_tokens: int = num_tokens) -> float:
            desk.clear()
            return desk.play([desk.decode(EMPTY_VIEW, size.tokens(num_tokens), 1)]).first_ms

        name = f"ttft.dense_{num_tokens}"
        rows.append(_ms(name, median_of(once, reps), 1.05 * FIGURES[name]))
    return rows


def measure_cached(desk: Desk, size: Size, reps: int) -> list[Row]:
    """5,120 tokens that stand in the store, as one message and as eight in a new order each time."""
    desk.clear()
    whole = desk.message(size.tokens(5120))
    parts = [desk.message(size.tokens(640)) for _ in range(8)]
    desk.encode([whole, *parts])
    rows = []
    for num_new, target in ((16, 8.0), (64, None)):

        def prefix(num_new: int = num_new) -> float:
            return desk.play([desk.decode(desk.view([whole]), size.tokens(num_new), 1)]).first_ms

        def reordered(num_new: int = num_new) -> float:
            view = desk.view(desk.rng.sample(parts, len(parts)))
            return desk.play([desk.decode(view, size.tokens(num_new), 1)]).first_ms

        rows.append(_ms(f"ttft.prefix_5120.new_{num_new}", median_of(prefix, reps), target))
        rows.append(_ms(f"ttft.reordered_8x640.new_{num_new}", median_of(reordered, reps), target))
    return rows


def measure_agents(desk: Desk, size: Size, reps: int) -> list[Row]:
    """Five agents, each reading its own prefix, the task, and what those before it said as they encoded it."""
    runs = [_play_agents(desk, size) for _ in range(WARM_UPS + reps)][WARM_UPS:]
    times = [median(run) for run in zip(*runs, strict=True)]
    return [_ms(f"ttft.agent_{i}", time_ms, 10.0 if i > 1 else None) for i, time_ms in enumerate(times, 1)]


def _play_agents(desk: Desk, size: Size) -> list[float]:
    """The TTFT of each. The task is encoded by the first who reads it."""
    desk.clear()
    prefixes = [desk.message(size.tokens(512)) for _ in range(5)]
    desk.encode(prefixes)
    said = [desk.message(size.tokens(1024))]
    times = []
    for prefix in prefixes:
        view = desk.view([prefix, *said])
        times.append(desk.play([desk.decode(view, size.tokens(HEADER), 1)]).first_ms)
        answer = desk.message(size.tokens(512), view)
        desk.encode([answer])  # as the decode would have left it
        said.append(answer)
    return times


def measure_panel(desk: Desk, size: Size, reps: int) -> list[Row]:
    """16 voters read their own 64 tokens of instructions and 8 messages in their own order, and say 44 tokens."""
    rows = []
    for name, before, target in (("encoded", True, 400.0), ("encoding", False, 620.0)):
        plays = [_play_panel(desk, size, encoded=before) for _ in range(WARM_UPS + reps)][WARM_UPS:]
        rows.append(_ms(f"panel.{name}.first_tokens", median(played.first_ms for played in plays)))
        rows.append(_ms(f"panel.{name}.end_to_end", median(played.last_ms for played in plays), target))
    rows.append(Row("pages.waste", 100 * _waste(desk.engine), "%", better="lower"))
    return rows


def _play_panel(desk: Desk, size: Size, *, encoded: bool) -> Played:
    desk.clear()
    messages = [desk.message(size.tokens(1024)) for _ in range(8)]
    if encoded:
        desk.encode(messages)
    calls = []
    for _ in range(size.calls(16)):
        view = desk.view([desk.message(size.tokens(64)), *desk.rng.sample(messages, len(messages))])
        calls.append(desk.decode(view, size.tokens(HEADER), size.outputs(44)))
    return desk.play(calls)


def _waste(engine: Engine) -> float:
    """Share of the slots held that hold no token."""
    held = engine.store.allocator.num_pages - engine.store.allocator.num_free
    used = sum(num_tokens for _, num_tokens in engine.store.ready_ids())
    return 1 - used / (held * engine.store.page_size)


def measure_itl(desk: Desk, size: Size, reps: int) -> list[Row]:
    """Time between tokens once all calls decode. Bandwidth bound: the weights, and the contexts' keys and values."""
    rows = []
    for name, batch, private, target in (
        ("shared_1", 1, False, 6.4),
        ("shared_32", 32, False, 7.5),
        ("private_32", 32, True, 14.0),
    ):
        desk.clear()
        contexts = [desk.message(size.tokens(5120)) for _ in range(size.calls(batch) if private else 1)]
        desk.encode(contexts)
        views = [desk.view([context]) for context in contexts] * (1 if private else size.calls(batch))
        gaps = []
        for _ in range(1 + reps):  # the first warms up
            played = desk.play([desk.decode(view, size.tokens(HEADER), size.outputs(64)) for view in views])
            gaps.append(played.gaps_ms[UNSTEADY_STEPS:])
        steady = [gap for run in gaps[1:] for gap in run]
        rows.append(_ms(f"itl.{name}", median(steady), target))
        rows.append(_ms(f"itl.{name}.mean", fmean(steady)))
    return rows
