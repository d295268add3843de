"""What will be needed next, over all runs, sessions and hints; told to the workers that it concerns.

A thin shell in the event loop. Runs say that they have moved; a while later each is looked at (`outlook`), and what is
new in the nearest use of any encoding goes to those that hold it (`advising`), what their next calls will lack to where
they will run (`prefetching`). How long a look takes decides how long it is until the next one, so that looking ahead
takes a small share of the event loop, however large runs are.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from laban.actors.calls import Advice
from laban.cluster.advising import Advising
from laban.cluster.messages import MessageBook
from laban.cluster.outlook import Reader, RunOutlook, Steps
from laban.cluster.prefetching import MAX_READERS, Coming, Fleet, PlacedHolders, Prefetching
from laban.cluster.workflow.lookahead_likelihoods import Likelihoods
from laban.cluster.workflow.parse import parse_dict
from laban.cluster.workflow.run import Run
from laban.cluster.workflow.timing import StepHistory, as_ticks
from laban.kvstore.encodings import EncodingId, EncodingSpec, Placement, View
from laban.kvstore.uses import Use, UseBook

logger = logging.getLogger(__name__)

UNKNOWN_S = 600.0
"""Until the next read of a message in an open session, of which nobody knows anything."""
UNKNOWN_STEPS = 1000
UNKNOWN_LIKELIHOOD = 0.5
MAX_OF_SESSION = 512  # of a session's encodings, the latest


@dataclass(frozen=True, slots=True)
class ForesightLimits:
    debounce_s: float = 0.02  # from when a run moves until it is looked at
    share_each: float = 0.03  # of the event loop's time, for looking at one run
    share: float = 0.2  # for all of it
    most_at_once_s: float = 0.01  # after so much, others have their turn
    again_s: float = 0.1  # at the soonest, for a run that has not moved
    replan_s: float = 0.25  # while there is something to bring


class WatchedHolders(PlacedHolders, Protocol):
    on_arrival: Callable[[str, EncodingId], None]

    def watch(self, source: str, encoding_ids: Iterable[EncodingId]) -> None: ...

    def unwatch(self, source: str) -> None: ...


class AdvisedFleet(Fleet, Protocol):
    @property
    def directory(self) -> WatchedHolders: ...

    def advise(self, worker_id: str, advice: Advice) -> None:
        """Does not block, raises nothing; unknown workers are ignored."""


@dataclass(slots=True)
class _Source:
    """A run, a session or a hint: `look` says anew what it will read, at which moment nothing is left of it."""

    look: Callable[[float], _Seen]
    not_before_s: float = 0.0
    uses: dict[EncodingId, Use] = field(default_factory=dict)
    coming: Sequence[Coming] = ()


@dataclass(frozen=True, slots=True)
class _Seen:
    """Uses are dated. `again_s`: when to look again, whatever happens."""

    uses: Mapping[EncodingId, Use]
    coming: Sequence[Coming] = ()
    again_s: float | None = None


class Foresight:
    """Lives in one event loop. `start` before anything else; before its look-ahead is compiled nothing is foreseen."""

    def __init__(
        self,
        fleet: AdvisedFleet,
        likelihoods: Likelihoods,
        history: StepHistory,
        *,
        prefetch: bool = True,
        limits: ForesightLimits | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`clock` is that of `Steps.begun_s`."""
        self._fleet = fleet
        self._likelihoods = likelihoods
        self._history = history
        self._limits = limits or ForesightLimits()
        self._clock = clock
        self._book = UseBook()
        self._advising = Advising(self._book, fleet.directory, fleet.advise)
        self._prefetching = Prefetching(fleet) if prefetch else None
        self._sources: dict[str, _Source] = {}
        self._moved: dict[str, None] = {}  # to be looked at, the longest waiting first
        self._due_s: dict[str, float] = {}  # when to look at a source though it has not moved
        self._held_off_s: float | None = None  # until when the soonest of `_moved` has to wait
        self._plan_at_s: float | None = None
        self._wake = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        fleet.directory.on_arrival = self._arrived

    def start(self) -> None:
        self._spawn(self._run())

    async def stop(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # Runs

    def begin(self, source: str, run: Run, book: MessageBook, steps: Steps, rank: int) -> None:
        """`source` is the workflow's id."""
        outlook = RunOutlook(run, book, steps, self._history, self._likelihoods, rank)
        namespace = book.language.namespace
        self._sources[source] = _Source(lambda now_s: self._look_at_run(source, outlook, namespace, rank, now_s))
        self.moved(source)

    def moved(self, source: str) -> None:
        """Something ended or began, or may be read. Cheap; an unknown source is ignored."""
        if source in self._sources:
            self._moved[source] = None
            self._wake.set()

    def end(self, source: str) -> None:
        """Nothing of it will be read any more."""
        if self._sources.pop(source, None) is not None:
            self._moved.pop(source, None)
            self._due_s.pop(source, None)
            self._book.drop(source)
            self._fleet.directory.unwatch(_watcher(source))
            self._wake.set()

    def uses(self, source: str) -> Mapping[EncodingId, Use]:
        """What a source is expected to read, as of its last look; `in_s` is from now on."""
        found = self._sources.get(source)
        now_s = self._clock()
        return {} if found is None else {each: _from(use, -now_s) for each, use in found.uses.items()}

    # Sessions

    def keep(self, source: str, encodings: Callable[[], Sequence[EncodingId]]) -> None:
        """A session's, the latest last, as `encodings` gives them at any time: to be read nobody knows when."""

        def look(now_s: float) -> _Seen:
            at_s = now_s + UNKNOWN_S
            use = Use(UNKNOWN_STEPS, at_s, UNKNOWN_LIKELIHOOD)
            return _Seen(dict.fromkeys(encodings()[-MAX_OF_SESSION:], use), again_s=now_s + UNKNOWN_S / 2)

        self._sources[source] = _Source(look)
        self.moved(source)

    # Hints

    @property
    def step_s(self) -> float:
        """How long a step takes, as far as is known."""
        return self._history.usual_s("generate")

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
        now_s = self._clock()
        expires_s = now_s + ttl_s
        dated = {each: _from(use, now_s) for each, use in uses.items()}
        coming = _coming_by_hint(source, dated, specs)

        def look(now_s: float) -> _Seen:
            if now_s >= expires_s:
                self.forget(source)
            return _Seen(dated, coming, expires_s)

        self._sources[source] = _Source(look)
        self._advising.pin(source, pins, now_s)
        self.moved(source)

    def forget(self, source: str) -> None:
        """Lets go of its pins, too. An unknown source is no error."""
        self._advising.pin(source, {}, self._clock())
        self.end(source)

    # Looking

    async def _run(self) -> None:
        try:
            await asyncio.to_thread(_warm_up)
        except Exception:
            logger.exception("the look-ahead cannot be compiled: nothing is foreseen")
            return
        while True:
            await self._until_due()
            began = time.perf_counter()
            try:
                self.look()
            except Exception:
                logger.exception("looking ahead failed")
            spent_s = time.perf_counter() - began
            await asyncio.sleep(max(self._limits.debounce_s, spent_s / self._limits.share))

    async def _until_due(self) -> None:
        times = [*self._due_s.values()]
        times += [at_s for at_s in (self._held_off_s, self._plan_at_s) if at_s is not None]
        timeout_s = max(0.0, min(times) - self._clock()) if times else None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._wake.wait()
                await asyncio.sleep(self._limits.debounce_s)
        self._wake.clear()

    def look(self) -> None:
        """Look at what has moved, and tell the workers."""
        began = time.perf_counter()
        now_s = self._clock()
        for source in [source for source, due_s in self._due_s.items() if due_s <= now_s]:
            del self._due_s[source]
            self._moved[source] = None
        for source in list(self._moved):
            found = self._sources[source]
            if found.not_before_s > now_s:
                continue
            del self._moved[source]
            try:
                self._look_at(source, found, now_s)
            except Exception:  # it goes on without
                logger.exception("looking ahead of %s failed", source)
                self.end(source)
            if time.perf_counter() - began > self._limits.most_at_once_s:
                self._wake.set()
                break
        waiting = (self._sources[source].not_before_s for source in self._moved)
        self._held_off_s = min(waiting, default=None)
        self._advising.collect(now_s)
        if self._prefetching is not None:
            self._plan(self._prefetching, now_s)
        self._advising.send()

    def _look_at(self, source: str, found: _Source, now_s: float) -> None:
        began = time.perf_counter()
        seen = found.look(now_s)
        if source not in self._sources:  # an expired hint
            return
        before = found.uses
        found.uses = {each: _steady(before.get(each), use, now_s) for each, use in seen.uses.items()}
        found.coming = seen.coming
        self._book.put(source, found.uses)
        if before.keys() != found.uses.keys():
            self._fleet.directory.watch(_watcher(source), found.uses)
        if seen.again_s is None:
            self._due_s.pop(source, None)
        else:
            self._due_s[source] = seen.again_s
        found.not_before_s = now_s + (time.perf_counter() - began) / self._limits.share_each

    def _look_at_run(self, source: str, outlook: RunOutlook, namespace: str, rank: int, now_s: float) -> _Seen:
        look = outlook.look(now_s)
        for run in outlook.unprepared:
            self._spawn(self._prepare(source, run))
        specs = outlook.specs
        uses = {each: _from(use, now_s) for each, use in look.uses.items()}
        readers = look.readers[:MAX_READERS]
        coming = [_coming(f"{source}/{each.address}", each, now_s, rank, namespace, specs) for each in readers]
        again_s = None if look.again_s is None else now_s + max(look.again_s, self._limits.again_s)
        return _Seen(uses, coming, again_s)

    async def _prepare(self, source: str, run: Run) -> None:
        """A large run's look-ahead takes long to begin: not in the event loop."""
        if not run.looks_ahead:
            await asyncio.to_thread(run.begin_look_ahead, self._likelihoods)
        self.moved(source)

    def _plan(self, prefetching: Prefetching, now_s: float) -> None:
        coming = (each for source in self._sources.values() for each in source.coming)
        orders, cancels, is_more = prefetching.plan(coming, lambda each: self._book.nearest(each) is not None, now_s)
        for worker_id, prefetch in orders:
            self._advising.prefetch(worker_id, prefetch, now_s)
        for worker_id, encoding_id in cancels:
            self._advising.cancel(worker_id, encoding_id)
        self._plan_at_s = now_s + self._limits.replan_s if is_more or prefetching.is_busy else None

    def _arrived(self, worker_id: str, encoding_id: EncodingId) -> None:
        self._advising.arrived(worker_id, encoding_id)
        self._wake.set()

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _coming(
    name: str, reader: Reader, now_s: float, rank: int, namespace: str, specs: Mapping[EncodingId, EncodingSpec]
) -> Coming:
    spot = reader.spot
    encodings = [encoding_id for encoding_id, _ in reader.encodings]
    return Coming(name, now_s + reader.in_s, reader.likelihood, rank, namespace, spot.view, spot.stop, encodings, specs)


def _coming_by_hint(source: str, uses: Mapping[EncodingId, Use], specs: Sequence[EncodingSpec]) -> Sequence[Coming]:
    """The call that a hint speaks of: its encodings are read in their order, where does not matter here."""
    by_id = {spec.encoding_id: spec for spec in specs}
    use = next(iter(uses.values()), None)
    if use is None:
        return ()
    read = [by_id[encoding_id] for encoding_id in uses]
    view = View(None, tuple(Placement(spec.encoding_id, spec.start, 0, spec.num_tokens) for spec in read))
    stop = max(spec.stop for spec in read)
    namespace = read[0].namespace
    return (Coming(source, use.in_s, use.likelihood, use.rank, namespace, view, stop, list(uses), by_id),)


def _from(use: Use, now_s: float) -> Use:
    """Dated, of one that counts from now."""
    return Use(use.steps, use.in_s + now_s, use.likelihood, use.fixed, use.rank)


def _steady(before: Use | None, use: Use, now_s: float) -> Use:
    """The use as it was told, if it has hardly changed: estimates waver, and each change has to be told."""
    if before is None or (before.steps, before.fixed, before.rank) != (use.steps, use.fixed, use.rank):
        return use
    wavers = abs(before.in_s - use.in_s) <= max(0.05, 0.2 * (use.in_s - now_s))
    return before if wavers and abs(before.likelihood - use.likelihood) <= 0.05 else use


def _watcher(source: str) -> str:
    """The name under which the directory's view knows what is foreseen of a source: its calls name others, too."""
    return f"foresight {source}"


def _warm_up() -> None:
    """Compiles the look-ahead, or loads it compiled."""
    run = Run(parse_dict({"version": 1, "name": "warm_up", "steps": [{"step": "a"}, {"step": "b", "read": ["a"]}]}), {})
    run.look_ahead().begins(as_ticks(np.ones(2)))
