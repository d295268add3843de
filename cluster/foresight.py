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
from itertools import islice
from typing import Protocol

import numpy as np

from laban.actors.calls import Advice, Prefetch
from laban.cluster.advising import Advising
from laban.cluster.forecasts import Forecast, HintForecast, RunForecast, SessionForecast, dated
from laban.cluster.messages import MessageBook
from laban.cluster.outlook import RunOutlook, Steps
from laban.cluster.prefetching import Fleet, PlacedHolders, Prefetching
from laban.cluster.view_tree import ViewTree
from laban.cluster.workflow.lookahead_likelihoods import Likelihoods
from laban.cluster.workflow.parse import parse_dict
from laban.cluster.workflow.run import Run
from laban.cluster.workflow.states import ReadyStep
from laban.cluster.workflow.timing import StepHistory, as_ticks
from laban.kvstore.encodings import EncodingId, EncodingSpec, closure
from laban.kvstore.uses import Use, UseBook

logger = logging.getLogger(__name__)

MAX_SUCCESSORS = 64  # told to the router


@dataclass(frozen=True, slots=True)
class ForesightLimits:
    debounce_s: float = 0.02  # from when a run moves until it is looked at
    share_each: float = 0.01  # of the event loop's time, for looking at one run, and for planning what to bring
    share: float = 0.2  # for all of it
    most_at_once_s: float = 0.01  # after so much, others have their turn
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
    """A run, a session or a hint, and what it last said."""

    forecast: Forecast
    not_before_s: float = 0.0
    uses: dict[EncodingId, Use] = field(default_factory=dict)
    successors: Sequence[EncodingSpec] | None = None  # of these, once somebody has asked


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
        timer: Callable[[], float] = time.perf_counter,
    ) -> None:
        """`clock` is that of `Steps.begun_s`; by `timer` it is told what looking takes."""
        self._fleet = fleet
        self._likelihoods = likelihoods
        self._history = history
        self._limits = limits or ForesightLimits()
        self._clock, self._timer = clock, timer
        self._book = UseBook()
        self._advising = Advising(self._book, fleet.directory, fleet.advise)
        self._prefetching = Prefetching(fleet) if prefetch else None
        self._sources: dict[str, _Source] = {}
        self._moved: dict[str, None] = {}  # to be looked at, the longest waiting first
        self._due_s: dict[str, float] = {}  # when to look at a source though it has not moved
        self._held_off_s: float | None = None  # until when the soonest of `_moved` has to wait
        self._plan_at_s: float | None = None
        self._no_plan_before_s = 0.0
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

    def begin(
        self, source: str, run: Run, book: MessageBook, steps: Steps, rank: int, tree: ViewTree | None = None
    ) -> None:
        """`source` is the workflow's id; `tree` may know some of its views."""
        outlook = RunOutlook(run, tree or ViewTree(book), steps, self._history, self._likelihoods, rank)
        self._add(source, RunForecast(source, outlook, rank))

    def moved(self, source: str) -> None:
        """Something ended or began, or may be read. Cheap; an unknown source is ignored."""
        if source not in self._moved and source in self._sources:
            self._moved[source] = None
            self._wake.set()

    def read(self, source: str, step: ReadyStep, worker_id: str) -> None:
        """A step of a run has read what it reads, and made its message, at a worker; "" for one without a call. An
        unknown source is ignored."""
        found = self._sources.get(source)
        if found is not None and isinstance(found.forecast, RunForecast):
            found.forecast.note(step, worker_id)

    def end(self, source: str) -> None:
        """Nothing of it will be read any more."""
        found = self._sources.get(source)
        if found is not None and isinstance(found.forecast, RunForecast):
            try:
                self._advising.over(found.forecast.end())
            except Exception:  # the workers take longer to find out by themselves
                logger.exception("what %s leaves behind is not known", source)
        self._drop(source)

    def _drop(self, source: str) -> None:
        if self._sources.pop(source, None) is not None:
            self._moved.pop(source, None)
            self._due_s.pop(source, None)
            self._book.drop(source)
            if self._prefetching is not None:
                self._prefetching.expect(source, ())
            self._fleet.directory.unwatch(_watcher(source))
            self._wake.set()

    # Who else wants to know

    def uses(self, source: str) -> Mapping[EncodingId, Use]:
        """What a source is expected to read, as of its last look; `in_s` is from now on."""
        found = self._sources.get(source)
        now_s = self._clock()
        return {} if found is None else {each: dated(use, -now_s) for each, use in found.uses.items()}

    def successors(self, source: str, namespace: str = "") -> Mapping[EncodingId, int] | None:
        """The tokens of what the calls of a source will read, the soonest first; None while nobody knows. With a
        `namespace` that of its encodings alone."""
        found = self._sources.get(source)
        if found is None or not found.uses:
            return None
        if found.successors is None:
            specs = found.forecast.specs
            soonest = (each for each in found.uses if each in specs)
            found.successors = [specs[each] for each in islice(soonest, MAX_SUCCESSORS)]
        return {
            spec.encoding_id: spec.num_tokens
            for spec in found.successors
            if not namespace or spec.namespace == namespace
        }

    def next_use(self, encoding_id: EncodingId) -> Use | None:
        """The nearest of all, from now on; None if nobody is known to read it."""
        use = self._book.nearest(encoding_id)
        return None if use is None else dated(use, -self._clock())

    def upcoming(self) -> Mapping[EncodingId, Use]:
        """Everything that somebody will read."""
        now_s = self._clock()
        return {each: dated(use, -now_s) for each, use in self._book.all().items()}

    def specs_of(self, encoding_id: EncodingId) -> Sequence[EncodingSpec]:
        """How to encode it: itself, last, and all that it depends on. Nothing for one that is unknown."""
        for source in self._book.sources(encoding_id):
            specs = self._sources[source].forecast.specs
            if encoding_id in specs:
                return closure([encoding_id], specs)
        return ()

    # Sessions

    def keep(
        self,
        source: str,
        encodings: Callable[[], Sequence[EncodingId]],
        specs: Callable[[], Mapping[EncodingId, EncodingSpec]],
    ) -> None:
        """A session's messages, the latest last: to be read nobody knows when. Both are asked whenever the source has
        moved; `specs` has all that the encodings depend on, too."""
        self._add(source, SessionForecast(encodings, specs))

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
        *,
        prefetch: bool = True,
    ) -> None:
        """Replaces all that `source` said. `uses` count from now, as do `pins`, in seconds; `specs` are all that it
        takes to compute the encodings. Forgotten after `ttl_s`. Without `prefetch` it is kept where it is, and brought
        nowhere for a call that reads it."""
        now_s = self._clock()
        at_s = {each: dated(use, now_s) for each, use in uses.items()}
        self._add(source, HintForecast(source, at_s, specs, now_s + ttl_s, prefetch=prefetch))
        self._advising.pin(source, pins, now_s)

    def forget(self, source: str) -> None:
        """What it said, and its pins: not a word about what it may still read. An unknown source is no error."""
        self._advising.pin(source, {}, self._clock())
        self._drop(source)

    # What is to be everywhere

    def bring(self, worker_id: str, encoding_id: EncodingId) -> bool:
        """Have this worker bring, or encode, what a source has said will be read. Whether it was asked to: not before
        the source has been looked at."""
        specs = self.specs_of(encoding_id)
        if specs:
            self._advising.prefetch(worker_id, Prefetch(encoding_id, tuple(specs)), self._clock())
            self._wake.set()
        return bool(specs)

    # Looking

    def _add(self, source: str, forecast: Forecast) -> None:
        """In the place of what the source said before, whose uses are told until the next look."""
        uses = self._sources[source].uses if source in self._sources else {}
        self._sources[source] = _Source(forecast, uses=uses)
        self.moved(source)

    async def _run(self) -> None:
        try:
            await asyncio.to_thread(_warm_up)
        except Exception:
            logger.exception("the look-ahead cannot be compiled: nothing is foreseen")
            return
        while True:
            await self._until_due()
            began = self._timer()
            try:
                self.look()
            except Exception:
                logger.exception("looking ahead failed")
            spent_s = self._timer() - began
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
        began = self._timer()
        now_s = self._clock()
        for source in [source for source, due_s in self._due_s.items() if due_s <= now_s]:
            del self._due_s[source]
            self._moved[source] = None
        num_looked_at = 0
        for source in [source for source in self._moved if self._sources[source].not_before_s <= now_s]:
            del self._moved[source]
            num_looked_at += 1
            try:
                self._look_at(source, now_s)
            except Exception:  # it goes on without
                logger.exception("looking ahead of %s failed", source)
                self.forget(source)
            if self._timer() - began > self._limits.most_at_once_s:
                break
        self._held_off_s = min((self._sources[source].not_before_s for source in self._moved), default=None)
        self._advising.collect(now_s)
        if self._prefetching is not None:
            try:
                self._plan(self._prefetching, num_looked_at > 0, now_s)
            except Exception:  # calls bring what they need themselves
                logger.exception("planning prefetches failed")
        self._advising.send()

    def _look_at(self, source: str, now_s: float) -> None:
        began = self._timer()
        found = self._sources[source]
        seen = found.forecast.look(now_s)
        if seen is None:
            self.forget(source)
            return
        if isinstance(found.forecast, RunForecast):
            for run in found.forecast.unprepared:
                self._spawn(self._prepare(source, run))
        before = found.uses
        found.uses = {each: _steady(before.get(each), use, now_s) for each, use in seen.uses.items()}
        found.successors = None
        self._book.put(source, found.uses)
        self._advising.over(seen.over)
        if self._prefetching is not None:
            self._prefetching.expect(source, seen.coming)
        if before.keys() != found.uses.keys():
            self._fleet.directory.watch(_watcher(source), found.uses)
        if seen.again_s is None:
            self._due_s.pop(source, None)
        else:
            self._due_s[source] = seen.again_s
        found.not_before_s = now_s + (self._timer() - began) / self._limits.share_each

    async def _prepare(self, source: str, run: Run) -> None:
        """A large run's look-ahead takes long to begin: not in the event loop."""
        if not run.looks_ahead:
            await asyncio.to_thread(run.begin_look_ahead, self._likelihoods)
        self.moved(source)

    def _plan(self, prefetching: Prefetching, has_news: bool, now_s: float) -> None:
        is_due = self._plan_at_s is not None and self._plan_at_s <= now_s
        if not (has_news or is_due):
            return
        if now_s < self._no_plan_before_s:
            self._plan_at_s = self._no_plan_before_s
            return
        began = self._timer()
        orders, cancels, is_more = prefetching.plan(lambda each: self._book.nearest(each) is not None, now_s)
        for worker_id, prefetch in orders:
            self._advising.prefetch(worker_id, prefetch, now_s)
        for worker_id, encoding_id in cancels:
            self._advising.cancel(worker_id, encoding_id)
        self._plan_at_s = now_s + self._limits.replan_s if is_more else None
        self._no_plan_before_s = now_s + (self._timer() - began) / self._limits.share_each

    def _arrived(self, worker_id: str, encoding_id: EncodingId) -> None:
        self._advising.arrived(worker_id, encoding_id)
        self._wake.set()

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


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
