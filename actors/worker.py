"""A worker's shell: one thread owns the engine; calls come in through an inbox, reports leave through an outbox.

Plain objects that know neither Ray nor torch. `remote` puts a WorkerLoop into a process of its own.
"""

from __future__ import annotations

import gc
import logging
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Protocol

from laban.actors.calls import (
    Advice,
    CacheCounters,
    Call,
    CallEvent,
    CallFailed,
    CallStarted,
    CallTokens,
    WorkerInfo,
    WorkerLoad,
    WorkerRates,
    WorkerReport,
)
from laban.actors.transfers import Export, ExportRequest
from laban.kvstore.directory_messages import Epoch
from laban.kvstore.placements import PlacementChange

logger = logging.getLogger(__name__)

BEAT_S = 2.0
"""After which a worker that has nothing to report says so: one that says nothing for much longer is lost."""

HUNG_S = 600.0
"""An iteration that takes longer will never end. The slowest that do are a prefill of a large model on a CPU, and one
whose kernels are compiled first: minutes at most."""


class EngineHangs(Exception):
    """An iteration did not end."""


class EnginePort(Protocol):
    """What the shell needs of an engine; all of it is called by one thread."""

    @property
    def info(self) -> WorkerInfo: ...
    def submit(self, call: Call) -> None: ...
    def abort(self, call_id: str) -> None: ...
    def advise(self, advice: Advice) -> None: ...
    def export(self, request: ExportRequest) -> None: ...
    def end_export(self, export: Export) -> None: ...
    def has_work(self) -> bool: ...
    def step(self) -> WorkerReport: ...


class PublishingPort(Protocol):
    """What the shell needs of `laban.actors.publishing.Publishing`."""

    def epoch(self) -> Epoch:
        """What the directory calls this life of the worker. Waits for it."""
        ...

    def put(self, changes: Sequence[PlacementChange]) -> None:
        """Does not wait, raises nothing."""

    def stop(self) -> None: ...


class Outbox:
    """Reports on their way to the one reader; those it has not taken yet are merged into one.

    Memory is bounded by the calls outstanding, however slow the reader: tokens of one call become one event, only the
    newest load, rates, counters and tallies are kept. No event is dropped. Reports are numbered as they are taken, so
    merging leaves no gap. What became of encodings is not in them: that goes to the directory. Where there is nothing
    new for `beat_s` a report says just that, whatever the engine is at: the process lives.
    """

    def __init__(self, info: WorkerInfo, beat_s: float = BEAT_S, *, on_beat: Callable[[], None] = lambda: None) -> None:
        """`on_beat` is called, by the reader's thread, each time that nothing was reported for `beat_s`."""
        self._info = info
        self._on_beat = on_beat
        self._beat_s = beat_s
        self._changed = threading.Condition()
        self._events: list[CallEvent] = []
        self._tokens_at: dict[str, int] = {}  # call id -> index in _events of its last event, if that is tokens
        empty = WorkerLoad(num_free_pages=info.num_pages, num_pages=info.num_pages)
        self._last = WorkerReport(info.worker_id, info.epoch, 0, load=empty)
        self._state: tuple[WorkerLoad, WorkerRates, CacheCounters] | None = None
        self._pending = False
        self._sequence = 0
        self._reader = 0
        self._closed = False
        self._failure: BaseException | None = None

    def put(self, report: WorkerReport) -> None:
        """One that says nothing new is dropped: an engine that waits for copies makes thousands a second."""
        with self._changed:
            state = report.load, report.rates, report.cache
            if not report.events and state == self._state and report.tallies in (None, self._last.tallies):
                return
            self._state = state
            if report.tallies is None:
                report = replace(report, tallies=self._last.tallies)
            for event in report.events:
                self._put_event(event)
            self._last = report
            self._pending = True
            self._changed.notify_all()

    def put_events(self, events: Sequence[CallEvent]) -> None:
        """Events that no iteration made; the load is as it was."""
        with self._changed:
            for event in events:
                self._put_event(event)
            self._pending = True
            self._changed.notify_all()

    def fail(self, failure: BaseException) -> None:
        """No report will follow; the reader gets what is left, then the failure."""
        with self._changed:
            self._failure = failure
            self._changed.notify_all()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def reports(self) -> Iterator[WorkerReport]:
        """Blocks for each report. Displaces an earlier reader, whose iteration ends."""
        with self._changed:
            self._reader += 1
            reader = self._reader
            self._changed.notify_all()

        def is_due() -> bool:
            return self._pending or self._closed or self._failure is not None or self._reader != reader

        while True:
            with self._changed:
                is_beat = not self._changed.wait_for(is_due, self._beat_s)
                if is_beat:
                    self._on_beat()
                if self._reader != reader:
                    return
                if not (self._pending or is_beat):
                    if self._failure is not None:
                        raise self._failure
                    return
                report = self._take()
            yield report

    def _put_event(self, event: CallEvent) -> None:
        at = self._tokens_at.get(event.call_id)
        if isinstance(event, CallTokens):
            before = None if at is None else self._events[at]
            if isinstance(before, CallTokens) and before.index + len(before.token_ids) == event.index:
                assert at is not None
                self._events[at] = replace(
                    before,
                    token_ids=before.token_ids + event.token_ids,
                    text=before.text + event.text,
                    logprobs=before.logprobs + event.logprobs,
                )
                return
            self._tokens_at[event.call_id] = len(self._events)
        else:
            self._tokens_at.pop(event.call_id, None)
        self._events.append(event)

    def _take(self) -> WorkerReport:
        self._sequence += 1
        events = tuple(self._events)
        self._events, self._tokens_at = [], {}
        self._pending = False
        last, self._last = self._last, replace(self._last, tallies=None)
        return replace(
            last,
            worker_id=self._info.worker_id,
            epoch=self._info.epoch,
            sequence=self._sequence,
            events=events,
            changes=(),
        )


Item = Call | Advice | ExportRequest | Export | str
"""What the engine is told: a call to submit, advice, an encoding to lend or one given back, a call's id to abort."""


class WorkerLoop:
    """Makes an engine and runs it, in a thread. Methods may be called from any thread; none waits for the engine.

    The engine is made in the thread that runs it because OpenMP keeps a pool of threads for each thread that ever
    computed: with two pools there are more threads than cores, so each pool sleeps between operations, and waking it
    for every one of them doubles the time of an iteration (90 to 174 ms, SmolLM2-135M on two cores).
    """

    def __init__(
        self,
        make_engine: Callable[[], EnginePort],
        *,
        publishing: PublishingPort | None = None,
        max_outstanding: int = 4096,
        beat_s: float = BEAT_S,
        hung_s: float = HUNG_S,
    ) -> None:
        """Waits for the engine, and raises what making it raises.

        `publishing` issues this life's epoch and is told what becomes of encodings; without it nobody is.
        `max_outstanding` bounds the calls accepted and not yet ended; more fail with RESOURCE_EXHAUSTED.
        When an iteration has taken `hung_s` the reports end with EngineHangs.
        """
        self._beat_s, self._max_beats = beat_s, hung_s / beat_s
        self._is_iterating = False
        self._num_beats = 0  # in this iteration: of a process that was stopped meanwhile the time says nothing
        self._max_outstanding = max_outstanding
        self._publishing = publishing
        self._wake = threading.Condition()
        self._inbox: deque[Item] = deque()
        self._outstanding: set[str] = set()
        self._stopping = False
        made: Future[EnginePort] = Future()
        self._thread = threading.Thread(target=self._make_and_run, args=(make_engine, made), name="engine", daemon=True)
        self._thread.start()
        self._engine = made.result()

    @property
    def info(self) -> WorkerInfo:
        return self._info

    def submit(self, calls: Sequence[Call]) -> None:
        refused: list[CallEvent] = []
        with self._wake:
            for call in calls:
                if len(self._outstanding) >= self._max_outstanding:
                    limit = f"the worker has {len(self._outstanding)} calls, expected at most {self._max_outstanding}"
                    refused.append(CallFailed(call.call_id, "RESOURCE_EXHAUSTED", limit))
                else:
                    self._outstanding.add(call.call_id)
                    self._inbox.append(call)
            self._wake.notify()
        if refused:
            self._outbox.put_events(refused)

    def advise(self, advice: Advice) -> None:
        self._put(advice)

    def export(self, request: ExportRequest) -> None:
        """The engine answers it between two iterations."""
        self._put(request)

    def end_export(self, export: Export) -> None:
        """Nobody reads it any more."""
        self._put(export)

    def abort(self, call_ids: Sequence[str]) -> None:
        with self._wake:
            self._inbox.extend(call_ids)
            self._outstanding.difference_update(call_ids)
            self._wake.notify()

    def reports(self) -> Iterator[WorkerReport]:
        """Every report, in order, for one reader at a time. Raises what the engine died of, if it did."""
        return self._outbox.reports()

    def stop(self, timeout_s: float = 10.0) -> None:
        """Let the iteration end, then the thread. Calls not finished are dropped. Idempotent."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        self._thread.join(timeout_s)
        self._outbox.close()
        if self._publishing is not None:
            self._publishing.stop()

    def _put(self, item: Item) -> None:
        with self._wake:
            self._inbox.append(item)
            self._wake.notify()

    def _make_and_run(self, make_engine: Callable[[], EnginePort], made: Future[EnginePort]) -> None:
        try:
            engine = make_engine()
            # What is there now stays: the collector need not look at the libraries' objects again and again.
            gc.collect()
            gc.freeze()
            self._info = engine.info
            if self._publishing is not None:
                self._info = replace(engine.info, epoch=self._publishing.epoch())
            self._outbox = Outbox(self._info, self._beat_s, on_beat=self._beat)
        except BaseException as error:
            made.set_exception(error)
            return
        made.set_result(engine)
        self._run(engine)

    def _run(self, engine: EnginePort) -> None:
        try:
            while True:
                with self._wake:
                    while not (self._inbox or self._stopping or engine.has_work()):
                        self._wake.wait()
                    if self._stopping:
                        return
                    arrived = list(self._inbox)
                    self._inbox.clear()
                self._num_beats, self._is_iterating = 0, True
                for item in arrived:
                    _tell(engine, item)
                if arrived or engine.has_work():  # what it was told, such as an abort, may have left it nothing to do
                    report = engine.step()
                    ended = [e.call_id for e in report.events if not isinstance(e, (CallStarted, CallTokens))]
                    with self._wake:
                        self._outstanding.difference_update(ended)
                    if self._publishing is not None:
                        self._publishing.put(report.changes)
                    self._outbox.put(report)
                self._is_iterating = False
        except BaseException as error:
            # An engine that raised is in an unknown state: the worker ends, its calls run again elsewhere.
            logger.exception("the engine of worker %s failed", engine.info.worker_id)
            self._outbox.fail(error)

    def _beat(self) -> None:
        """Nothing was reported for a while. What hangs cannot be ended within this process: the worker ends."""
        if not self._is_iterating:
            return
        self._num_beats += 1
        frame = sys._current_frames().get(self._thread.ident or 0)
        if self._num_beats < self._max_beats or frame is None:
            return
        why = f"an iteration has not ended after {self._num_beats * self._beat_s:.0f} s"
        where = "".join(traceback.format_stack(frame))
        logger.error("the engine of worker %s hangs: %s; it is at\n%s", self._info.worker_id, why, where)
        self._outbox.fail(EngineHangs(why))


def _tell(engine: EnginePort, item: Item) -> None:
    match item:
        case str():
            engine.abort(item)
        case Advice():
            engine.advise(item)
        case ExportRequest():
            engine.export(item)
        case Export():
            engine.end_export(item)
        case _:
            engine.submit(item)
