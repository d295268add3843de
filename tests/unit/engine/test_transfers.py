"""Encodings from one engine to another: whole, in part, or not at all, and calls do not notice."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engine_harness import force, logprobs
from transfer_rig import (
    CHUNK_TOKENS,
    RATES,
    TRANSPORTS,
    Clock,
    LocalPeer,
    answer,
    assert_same,
    connect,
    driver_of,
    exporting_of,
    pins,
    source,
    text,
)

from laban.actors.calls import Advice, Prefetch
from laban.actors.engine.fetching import LOST_S, MAX_TRANSFERS
from laban.actors.engine.tiers import Way
from laban.actors.reach import Transport
from laban.actors.transfers import Chunk, ExportRequest, Granted, PeerLost, Refused, checksum_of
from laban.kvstore.arrivals import Arrival
from laban.kvstore.encodings import closure
from laban.kvstore.uses import Use


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("on_host", [False, True])
def test_what_another_worker_holds_is_fetched_and_not_encoded(on_host: bool, transport: Transport) -> None:
    sender, receiver = driver_of(), driver_of()
    exporting = connect(receiver, sender, transport=transport)
    spec = sender.prefill(text(1, 150))
    if on_host:
        sender.engine.tiers.save_one(sender.engine.store, sender.engine.store.get(spec.encoding_id))
        sender.run()
    result = answer(receiver, spec, source(spec))
    assert (result.tokens_loaded, result.tokens_reused, result.tokens_encoded) == (150, 150, 1)
    assert receiver.engine.tiers.counters.totals().tokens_loaded_peer == 150
    torch.testing.assert_close(logprobs(result), logprobs(answer(sender, spec)), atol=2e-4, rtol=0)
    assert_same(receiver, sender, spec, 150)
    assert exporting.num_leases == pins(sender) == pins(receiver) == 0
    copies = receiver.engine.tiers.tallying.totals()
    assert getattr(copies, f"copies_{transport}").num_bytes == 150 * receiver.engine.info.bytes_per_token


class Breaking(LocalPeer):
    """Whose chunk from token 64 on does not come as it should."""

    def __init__(self, peer: LocalPeer, how: str) -> None:
        super().__init__(peer.exporting, peer.epoch, "object_store")
        self.how = how

    def ask(self, lease_id: int, begin: int, end: int) -> Callable[[], Chunk | Refused]:
        ask = super().ask(lease_id, begin, end)

        def taken() -> Chunk | Refused:
            if begin != 64:
                return ask()
            if self.how == "killed":
                raise PeerLost("it was killed")
            if self.how == "silent":
                self.exporting.close(lease_id)
                return ask()
            chunk = ask()
            assert isinstance(chunk, Chunk)
            if self.how == "misshapen":
                rows = chunk.rows[:, :, :-1].copy()
                return Chunk(rows, checksum_of(self.encoding_id, begin, rows))
            rows = np.array(chunk.rows)
            rows.reshape(-1)[-1] ^= 1
            return replace(chunk, rows=rows)

        return taken

    def open(self, encoding_id: str, transport: Transport) -> Granted | Refused:
        self.encoding_id = encoding_id
        return super().open(encoding_id, transport)


@pytest.mark.parametrize("how", ["killed", "silent", "damaged", "misshapen"])
def test_what_came_before_a_transfer_broke_off_is_kept(how: str) -> None:
    sender, receiver = driver_of(), driver_of()
    exporting = connect(receiver, sender, lambda peer: Breaking(peer, how))
    spec = sender.prefill(text(2, 150))
    result = answer(receiver, spec, source(spec))
    assert (result.tokens_loaded, result.tokens_reused, result.tokens_encoded) == (64, 64, 1 + 150 - 64)
    torch.testing.assert_close(logprobs(result), logprobs(answer(sender, spec)), atol=2e-4, rtol=0)
    assert_same(receiver, sender, spec, 64)
    assert exporting.num_leases == pins(sender) == pins(receiver) == 0


class Lost(LocalPeer):
    """Does not answer; counts how often it is asked."""

    num_asked = 0

    def open(self, encoding_id: str, transport: Transport) -> Granted | Refused:
        self.num_asked += 1
        raise PeerLost("no answer")


def test_who_does_not_answer_is_not_asked_for_each_encoding() -> None:
    sender, receiver, clock, peers = driver_of(), driver_of(), Clock(), []

    def lost(peer: LocalPeer) -> LocalPeer:
        peers.append(Lost(peer.exporting, peer.epoch))
        return peers[0]

    connect(receiver, sender, lost)
    receiver.engine.tiers.fetcher._clock = clock
    specs = [sender.prefill(text(number, 60)) for number in range(8)]
    for spec in specs:
        receiver.submit([3], receiver.chain(spec), sampling=force([4]), sources=(source(spec),))
    receiver.run()
    assert 1 <= peers[0].num_asked <= MAX_TRANSFERS
    clock.now_s = 2 * LOST_S
    peers[0].num_asked = 0
    spec = sender.prefill(text(9, 60))
    answer(receiver, spec, source(spec))
    assert peers[0].num_asked == 1


def test_who_does_not_have_it_is_asked_once_and_then_the_next(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    sender, receiver = driver_of(), driver_of()
    connect(receiver, sender)
    spec = sender.prefill(text(3, 100))
    result = answer(receiver, spec, source(spec, "unknown", 0.0), source(spec, "other", 0.01))
    assert result.tokens_loaded == 100
    gone = sender.prefill(text(4, 100))
    sender.engine.store.evict_all()
    again = answer(receiver, gone, source(gone), source(gone, "unknown"))
    assert (again.tokens_loaded, again.tokens_encoded) == (0, 101)
    assert not caplog.records  # it happens all the time where caches are small


def test_a_transfer_slower_than_encoding_is_not_begun() -> None:
    sender, receiver = driver_of(), driver_of()
    connect(receiver, sender)
    spec = sender.prefill(text(5, 100))
    assert answer(receiver, spec, source(spec, transfer_s=100 / RATES.encode_tokens_per_s)).tokens_loaded == 0


def test_what_another_worker_has_on_disk_only_comes_from_there(tmp_path: Path) -> None:
    writer = driver_of(disk_folder=tmp_path / "kv")
    spec = writer.prefill(text(8, 150))
    tiers = writer.engine.tiers
    tiers.save_one(writer.engine.store, writer.engine.store.get(spec.encoding_id))
    writer.run()
    assert tiers._spills._write(tiers.host.get(spec.encoding_id), spec).wait(10)
    writer.engine.close()
    sender, receiver = driver_of(disk_folder=tmp_path / "kv"), driver_of()
    sender.specs = writer.specs
    exporting = connect(receiver, sender)
    assert answer(receiver, spec, source(spec)).tokens_loaded == 150
    assert_same(receiver, writer, spec, 150)
    assert exporting.num_leases == pins(sender) == 0
    sender.engine.close()
    none = driver_of(disk_folder=tmp_path / "kv", host_tokens=128)
    assert isinstance(exporting_of(none).open(spec.encoding_id, none.engine.info.epoch), Refused)
    none.engine.close()


def test_a_prefetch_comes_from_another_worker_too() -> None:
    sender, receiver = driver_of(), driver_of()
    connect(receiver, sender)
    spec = sender.prefill(text(6, 100))
    order = Prefetch(spec.encoding_id, tuple(closure([spec.encoding_id], sender.specs)), (source(spec),), False)
    receiver.engine.advise(Advice(uses=((spec.encoding_id, Use(1, 1.0)),), prefetches=(order,)))
    receiver.run()
    assert receiver.engine.store.get_ready(spec.encoding_id) is not None
    assert receiver.engine.tiers.counters.totals().tokens_loaded_peer == 100


class Slow(LocalPeer):
    """Takes its time before it lends."""

    def open(self, encoding_id: str, transport: Transport) -> Granted | Refused:
        time.sleep(0.2)
        return super().open(encoding_id, transport)


@pytest.mark.parametrize("there", [True, False])
def test_the_time_until_it_is_lent_or_refused_is_none_of_the_transfer(there: bool) -> None:
    sender, receiver = driver_of(), driver_of()
    connect(receiver, sender, lambda peer: Slow(peer.exporting, peer.epoch))
    spec = sender.prefill(text(6, 100))
    if not there:
        sender.engine.store.evict_all()
    answer(receiver, spec, source(spec))
    copies = receiver.engine.tiers.tallying.totals().copies_object_store
    assert (copies.num, copies.num_failed) == (1, not there)
    assert copies.seconds < 0.2 <= copies.wait_s


def test_what_is_brought_ahead_leaves_room_in_the_host_for_what_is_lent() -> None:
    sender, receiver = driver_of(), driver_of(host_tokens=256)
    connect(receiver, sender)
    tiers = receiver.engine.tiers
    fetched: list[str] = []
    tiers.fetcher.fetch = lambda source, num_tokens, *rest: fetched.append(source.encoding_id) or Arrival(num_tokens)
    specs = [sender.prefill(text(number, 90)) for number in range(3)]
    ways = [tiers.way(spec, (source(spec),), (), wanted=False) for spec in specs[:2]]
    assert ways == [Way.WAIT, Way.ENCODE]
    assert fetched == [specs[0].encoding_id]
    assert tiers.way(specs[2], (source(specs[2]),), ()) is Way.WAIT, "a call takes what there is"


def test_what_is_lent_is_not_evicted_until_it_is_given_back() -> None:
    driver = driver_of(pool_tokens=1024, host_tokens=128)
    exporting = exporting_of(driver)
    specs = [driver.prefill(text(number, 100)) for number in range(2)]
    driver.engine.advise(Advice(pins=((specs[1].encoding_id, 100.0),)))
    driver.run()
    epoch = driver.engine.info.epoch
    lent = exporting.open(specs[0].encoding_id, epoch)
    assert isinstance(lent, Granted)
    assert (lent.num_tokens, lent.chunk_tokens) == (100, CHUNK_TOKENS)
    refused = exporting.open(specs[1].encoding_id, epoch)
    assert isinstance(refused, Refused)
    assert "full" in refused.why
    exporting.close(lent.lease_id)
    exporting.close(lent.lease_id)
    assert pins(driver) == 0
    assert isinstance(exporting.open(specs[1].encoding_id, epoch), Granted)
    late = exporting.read(lent.lease_id, 0, 10)
    assert isinstance(late, Refused)


def test_a_lease_ends_when_its_reader_falls_silent_and_not_while_it_reads() -> None:
    driver, clock = driver_of(), Clock()
    exporting = exporting_of(driver, clock=clock, lease_s=10.0)
    spec = driver.prefill(text(1, 100))
    lease = exporting.open(spec.encoding_id, driver.engine.info.epoch)
    assert isinstance(lease, Granted)
    clock.now_s = 9.0
    assert isinstance(exporting.read(lease.lease_id, 0, 32), Chunk)
    clock.now_s = 18.0
    exporting.sweep()
    assert exporting.num_leases == 1
    held = exporting._leases[lease.lease_id].export
    during: list[int] = []

    def read(begin: int, end: int) -> Any:
        clock.now_s = 100.0
        exporting.sweep()
        during.append(pins(driver))
        return held.read(begin, end)

    exporting._leases[lease.lease_id].export = replace(held, read=read)
    assert isinstance(exporting.read(lease.lease_id, 32, 64), Chunk)
    assert during == [1]
    clock.now_s = 110.0
    exporting.sweep()
    assert exporting.num_leases == pins(driver) == 0


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_leases_end_also_after_a_sweep_that_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    sender = driver_of()
    exporting = exporting_of(sender, lease_s=0.04)
    loop, failures = exporting._loop, [RuntimeError("the engine has ended")]
    end_export = loop.end_export

    def ended(export: Any) -> None:
        end_export(export)
        if failures:
            raise failures.pop()

    monkeypatch.setattr(loop, "end_export", ended)
    granted = [
        exporting.open(sender.prefill(text(number, 60)).encoding_id, sender.engine.info.epoch) for number in (1, 2)
    ]
    assert all(isinstance(each, Granted) for each in granted)
    for _ in range(500):
        if not exporting.num_leases:
            break
        time.sleep(0.01)
    assert exporting.num_leases == pins(sender) == len(failures) == 0


def test_who_asks_wrongly_is_refused() -> None:
    driver = driver_of()
    exporting = exporting_of(driver, max_leases=1)
    spec = driver.prefill(text(1, 50))
    epoch = driver.engine.info.epoch
    for refused in (exporting.open(spec.encoding_id, "earlier"), exporting.open("unknown", epoch)):
        assert isinstance(refused, Refused)
    lease = exporting.open(spec.encoding_id, epoch)
    assert isinstance(lease, Granted)
    for begin, end in ((0, 51), (-1, 5), (5, 5), (50, 51)):
        assert isinstance(exporting.read(lease.lease_id, begin, end), Refused)
    assert isinstance(exporting.open(spec.encoding_id, epoch), Refused)
    nothing = driver_of(host_tokens=0)
    spec = nothing.prefill(text(1, 50))
    assert isinstance(exporting_of(nothing).open(spec.encoding_id, nothing.engine.info.epoch), Refused)


def test_a_request_given_up_meanwhile_pins_nothing() -> None:
    driver = driver_of()
    spec = driver.prefill(text(1, 50))
    request = ExportRequest(spec.encoding_id)
    driver.engine.export(request)
    assert request.reply.cancel()
    driver.run()
    assert pins(driver) == driver.engine.exports.num_open == 0


def test_a_part_is_lent_whole_once_the_device_has_all_of_it() -> None:
    sender, receiver, third = driver_of(), driver_of(), driver_of()
    connect(receiver, sender, lambda peer: Breaking(peer, "killed"))
    spec = sender.prefill(text(7, 150))
    answer(receiver, spec, source(spec))
    assert receiver.engine.tiers.held_tokens(spec.encoding_id) == 64
    connect(third, receiver)
    third.specs = sender.specs
    assert answer(third, spec, source(spec)).tokens_loaded == 150
