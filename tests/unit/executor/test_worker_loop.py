"""The worker's shell: batches in, merged reports out, one reader, an engine that breaks."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest
from scripted_engine import ScriptedEngine, encode

from laban.actors.calls import (
    CacheCounters,
    Call,
    CallFailed,
    CallFinished,
    CallStarted,
    CallTokens,
    Sampling,
    WorkerLoad,
    WorkerRates,
    WorkerReport,
)
from laban.actors.errors import UnsupportedModel
from laban.actors.tallies import WorkerTallies
from laban.actors.worker import EngineHangs, Outbox, WorkerLoop
from laban.kvstore.encodings import EMPTY_VIEW
from laban.kvstore.placements import PlacementChange, PlacementState, Tier


def a_call(call_id: str, header: str = "[x]", text: str = "0123456789") -> Call:
    sampling = Sampling(max_tokens=100, forced=encode(text))
    return Call(call_id, "model/", EMPTY_VIEW, 0, encode(header), (), sampling)


def report(*events, free=0, waited_s=0.0) -> WorkerReport:
    changes = (PlacementChange("a", Tier.DEVICE, PlacementState.READY, 1),)
    cache = CacheCounters(wait_load_s=waited_s)
    rates = WorkerRates(encode_tokens_per_s=float(free))
    return WorkerReport("w0", "e", 99, tuple(events), changes, WorkerLoad(num_free_pages=free), rates, cache)


class Heard:
    """PublishingPort that keeps what it is told."""

    def __init__(self) -> None:
        self.changes: list[PlacementChange] = []
        self.stopped = False

    def epoch(self) -> str:
        return "issued"

    def put(self, changes) -> None:
        self.changes += changes

    def stop(self) -> None:
        self.stopped = True


@pytest.fixture
def outbox():
    return Outbox(ScriptedEngine(epoch="e").info)


def test_reports_are_numbered_from_one_as_they_are_taken(outbox):
    outbox.put(report())
    reader = outbox.reports()
    assert next(reader).sequence == 1
    outbox.put(report(free=3))
    outbox.put(report(free=7, waited_s=2.0))
    taken = next(reader)
    assert (taken.sequence, taken.epoch) == (2, "e")
    assert taken.load.num_free_pages == 7, "the newest"
    assert taken.rates.encode_tokens_per_s == 7.0
    assert taken.cache.wait_load_s == 2.0
    assert taken.changes == (), "those go to the directory"


def test_a_report_without_news_is_not_sent(outbox):
    outbox.put(report())
    reader = outbox.reports()
    next(reader)
    for _ in range(1000):
        outbox.put(report())
    outbox.put(report(free=1))
    taken = next(reader)
    assert (taken.sequence, taken.load.num_free_pages) == (2, 1)
    for _ in range(1000):
        outbox.put(report(free=1))
    outbox.put(report(CallStarted("a", 1, 1), free=1))
    assert next(reader).events


def test_a_worker_without_news_says_that_it_lives():
    outbox = Outbox(ScriptedEngine(epoch="e").info, beat_s=0.01)
    reader = outbox.reports()
    first = next(reader)
    assert (first.sequence, first.events, first.load.num_free_pages) == (1, (), 1000), "nothing is used yet"
    outbox.put(report(free=3))
    assert next(reader).load.num_free_pages == 3
    beat = next(reader)
    assert (beat.sequence, beat.events, beat.load.num_free_pages, beat.tallies) == (3, (), 3, None)
    outbox.close()
    assert next(reader, None) is None


def test_a_slow_reader_gets_tokens_merged_and_every_event(outbox):
    outbox.put(report(CallStarted("a", 1, 1), CallStarted("b", 1, 1)))
    for index in range(1000):
        outbox.put(report(CallTokens("a", index, (index,), "x"), CallTokens("b", 2 * index, (1, 2), "yz")))
    finished = CallFailed("a", "INTERNAL", "over")
    outbox.put(report(finished))
    taken = next(outbox.reports())
    assert taken.events == (
        CallStarted("a", 1, 1),
        CallStarted("b", 1, 1),
        CallTokens("a", 0, tuple(range(1000)), "x" * 1000),
        CallTokens("b", 0, (1, 2) * 1000, "yz" * 1000),
        finished,
    )


def test_tokens_that_do_not_follow_each_other_are_not_merged(outbox):
    outbox.put(report(CallTokens("a", 0, (1,), "x"), CallTokens("a", 5, (2,), "y")))
    assert len(next(outbox.reports()).events) == 2


def test_text_that_lags_behind_is_merged_too(outbox):
    outbox.put(report(CallTokens("a", 0, (1, 2), ""), CallTokens("a", 2, (), "ab"), CallTokens("a", 2, (3,), "c")))
    assert next(outbox.reports()).events == (CallTokens("a", 0, (1, 2, 3), "abc"),)


def test_a_failure_comes_after_what_is_left(outbox):
    outbox.put(report(free=4))
    outbox.fail(RuntimeError("broken"))
    reader = outbox.reports()
    assert next(reader).load.num_free_pages == 4
    with pytest.raises(RuntimeError, match="broken"):
        next(reader)


def test_a_new_reader_displaces_the_old(outbox):
    ended = threading.Event()

    def read():
        for _ in outbox.reports():
            raise AssertionError("the old reader took a report")
        ended.set()

    thread = threading.Thread(target=read)
    thread.start()
    while not outbox._reader:
        threading.Event().wait(0.001)
    new = outbox.reports()
    got: list[WorkerReport] = []
    taker = threading.Thread(target=lambda: got.append(next(new)))
    taker.start()
    assert ended.wait(5)
    outbox.put(report())
    taker.join(5)
    thread.join(5)
    assert got[0].sequence == 1


def collect(loop: WorkerLoop, count: int) -> dict[str, list]:
    """Events by call until `count` calls have ended."""
    events: dict[str, list] = {}
    ended = 0
    for taken in loop.reports():
        for event in taken.events:
            events.setdefault(event.call_id, []).append(event)
            ended += isinstance(event, (CallFinished, CallFailed))
        if ended == count:
            return events
    raise AssertionError("the reports ended early")


def test_calls_run_to_their_end_and_tokens_add_up():
    loop = WorkerLoop(ScriptedEngine)
    loop.submit([a_call("a"), a_call("b", text="xyz"), a_call("c", header="[FAIL]")])
    events = collect(loop, 3)
    assert isinstance(events["a"][0], CallStarted)
    tokens = [event for event in events["a"] if isinstance(event, CallTokens)]
    assert "".join(event.text for event in tokens) == "0123456789"
    assert events["a"][-1].text == "0123456789"
    assert events["b"][-1].text == "xyz"
    assert events["c"] == [CallFailed("c", "RESOURCE_EXHAUSTED", "the script says so")]
    loop.stop()
    assert not loop._thread.is_alive()


def test_what_becomes_of_encodings_is_published_under_the_epoch_that_was_issued():
    heard = Heard()
    loop = WorkerLoop(ScriptedEngine, publishing=heard)
    assert loop.info.epoch == "issued"
    loop.submit([a_call("a")])
    collect(loop, 1)
    assert {change.encoding_id for change in heard.changes} == set(loop._engine.held) != set()
    loop.stop()
    assert heard.stopped


def test_an_aborted_call_reports_no_more_and_others_go_on():
    engine = ScriptedEngine()
    loop = WorkerLoop(lambda: engine)
    loop.submit([a_call("slow", header="[SLOW]", text="x" * 10_000), a_call("b")])
    loop.abort(["slow", "unknown"])
    events = collect(loop, 1)
    assert isinstance(events["b"][-1], CallFinished)
    assert not engine.running
    loop.stop()


def test_what_an_abort_leaves_is_reported_though_there_is_nothing_more_to_do() -> None:
    loop = WorkerLoop(ScriptedEngine)
    loop.submit([a_call("slow", header="[SLOW]", text="x" * 10_000)])
    reports = loop.reports()
    assert next(reports).load.num_running == 1
    loop.abort(["slow"])
    late = threading.Timer(5.0, loop.stop)
    late.start()
    assert any(not each.load.num_running for each in reports)
    late.cancel()
    loop.stop()


def test_more_calls_than_it_takes_are_refused_and_ended_ones_make_room():
    loop = WorkerLoop(ScriptedEngine, max_outstanding=2)
    loop.submit([a_call(name, text="x") for name in ("a", "b", "c")])
    events = collect(loop, 3)
    assert events["c"][-1].status == "RESOURCE_EXHAUSTED"
    loop.submit([a_call("d", text="x")])
    assert isinstance(collect(loop, 1)["d"][-1], CallFinished)
    loop.stop()


def test_an_engine_that_raises_ends_the_reports():
    loop = WorkerLoop(ScriptedEngine)
    loop.submit([a_call("a", header="[BOOM]")])
    with pytest.raises(RuntimeError, match="the script says so"):
        list(loop.reports())
    loop._thread.join(5)
    assert not loop._thread.is_alive()


def test_a_stopped_worker_ends_its_reports():
    loop = WorkerLoop(ScriptedEngine)
    loop.submit([replace(a_call("a", header="[SLOW]"), sampling=Sampling(max_tokens=9, forced=(1,) * 9))])
    loop.stop()
    for taken in loop.reports():
        assert taken.sequence == 1
    loop.stop()


def test_an_engine_is_made_by_the_thread_that_runs_it_and_its_failure_is_the_callers() -> None:
    made_in = []

    def make_engine() -> ScriptedEngine:
        made_in.append(threading.current_thread())
        return ScriptedEngine()

    loop = WorkerLoop(make_engine)
    assert made_in == [loop._thread] != [threading.current_thread()]
    loop.stop()

    def refuse() -> ScriptedEngine:
        raise UnsupportedModel("no", field="model")

    with pytest.raises(UnsupportedModel, match="no"):
        WorkerLoop(refuse)


def test_the_newest_tallies_are_kept_and_told_once(outbox):
    reader = outbox.reports()
    told, newer = WorkerTallies(tokens_decoded=1), WorkerTallies(tokens_decoded=2)
    outbox.put(replace(report(free=1), tallies=told))
    outbox.put(report(free=2))
    assert next(reader).tallies == told
    outbox.put(replace(report(free=2), tallies=newer))
    assert next(reader).tallies == newer
    outbox.put(report(free=3))
    assert next(reader).tallies is None


class Hanging(ScriptedEngine):
    """Its first iteration does not end before it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.goes_on = threading.Event()

    def step(self) -> WorkerReport:
        self.goes_on.wait()
        return super().step()


def test_an_engine_that_hangs_ends_the_worker_though_its_process_lives(caplog):
    engine = Hanging()
    loop = WorkerLoop(lambda: engine, beat_s=0.01, hung_s=0.2)
    reports = loop.reports()
    for _ in range(40):  # it has nothing to do: however long, that is no hang
        next(reports)
    loop.submit([a_call("a")])
    with pytest.raises(EngineHangs, match="has not ended after 0 s"):
        assert all(not report.events for report in reports)
    assert "hangs: an iteration has not ended" in caplog.text
    assert "self.goes_on.wait()" in caplog.text, "where"
    engine.goes_on.set()
    loop.stop()


def test_an_engine_that_is_slow_does_not_hang():
    class Slow(ScriptedEngine):
        def step(self) -> WorkerReport:
            threading.Event().wait(0.03)  # three beats
            return super().step()

    loop = WorkerLoop(Slow, beat_s=0.01, hung_s=0.1)
    loop.submit([a_call("a")])
    events = (event for report in loop.reports() for event in report.events)
    assert any(isinstance(event, CallFinished) for event in events)
    loop.stop()
