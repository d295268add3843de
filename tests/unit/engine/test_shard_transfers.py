"""Shards fetch from shards, each its part: whole, in part, or not at all, and all of them have the same after it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count
from typing import Any

import numpy as np
import pytest
import torch
from engine_harness import TOLERANCE, force, logprobs
from routing_world import info_of
from shard_threads import HOST_BYTES, Meeting, ShardedWorker, ShardPeer, ThreadGroup
from transfer_rig import driver_of

from laban.actors.calls import Advice, Call, CallFinished, Source, WorkerRates
from laban.actors.engine.config import EngineConfig
from laban.actors.engine.tiers_setup import make_tiers
from laban.actors.errors import FailedPrecondition
from laban.actors.exporting import MAX_LEASES
from laban.actors.lending import Lending
from laban.actors.processes import WorkerPlan, WorkerProcess
from laban.actors.reach import Reach
from laban.actors.remote import RemotePeers
from laban.actors.transfers import Chunk, Export, ExportRequest, Granted, PeerLost, PeerNews, Refused
from laban.kernels import row_attention
from laban.kvstore.encodings import EMPTY_VIEW, EncodingSpec, Placement, extend

pytestmark = pytest.mark.slow

RATES = WorkerRates(100.0, 0.01, 1e12, 1e12, 1e12)
NUM_TOKENS = 150


class Breaking(ShardPeer):
    """Whose chunk from token 64 on does not come as it should, in one shard; not before the other has all up to there,
    as what is missing in one is no more wanted in the other."""

    how = ""
    comes_so_far = threading.Event()  # in the shard that does not break

    def ask(self, lease_id: int, begin: int, end: int) -> Callable[[], Chunk | Refused]:
        ask = super().ask(lease_id, begin, end)

        def taken() -> Chunk | Refused:
            if begin != 64 or not self.how:
                if begin == 64:
                    self.comes_so_far.set()
                return ask()
            assert self.comes_so_far.wait(10)
            if self.how == "killed":
                raise PeerLost("it was killed")
            chunk = ask()
            assert isinstance(chunk, Chunk)
            rows = np.array(chunk.rows)
            rows.reshape(-1)[-1] ^= 1
            return replace(chunk, rows=rows)

        return taken


@pytest.fixture
def pair(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[ShardedWorker, ShardedWorker, list[Breaking]]]:
    """A sender, a receiver, and what the receiver's shards know of the sender."""
    monkeypatch.setattr(row_attention, "compiled", None)
    torch.set_num_threads(1)
    sender, receiver = (ShardedWorker(2, RATES, pool_tokens=1024) for _ in range(2))
    peers = [Breaking(sender, rank) for rank in range(2)]
    receiver.find_peers = [lambda worker_id, epoch, peer=peer: peer for peer in peers]  # type: ignore[misc]
    yield sender, receiver, peers
    for worker in (receiver, sender):
        worker.close()


def encoded(worker: ShardedWorker, number: int) -> EncodingSpec:
    tokens = tuple((13 * number + 7 * i * i + 3 * i) % 128 for i in range(NUM_TOKENS))
    return worker.answer(Call(f"prefill-{number}", "test", EMPTY_VIEW, 0, tokens, ())).encoding


def reading(worker: ShardedWorker, spec: EncodingSpec, *sources: Source) -> CallFinished:
    view = extend(EMPTY_VIEW, Placement(spec.encoding_id, 0, 0, spec.num_tokens), {spec.encoding_id: spec})
    sampling = force([4, 5, 6])
    return worker.answer(Call("reading", "test", view, spec.num_tokens, (3,), (spec,), sampling, sources=sources))


def source(spec: EncodingSpec) -> Source:
    return Source(spec.encoding_id, "other", "epoch", 0.0)


def keys_and_values(worker: ShardedWorker, rank: int, spec: EncodingSpec) -> torch.Tensor:
    """[2, num_layers, num_tokens, num_kv_heads, head_dim]"""
    engine = worker.engines[rank]
    entry = engine.store.get(spec.encoding_id)
    slots = [first + i for first, length in entry.runs(0, entry.num_tokens) for i in range(length)]
    return torch.stack([engine.runner.k_pool[:, slots], engine.runner.v_pool[:, slots]])


def assert_same(sender: ShardedWorker, receiver: ShardedWorker, spec: EncodingSpec, end: int) -> None:
    """In each shard the first tokens bit by bit; the others were encoded again."""
    for rank in range(2):
        was, found = (keys_and_values(worker, rank, spec) for worker in (sender, receiver))
        assert torch.equal(found[:, :, :end], was[:, :, :end])
        torch.testing.assert_close(found, was, atol=TOLERANCE, rtol=0)
    first, second = (keys_and_values(sender, rank, spec) for rank in range(2))
    assert not torch.equal(first, second)  # they are of different heads


def assert_at_rest(*workers: ShardedWorker) -> None:
    for worker in workers:
        worker.settle()
        worker.check()
        assert worker.exporting.num_leases == 0
        for engine in worker.engines:
            assert engine.exports.num_open == 0
            assert sum(entry.pins for entry in engine.tiers.host.entries()) == 0
        assert not any(lending._lent for lending in worker.lendings)


def test_each_shard_fetches_its_part(pair: tuple[ShardedWorker, ShardedWorker, list[Breaking]]) -> None:
    sender, receiver, _ = pair
    info = receiver.loop.info
    assert info.fetches
    assert 0 < info.host_bytes == sum(engine.tiers.pool.num_bytes for engine in receiver.engines) <= HOST_BYTES
    spec = encoded(sender, 1)
    result = reading(receiver, spec, source(spec))
    assert (result.tokens_loaded, result.tokens_reused, result.tokens_encoded) == (NUM_TOKENS, NUM_TOKENS, 1)
    torch.testing.assert_close(logprobs(result), logprobs(reading(sender, spec)), atol=TOLERANCE, rtol=0)
    assert_same(sender, receiver, spec, NUM_TOKENS)
    assert_at_rest(sender, receiver)
    for engine in receiver.engines:
        assert engine.tiers.counters.totals().tokens_loaded_peer == NUM_TOKENS
    # What a tenant may have is for all shards together.
    most = 400 * info.bytes_per_token
    receiver.loop.advise(Advice(kv_bytes=(("test", most),)))
    for number in range(5, 9):
        encoded(receiver, number)
    taken = [engine.store.taken("test") + engine.tiers.host.taken("test") for engine in receiver.engines]
    assert 300 * info.bytes_per_token < sum(taken) * info.page_size * info.bytes_per_token // 2 <= most
    assert_at_rest(receiver)


@pytest.mark.parametrize("how", ["killed", "damaged"])
def test_one_that_breaks_off_in_one_shard_is_kept_as_far_as_all_have_it(
    pair: tuple[ShardedWorker, ShardedWorker, list[Breaking]], how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("laban.actors.engine.fetching.LOST_S", 0.0)  # the second is asked, too
    sender, receiver, peers = pair
    for rank in range(2):
        for peer in peers:
            peer.how = how if peer.rank == rank else ""
        Breaking.comes_so_far.clear()
        spec = encoded(sender, 2 + rank)
        result = reading(receiver, spec, source(spec))
        assert (result.tokens_loaded, result.tokens_encoded) == (64, 1 + NUM_TOKENS - 64)
        torch.testing.assert_close(logprobs(result), logprobs(reading(sender, spec)), atol=TOLERANCE, rtol=0)
        assert_same(sender, receiver, spec, 64)
        assert_at_rest(sender, receiver)


def test_what_a_shard_does_not_find_is_encoded(pair: tuple[ShardedWorker, ShardedWorker, list[Breaking]]) -> None:
    sender, receiver, peers = pair
    receiver.find_peers[1] = lambda worker_id, epoch: None
    spec = encoded(sender, 4)
    result = reading(receiver, spec, source(spec))
    assert (result.tokens_loaded, result.tokens_encoded) == (0, 1 + NUM_TOKENS)
    assert_at_rest(sender, receiver)
    # What nobody waits for any more is lent by no shard.
    request = ExportRequest(spec.encoding_id)
    assert request.reply.cancel()
    sender.loop.export(request)
    sender.loop.export(later := ExportRequest(spec.encoding_id))
    export = later.reply.result(10)
    assert isinstance(export, Export)
    sender.loop.end_export(export)
    assert_at_rest(sender)
    # A lease that ended at the first shard has ended at the others.
    granted = peers[1].open(spec.encoding_id)
    assert isinstance(granted, Granted)
    assert isinstance(peers[1].ask(granted.lease_id, 0, 32)(), Chunk)
    peers[1].close(granted.lease_id)
    sender.settle()
    assert peers[1].ask(granted.lease_id, 0, 32)() == Refused("the lease has ended")
    assert_at_rest(sender)


def test_a_shard_waits_for_what_was_granted_and_not_for_what_was_not() -> None:
    lending = Lending(await_s=0.01)
    assert lending.read(1, 0, 1) == Refused("the shard has lent no such thing")
    rows = np.zeros((2, 3, 4, 1, 8), np.int32)
    lending.put(Export(1, "a", 4, 8, lambda begin, end: rows[:, :, begin:end]))
    for begin, end in ((0, 5), (-1, 2), (2, 2)):
        assert isinstance(lending.read(1, begin, end), Refused)
    chunk: Any = lending.read(1, 1, 3)
    assert chunk.rows.shape == (2, 3, 2, 1, 8)
    assert lending.end(1).encoding_id == "a"
    assert lending.read(1, 0, 1) == Refused("the lease has ended")


def test_every_shard_may_have_a_lease_of_each_transfer(monkeypatch: pytest.MonkeyPatch) -> None:
    class Loop:
        def __init__(self, *arguments: Any, **options: Any) -> None:
            self.info, self.numbers = info_of("a"), count()

        def export(self, request: ExportRequest) -> None:
            number = next(self.numbers)
            request.answer(lambda: Export(number, request.encoding_id, 4, 8, lambda begin, end: np.zeros(0)))

        def end_export(self, export: Export) -> None:
            pass

    monkeypatch.setattr("laban.actors.processes.WorkerLoop", Loop)
    monkeypatch.setattr("laban.actors.processes.set_up_logs", lambda *arguments, **options: None)
    monkeypatch.setattr("sys.setswitchinterval", lambda seconds: None)
    num_shards = 3
    process = WorkerProcess(WorkerPlan("a", "model", None, num_shards=num_shards))
    epoch = process.load().epoch
    granted = [process.open_export("x", epoch, "object_store") for _ in range(num_shards * MAX_LEASES + 1)]
    refused = [number for number, each in enumerate(granted) if isinstance(each, Refused)]
    for each in granted:
        if isinstance(each, Granted):
            process.close_export(each.lease_id)
    assert refused == [num_shards * MAX_LEASES]


@pytest.mark.parametrize("transport", ["cma", "nixl"])
def test_a_transport_that_shards_do_not_have_is_refused(transport: str) -> None:
    group: Any = ThreadGroup(0, 2, Meeting(2))
    with pytest.raises(FailedPrecondition, match="shards") as raised:
        make_tiers(driver_of().engine.runner, EngineConfig(transport=transport), HOST_BYTES, group=group)
    assert (raised.value.field, raised.value.value) == ("cache.transport", transport)
    for sent in ("auto", "object_store"):
        tiers = make_tiers(driver_of().engine.runner, EngineConfig(transport=sent), HOST_BYTES, group=group)
        assert tiers.direct.reach.transports == ("object_store",)
        tiers.close()


def test_only_a_worker_of_as_many_shards_can_be_fetched_from() -> None:
    peers = RemotePeers(1, 2)
    peers.take(
        PeerNews(
            (("two", "e", Reach(), ("a", "b")), ("one", "e", Reach(), ("c",)), ("three", "e", Reach(), ("d", "f", "g")))
        )
    )
    assert [worker_id for worker_id in ("one", "two", "three") if peers.find(worker_id, "e")] == ["two"]
    assert peers.find("two", "another life") is None
    peers.take(PeerNews((("two", "f", Reach(), ("h",)),)))  # it came back, as a whole
    assert peers.find("two", "e") is None
    assert peers.find("two", "f") is None
