"""The dispatcher around the router: order of waiting calls, what it sends, explains, counts and records."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from types import SimpleNamespace

import pytest
from executor_rig import FAST, until
from loop_directory import LoopDirectory
from orders import Sink, order
from scripted_engine import LoopWorker, ScriptedEngine, encode

from laban.actors.calls import Advice, Call, CallFinished, WorkerLoad, WorkerRates, WorkerReport
from laban.cluster.dispatch import Dispatcher, DispatchLimits
from laban.cluster.routing.recorder import Recorder, read_calls
from laban.cluster.slots import Order
from laban.kvstore.encodings import EMPTY_VIEW, View, make_spec
from laban.kvstore.placements import PlacementChange, PlacementState, Tier
from laban.kvstore.uses import Use


class TurnsPolicy:
    """A user's own."""

    def key(self, worker, call):
        return (worker.turns,)


class BrokenPolicy:
    def key(self, worker, call):
        raise RuntimeError("no idea")


async def with_dispatcher(scenario, num_workers=2, *, directory=False, infos=None, **options):
    shards = LoopDirectory() if directory else None
    workers = []
    for n in range(num_workers):
        engine = ScriptedEngine(worker_id=f"w{n}")
        engine.info = replace(engine.info, **(infos or {}))
        workers.append(LoopWorker(engine, shards))
    dispatcher = Dispatcher(workers, directory=shards, **{"limits": FAST, **options})
    dispatcher.start()
    try:
        await scenario(dispatcher, workers, Sink())
    finally:
        await dispatcher.stop()


def spec_of(text: str):
    return make_spec("model/", encode(text), 0, EMPTY_VIEW, {})


def test_calls_wait_by_rank_then_arrival():
    async def scenario(dispatcher, workers, sink):
        workers[0].paused = True
        ranks = {"a": 5, "b": 5, "c": 7, "d": 2, "e": 5, "f": 2}
        dispatcher.submit([replace(order(sink, key), rank=rank) for key, rank in ranks.items()])
        await until(lambda: workers[0].batches)
        assert workers[0].batches == [["d#1"]]
        dispatcher.submit([replace(order(sink, "late"), rank=2)])
        dispatcher.abort(["b"])
        workers[0].resume()
        await until(lambda: len(sink.ended) == 6)
        assert [batch[0] for batch in workers[0].batches] == ["d#1", "f#1", "late#1", "a#1", "e#1", "c#1"]
        assert [call.rank for call in workers[0].engine.calls] == [2, 2, 2, 5, 5, 7]

    asyncio.run(with_dispatcher(scenario, 1, limits=DispatchLimits(max_calls_per_worker=1)))


def test_a_call_that_fails_behind_the_routers_word_counts_for_no_worker(monkeypatch):
    async def scenario(dispatcher, workers, sink):
        ledger = dispatcher.router.ledger
        monkeypatch.setattr(dispatcher._decisions, "keep", lambda *_: 1 / 0)
        dispatcher.submit([order(sink, "a", "shared text")])
        await until(lambda: sink.ended)
        assert sink.ended["a"].status == "INTERNAL"
        (account,) = ledger.accounts.values()
        assert (account.num_calls, account.queued_tokens, ledger.num_calls, ledger.coming) == (0, 0, 0, {})
        ledger.check_integrity()
        assert dispatcher.num_outstanding == 0
        assert not workers[0].batches

    asyncio.run(with_dispatcher(scenario, 1))


def test_a_call_that_is_aborted_by_who_hears_that_another_failed_is_not_sent(monkeypatch):
    async def scenario(dispatcher, workers, sink):
        keep = dispatcher._decisions.keep
        monkeypatch.setattr(dispatcher._decisions, "keep", lambda key, *rest: 1 / 0 if key == "b" else keep(key, *rest))
        sink.call_failed = lambda key, attempt, error: dispatcher.abort(["a"])
        dispatcher.submit([order(sink, key) for key in "abc"])
        await until(lambda: "c" in sink.ended)
        assert workers[0].batches == [["c#1"]]
        assert dispatcher.num_outstanding == 0

    asyncio.run(with_dispatcher(scenario, 1))


def test_a_trace_that_cannot_be_written_costs_no_call_and_no_worker(monkeypatch, caplog):
    async def scenario(dispatcher, workers, sink):
        traces = SimpleNamespace(here=lambda: "", call_ended=lambda *_: 1 / 0)
        monkeypatch.setattr(dispatcher, "_traces", traces)
        dispatcher.submit([order(sink, key) for key in "ab"])
        await until(lambda: len(sink.ended) == 2)
        assert all(isinstance(end, CallFinished) for end in sink.ended.values())
        assert [worker.alive for worker in dispatcher.workers()] == [True]
        dispatcher.router.ledger.check_integrity()
        assert "ZeroDivisionError" in caplog.text

    asyncio.run(with_dispatcher(scenario, 1))


def test_calls_that_come_and_go_while_all_workers_are_full_leave_nothing():
    async def scenario(dispatcher, workers, sink):
        workers[0].paused = True
        dispatcher.submit([order(sink, "a")])
        await until(lambda: workers[0].batches)
        for n in range(2000):
            dispatcher.submit([order(sink, f"x{n}")])
            dispatcher.abort([f"x{n}"])
        assert len(dispatcher.pools.default.waiting._heap) < 200
        workers[0].resume()
        dispatcher.submit([order(sink, "b")])
        await until(lambda: len(sink.ended) == 2)

    asyncio.run(with_dispatcher(scenario, 1, limits=DispatchLimits(max_calls_per_worker=1)))


def test_a_prediction_is_where_the_call_then_goes_and_sends_nothing():
    async def scenario(dispatcher, workers, sink):
        dispatcher.submit([order(sink, "a", "x" * 300)])
        await until(lambda: "a" in sink.ended)
        again = order(sink, "b", "x" * 300)
        predicted = dispatcher.predict(again)
        assert predicted == sink.workers["a"]
        # Of a call to come only the view may be known.
        bare = Call("c", "model/", again.call.view, 300, (), again.call.specs)
        assert dispatcher.predict(Order(bare, sink, {})) == predicted
        assert dispatcher.num_outstanding == 0
        for worker in workers:
            worker.paused = True
        dispatcher.submit([order(sink, f"fill{n}") for n in range(4)])
        await until(lambda: sum(len(b) for w in workers for b in w.batches) == 5)
        assert dispatcher.predict(again) is None, "all are full"
        for worker in workers:
            worker.resume()

    asyncio.run(with_dispatcher(scenario, limits=DispatchLimits(max_calls_per_worker=2)))


def test_an_explanation_has_every_candidate_and_its_key():
    async def scenario(dispatcher, workers, sink):
        dispatcher.submit([order(sink, "wf-1/a", "x" * 300)])
        await until(lambda: "wf-1/a" in sink.ended)
        for worker in workers:
            info = worker.info
            report = WorkerReport(info.worker_id, info.epoch, 9, rates=WorkerRates(1000.0, 0.001, 1e6, 1e6, 1e6))
            dispatcher.reported(dispatcher._slots[info.worker_id], report)
        dispatcher.submit([order(sink, "wf-1/b", "x" * 300)])
        await until(lambda: "wf-1/b" in sink.ended)
        told = dispatcher.explain("wf-1/b")
        holder = sink.workers["wf-1/a"]
        assert (told.call_id, told.attempt, told.policy, told.chosen) == ("wf-1/b", 1, "cost", holder)
        assert told.at == 1234.5
        assert told.num_workers == 3
        assert told.key_names == ("cost_ms", "tokens_left_elsewhere", "calls")
        best, other = told.candidates[:2]
        assert best.worker_id == holder
        assert (best.tokens_device, best.tokens_encode, best.encode_ms) == (300, 1, 1.0)
        assert (other.tokens_device, other.tokens_encode, other.encode_ms) == (0, 301, 301.0)
        assert (best.key[0], other.key[0]) == (1, 301)
        assert dispatcher.explain("wf-1/c") is None

    asyncio.run(with_dispatcher(scenario, 3, time_of_day=lambda: 1234.5))


def test_a_peer_with_the_message_is_named_as_its_source():
    async def scenario(dispatcher, workers, sink):
        first, second = workers
        for worker in workers:
            info = worker.info
            rates = WorkerRates(1000.0, 0.0, 1e9, 1e9, 1e6)  # 1 us a token to fetch, 1 ms to encode
            report = WorkerReport(info.worker_id, info.epoch, 0, load=WorkerLoad(num_free_pages=1), rates=rates)
            dispatcher.reported(dispatcher._slots[info.worker_id], report)
        dispatcher.submit([order(sink, "a", "x" * 300)])
        await until(lambda: "a" in sink.ended)
        holder, other = (first, second) if sink.workers["a"] == "w0" else (second, first)
        shared = spec_of("x" * 300).encoding_id
        if dispatcher._feed is not None:
            await until(lambda: dispatcher.directory.tier_of(holder.info.worker_id, shared) is Tier.DEVICE)
        holder.paused = True
        dispatcher.submit([order(sink, "busy", "z" * 900)])
        other.paused = True
        dispatcher.submit([order(sink, f"b{n}", "x" * 300) for n in range(8)])
        await until(lambda: sum(len(b) for w in workers for b in w.batches) == 10)
        for worker in workers:
            worker.resume()
        await until(lambda: len(sink.ended) == 10)
        sources = [source for worker in workers for call in worker.engine.calls for source in call.sources]
        assert sources, "waiting for the holder takes longer than fetching"
        assert {source.encoding_id for source in sources} == {shared}
        assert {source.worker_id for source in sources} == {holder.info.worker_id}
        assert {source.epoch for source in sources} == {holder.info.epoch}
        assert 0.0003 <= sources[0].transfer_s < 0.01
        assert all(account.num_fetching == 0 for account in dispatcher.router.ledger.accounts.values())
        dispatcher.router.ledger.check_integrity()

    asyncio.run(with_dispatcher(scenario, infos={"fetches": True}))
    asyncio.run(with_dispatcher(scenario, infos={"fetches": True}, directory=True))


def test_without_fetching_nobody_is_asked_to():
    async def scenario(dispatcher, workers, sink):
        dispatcher.submit([order(sink, f"a{n}", "x" * 300) for n in range(20)])
        await until(lambda: len(sink.ended) == 20)
        assert not any(call.sources for worker in workers for call in worker.engine.calls)

    asyncio.run(with_dispatcher(scenario))


def test_what_was_expected_is_counted_against_what_was_found():
    async def scenario(dispatcher, workers, sink):
        dispatcher.submit([order(sink, "a", "x" * 300)])
        await until(lambda: "a" in sink.ended)
        counters = dispatcher.directory.counters
        assert (counters.num_calls, counters.tokens_predicted, counters.tokens_found) == (1, 0, 0)
        dispatcher.submit([order(sink, "b", "x" * 300)])
        await until(lambda: "b" in sink.ended)
        assert (counters.tokens_predicted, counters.tokens_found, counters.num_wrong) == (300, 300, 0)
        for worker in workers:
            worker.engine.held.clear()  # nobody was told
        dispatcher.submit([order(sink, "c", "x" * 300)])
        await until(lambda: "c" in sink.ended)
        assert (counters.tokens_predicted, counters.tokens_found) == (600, 300)
        assert (counters.tokens_missed, counters.num_wrong) == (300, 1)

    asyncio.run(with_dispatcher(scenario))


def test_what_the_directory_says_is_gone_is_not_expected():
    async def scenario(dispatcher, workers, sink):
        dispatcher.submit([order(sink, "a", "x" * 300)])
        await until(lambda: "a" in sink.ended)
        holder = next(worker for worker in workers if worker.info.worker_id == sink.workers["a"])
        shared = spec_of("x" * 300).encoding_id
        gone = PlacementChange(shared, Tier.DEVICE, PlacementState.GONE, 300)
        await until(lambda: not dispatcher.directory._expected)
        holder.directory.put(holder.info.worker_id, [gone])
        await until(lambda: dispatcher.directory.tier_of(holder.info.worker_id, shared) is None)
        call = order(sink, "wf-1/b", "x" * 300)
        dispatcher.submit([call])
        await until(lambda: "wf-1/b" in sink.ended)
        assert dispatcher.explain("wf-1/b").candidates[0].tokens_device == 0

    asyncio.run(with_dispatcher(scenario, directory=True))


def test_ended_calls_are_recorded_with_what_was_known_of_the_future(tmp_path):
    class Foreseen:
        def next_use(self, encoding_id):
            return Use(3, 2.5, 0.5) if encoding_id == spec_of("x" * 30).encoding_id else None

        def upcoming(self):
            return {}

        def specs_of(self, encoding_id):
            return ()

    async def scenario(dispatcher, workers, sink):
        dispatcher.foresee(Foreseen())
        dispatcher.submit([order(sink, "wf-1/a", "x" * 30), order(sink, "wf-1/b"), order(sink, "s-1/m1")])
        await until(lambda: len(sink.ended) == 3)
        fails = order(sink, "wf-1/c")
        dispatcher.submit([replace(fails, call=replace(fails.call, tokens=encode("FAIL")))])
        await until(lambda: len(sink.ended) == 4)

    path = tmp_path / "calls.jsonl"
    asyncio.run(with_dispatcher(scenario, recorder=Recorder(str(path)), time_of_day=lambda: 5000.0))
    calls = {f"{call.source}/{call.address}": call for call in read_calls(path)}
    assert set(calls) == {"wf-1/a", "wf-1/b", "wf-1/c", "s-1/m1"}
    first = calls["wf-1/a"]
    assert [(read.num_tokens, read.end) for read in first.reads] == [(30, 30)]
    assert (first.uses[0].steps, first.uses[0].in_s) == (3, 2.5)
    assert (first.tokens_read, first.num_tokens, first.num_generated) == (30, 1, 3)
    assert first.encoding_id
    assert 4990.0 < first.ordered_at <= 5000.0
    assert calls["wf-1/c"].error == "RESOURCE_EXHAUSTED"


def test_advice_goes_to_workers_that_are_up():
    async def scenario(dispatcher, workers, sink):
        advice = Advice(cancelled=("x",))
        dispatcher.advise("w1", advice)
        dispatcher.advise("nobody", advice)
        assert workers[1].engine.advice == [advice]
        assert not workers[0].engine.advice

    asyncio.run(with_dispatcher(scenario))


@pytest.mark.parametrize("policy", ["round_robin", "test_routing_dispatch:TurnsPolicy"])
def test_another_policy_serves(policy, monkeypatch):
    monkeypatch.syspath_prepend(__file__.rpartition("/")[0])

    async def scenario(dispatcher, workers, sink):
        for n in range(6):
            dispatcher.submit([order(sink, f"a{n}", "x" * 300)])
            await until(lambda n=n: f"a{n}" in sink.ended)
        assert [sink.workers[f"a{n}"] for n in range(6)] == ["w0", "w1", "w2"] * 2

    asyncio.run(with_dispatcher(scenario, 3, policy=policy))


def test_a_policy_that_raises_fails_no_call_and_the_decision_says_so(monkeypatch, caplog):
    monkeypatch.syspath_prepend(__file__.rpartition("/")[0])

    async def scenario(dispatcher, workers, sink):
        dispatcher.submit([order(sink, "a")])
        await until(lambda: "a" in sink.ended)
        assert isinstance(sink.ended["a"], CallFinished)
        assert dispatcher.num_outstanding == 0
        told = dispatcher.explain("a")
        assert told.policy == "cost, as test_routing_dispatch:BrokenPolicy failed"
        assert len(told.key_names) == len(told.candidates[0].key) > 0
        assert "RuntimeError: no idea" in caplog.text

    asyncio.run(with_dispatcher(scenario, policy="test_routing_dispatch:BrokenPolicy"))


def test_orders_that_come_while_one_fails_are_not_lost(monkeypatch):
    """Who hears that its call could not be routed may order another at once, of a lower rank at that."""

    class Persistent(Sink):
        def call_failed(self, key, attempt, error):
            super().call_failed(key, attempt, error)
            if key == "a":
                dispatcher_of[0].submit([replace(order(self, f"more{n}"), rank=-1) for n in range(3)])

    dispatcher_of = []

    async def scenario(dispatcher, workers, _):
        sink, choose, calls = Persistent(), dispatcher.router.choose, []
        dispatcher_of.append(dispatcher)

        def once(*arguments):
            calls.append(arguments)
            return choose(*arguments) if len(calls) > 1 else 1 / 0

        monkeypatch.setattr(dispatcher.router, "choose", once)
        dispatcher.submit([order(sink, "a"), order(sink, "b")])
        await until(lambda: len(sink.ended) == 5)
        assert dispatcher.num_outstanding == 0

    asyncio.run(with_dispatcher(scenario))


def test_a_slow_worker_gets_less():
    """A third of the rate of the others: it is not of their make any more."""

    async def scenario(dispatcher, workers, sink):
        for worker in workers:
            worker.paused = True
            info = worker.info
            rate = 300.0 if info.worker_id == "w0" else 1000.0
            report = WorkerReport(info.worker_id, info.epoch, 0, rates=WorkerRates(encode_tokens_per_s=rate))
            dispatcher.reported(dispatcher._slots[info.worker_id], report)
        dispatcher.submit([order(sink, f"f{n}/a", chr(97 + n) * 100) for n in range(20)])
        await until(lambda: sum(len(batch) for worker in workers for batch in worker.batches) == 20)
        sent = [sum(len(batch) for batch in worker.batches) for worker in workers]
        assert sent[0] <= 4
        assert abs(sent[1] - sent[2]) <= 1
        for worker in workers:
            worker.resume()
        await until(lambda: len(sink.ended) == 20)

    asyncio.run(with_dispatcher(scenario, 3))


def test_a_view_chain_longer_than_anything():
    async def scenario(dispatcher, workers, sink):
        specs, view, start = {}, EMPTY_VIEW, 0
        for number in range(300):
            spec = make_spec("model/", (number + 1,), start, view, specs)
            specs[spec.encoding_id] = spec
            view, start = View(spec.encoding_id), start + 1
        base = order(sink, "wf-1/a")
        call = replace(base.call, view=view, start=start, specs=tuple(specs.values()))
        dispatcher.submit([replace(base, call=call, family=specs)])
        await until(lambda: "wf-1/a" in sink.ended)
        assert sink.ended["wf-1/a"].tokens_encoded == 301

    asyncio.run(with_dispatcher(scenario))


def test_calls_go_out_before_the_directory_is_told_what_they_name():
    """Telling it takes a call of another process's."""

    async def scenario(dispatcher, workers, sink):
        await until(lambda: dispatcher._feed._shards[0].known)
        told = []
        feed, port = dispatcher._feed._port, workers[0]
        watch, submit = feed.watch, port.submit

        async def watching(shard, asked):
            told.append("watch")
            return await watch(shard, asked)

        def submitting(calls):
            told.append("submit")
            submit(calls)

        feed.watch, port.submit = watching, submitting
        spec = spec_of("news to it")
        named = order(sink, "a")
        named = replace(named, call=replace(named.call, specs=(spec,)))
        dispatcher.submit([named])
        await until(lambda: len(told) > 1 and sink.ended)
        assert told[:2] == ["submit", "watch"]
        assert spec.encoding_id in dispatcher.directory.watching.named()

    asyncio.run(with_dispatcher(scenario, 1, directory=True))
