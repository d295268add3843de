"""Encodings below the device: they come back as they were, and calls do not notice."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from engine_harness import Driver, assert_same_encoding, force, interpreter, logprobs, make_engine, place_recorded
from tier_rig import QUICK, SLOW_LINK, driver_of, save_all, text

from laban.actors.calls import Advice, Prefetch, Sampling, Source
from laban.actors.engine.spills import _Write
from laban.kvstore.arrivals import Arrival
from laban.kvstore.encodings import EncodingSpec, closure
from laban.kvstore.uses import Use


def test_what_was_evicted_comes_back_from_the_host_bit_for_bit() -> None:
    driver = driver_of()
    spec = driver.prefill(text(1, 100))
    before = [part.clone() for part in driver.keys_and_values(spec)]
    save_all(driver)
    driver.engine.store.evict_all()
    driver.engine.runner.k_pool.fill_(torch.nan)
    driver.engine.runner.v_pool.fill_(torch.nan)
    call = driver.submit([1, 2], driver.chain(spec), sampling=Sampling(max_tokens=3))
    driver.run()
    result = driver.result(call)
    assert (result.tokens_read, result.tokens_reused, result.tokens_loaded, result.tokens_encoded) == (100, 100, 100, 2)
    phases = result.phases
    assert 0 <= phases.admitted_ms <= phases.load_began_ms < phases.load_ended_ms <= result.ttft_ms
    assert phases.num_iterations == 4  # the last one computes what the last token leaves
    for part, was in zip(driver.keys_and_values(spec), before, strict=True):
        assert torch.equal(part, was)
    assert driver.engine.tiers.counters.totals().tokens_loaded_host == 100


def test_a_save_waits_for_the_iteration_that_may_still_write() -> None:
    driver, event = driver_of(), object()
    flights, afters = driver.engine.tiers.flights, []
    start = flights.start

    def started(direction: str, device: Any, host: Any, on_done: Any, on_failed: Any, after: Any, **rest: Any) -> Any:
        afters.append((direction, after))
        return start(direction, device, host, on_done, on_failed, None, **rest)

    flights.start = started
    driver.prefill(text(1, 100))
    driver.engine._launching.under_way = SimpleNamespace(launched=SimpleNamespace(ready=event))
    for entry in driver.engine.store.entries():
        driver.engine.tiers.save_one(driver.engine.store, entry)
    driver.engine.tiers.pump_saves(beside=False, idle=False)
    driver.engine._launching.under_way = None
    driver.run()
    assert afters == [("save", event)]


def test_to_be_copied_is_not_to_be_used() -> None:
    driver = driver_of(pool_tokens=1024)
    specs = [driver.prefill(text(number, 40)) for number in range(3)]
    before = [driver.engine.store.get(spec.encoding_id).last_use for spec in specs]
    save_all(driver)
    assert [driver.engine.store.get(spec.encoding_id).last_use for spec in specs] == before


def test_head_is_encoded_while_the_tail_is_loaded() -> None:
    driver = driver_of(pool_tokens=1024, rates=SLOW_LINK, link_bytes_per_s=2e6)
    oracle = interpreter()
    root = driver.prefill(text(0, 9))
    spec = driver.prefill(text(1, 480), driver.chain(root))
    save_all(driver)
    entry = driver.engine.store.get(spec.encoding_id)
    driver.engine.store.discard(entry)
    call = driver.submit([1, 2], driver.chain(root, spec), sampling=Sampling(max_tokens=3))
    driver.run()
    result = driver.result(call)
    loaded = driver.engine.tiers.counters.totals().tokens_loaded_host
    assert 0 < loaded < 480
    assert result.tokens_encoded - 2 == 480 - loaded
    recorded = oracle.encode(text(1, 480), 9, [place_recorded(oracle.encode(text(0, 9), 0, []), 0)])
    assert_same_encoding(driver, oracle, spec, recorded)


def prefetch(driver: Driver, spec: EncodingSpec, in_s: float = 0.05, *, compute: bool = True) -> None:
    specs = driver.specs | {spec.encoding_id: spec}
    order = Prefetch(spec.encoding_id, tuple(closure([spec.encoding_id], specs)), compute=compute)
    driver.engine.advise(Advice(uses=((spec.encoding_id, Use(1, in_s)),), prefetches=(order,)))
    driver.run()


def test_prefetches_are_useful_or_wasted() -> None:
    driver = driver_of()
    first, second = driver.prefill(text(1, 100)), driver.prefill(text(2, 100))
    save_all(driver)
    driver.engine.store.evict_all()
    prefetch(driver, first)
    prefetch(driver, second)
    assert first.encoding_id in driver.engine.store
    call = driver.submit([1], driver.chain(first), sampling=Sampling(max_tokens=1))
    driver.run()
    assert driver.result(call).tokens_loaded == 0
    driver.engine.store.evict_all()
    totals = driver.engine.tiers.counters.totals()
    assert (totals.prefetches_useful, totals.prefetches_wasted) == (1, 1)


def test_a_message_nobody_encoded_yet_is_encoded_ahead() -> None:
    driver = driver_of(host_tokens=0)
    other = Driver(make_engine())
    spec = other.prefill(text(5, 60))
    prefetch(driver, spec, compute=False)
    assert spec.encoding_id not in driver.engine.store
    prefetch(driver, spec)
    for part, expected in zip(driver.keys_and_values(spec), other.keys_and_values(spec), strict=True):
        torch.testing.assert_close(part, expected, atol=2e-4, rtol=0)


def needed_in(driver: Driver, spec: EncodingSpec, in_s: float) -> None:
    driver.engine.advise(Advice(uses=((spec.encoding_id, Use(1, in_s)),)))


def test_a_prefetch_evicts_nothing_that_is_needed_sooner() -> None:
    driver = driver_of(pool_tokens=256, host_tokens=0)
    soon = driver.prefill(text(1, 200))
    needed_in(driver, soon, 5.0)
    big = Driver(make_engine()).prefill(text(3, 120))
    prefetch(driver, big, in_s=100.0)
    assert big.encoding_id not in driver.engine.store
    prefetch(driver, big, in_s=0.01)
    assert big.encoding_id in driver.engine.store
    assert soon.encoding_id not in driver.engine.store


def test_nor_what_is_needed_as_soon_though_that_was_used_long_ago() -> None:
    driver = driver_of(pool_tokens=256, host_tokens=0, rates=QUICK)
    now_s = driver.engine.scheduler.store.now_s
    driver.engine._clock = lambda: now_s
    here = driver.prefill(text(1, 200))
    now_s += 1000.0  # an announced use after so long may be far off: what was never used seems the surer
    needed_in(driver, here, 2.0)
    prefetch(driver, Driver(make_engine()).prefill(text(3, 120)), in_s=2.0)
    assert here.encoding_id in driver.engine.store
    later = Driver(make_engine()).prefill(text(4, 120))
    needed_in(driver, here, 3.0)
    prefetch(driver, later, in_s=2.0)
    assert later.encoding_id in driver.engine.store


def test_nor_what_will_be_read_before_it_could_be_there() -> None:
    driver = driver_of(pool_tokens=256, host_tokens=0)  # 120 tokens take 1.2 s
    soon = driver.prefill(text(1, 200))
    needed_in(driver, soon, 1.0)
    prefetch(driver, Driver(make_engine()).prefill(text(3, 120)), in_s=0.01)
    assert soon.encoding_id in driver.engine.store


def test_what_has_to_be_encoded_takes_no_room_before_there_is_time_for_it() -> None:
    driver = driver_of(pool_tokens=256, host_tokens=0, rates=QUICK)
    old = driver.prefill(text(1, 120))
    ahead = Driver(make_engine()).prefill(text(3, 120))
    call = driver.submit([1, 2], sampling=Sampling(max_tokens=20))
    driver.step()
    order = Prefetch(ahead.encoding_id, (ahead,))
    driver.engine.advise(Advice(uses=((ahead.encoding_id, Use(1, 0.0)),), prefetches=(order,)))
    while call in driver.engine.scheduler.running:
        driver.step()
        assert old.encoding_id in driver.engine.store
        assert not any(sequence.prefetched for sequence in driver.engine.scheduler.sequences)
    driver.run()
    assert ahead.encoding_id in driver.engine.store, "now there was"


def test_a_call_waits_for_a_short_stretch_of_what_is_encoded_ahead() -> None:
    driver = driver_of(pool_tokens=1024, host_tokens=0)  # 100 tokens a second
    ahead = Driver(make_engine()).prefill(text(3, 400))
    order = Prefetch(ahead.encoding_id, (ahead,))
    driver.engine.advise(Advice(uses=((ahead.encoding_id, Use(1, 0.0)),), prefetches=(order,)))
    driver.step()
    entry = driver.engine.store.get(ahead.encoding_id)
    assert entry is not None
    assert entry.num_tokens == 48
    driver.run()


def test_what_is_pinned_goes_last_and_still_goes() -> None:
    driver = driver_of(pool_tokens=256, host_tokens=0)
    kept, other = driver.prefill(text(1, 100)), driver.prefill(text(2, 100))
    driver.engine.advise(Advice(pins=((kept.encoding_id, 100.0),)))
    driver.prefill(text(3, 100))
    assert kept.encoding_id in driver.engine.store
    assert other.encoding_id not in driver.engine.store
    driver.prefill(text(4, 250))
    assert kept.encoding_id not in driver.engine.store


def test_an_older_workflow_takes_precedence_and_the_younger_goes_on_as_if_nothing_happened() -> None:
    alone = Driver(make_engine())
    sampling = Sampling(max_tokens=60, temperature=1.0, seed=5)
    expected = alone.submit([1, 2, 3], sampling=sampling)
    alone.run()
    driver = driver_of(pool_tokens=128, host_tokens=0)
    young = driver.submit([1, 2, 3], sampling=sampling, rank=2)
    for _ in range(20):
        driver.step()
    old = driver.submit(text(1, 90), sampling=Sampling(max_tokens=2), rank=1)
    driver.run()
    assert driver.result(young).generated == alone.result(expected).generated
    assert driver.result(old).finish_reason == "length"
    assert driver.engine.tiers.counters.totals().preemptions == 1
    assert [type(e).__name__ for e in driver.events[young]].count("CallStarted") == 1
    order = [driver.events[call][-1] for call in (old, young)]
    assert order[0].wall_ms < order[1].wall_ms


def test_a_disk_keeps_what_the_host_lets_go(tmp_path: Path) -> None:
    driver = driver_of(pool_tokens=256, host_tokens=256, disk_folder=tmp_path / "kv")
    specs = [driver.prefill(text(number, 100)) for number in range(6)]
    for spec in specs:
        driver.engine.advise(Advice(uses=((spec.encoding_id, Use(1, 5.0)),)))
    for _ in range(3):
        for spec in specs:
            call = driver.submit([1], driver.chain(spec), sampling=Sampling(max_tokens=1))
            driver.run()
            assert driver.result(call).tokens_read == 100
    totals = driver.engine.tiers.counters.totals()
    assert totals.bytes_saved_disk > 0
    assert totals.tokens_loaded_disk > 0
    driver.engine.close()
    again = driver_of(pool_tokens=256, host_tokens=512, disk_folder=tmp_path / "kv")
    again.specs = driver.specs
    held = [spec for spec in specs if spec.encoding_id in again.engine.tiers.disk]
    assert held
    call = again.submit([1], again.chain(held[0]), sampling=Sampling(max_tokens=1))
    again.run()
    assert again.result(call).tokens_encoded == 1
    again.engine.close()


class Breaking:
    """Brings the first tokens of what another engine has, and no more."""

    def __init__(self, other: Driver, num_tokens: int) -> None:
        self.other, self.num_tokens = other, num_tokens

    def fetch(self, source: Source, num_tokens: int, write: Any, runs: Any) -> Arrival:
        arrival = Arrival(num_tokens)
        arrival.link = arrival.via = "object_store"
        rows = torch.stack(self.other.keys_and_values(self.other.specs[source.encoding_id]))
        write(0, self.num_tokens, rows[:, :, : self.num_tokens])
        arrival.advance(self.num_tokens, 1)
        arrival.end("it broke off")
        return arrival

    def close(self) -> None: ...


def test_a_part_of_a_transfer_makes_room_in_the_host_for_the_whole() -> None:
    driver, other = driver_of(pool_tokens=160), Driver(make_engine())
    spec = other.prefill(text(1, 90))
    tiers = driver.engine.tiers
    tiers.fetcher = Breaking(other, 40)
    driver.specs[spec.encoding_id] = spec
    source = Source(spec.encoding_id, "worker-9", "epoch", 1e-9)
    driver.submit([1, 2], driver.chain(spec), sampling=Sampling(max_tokens=2), sources=(source,))
    driver.run()
    assert tiers.counters.totals().tokens_loaded_peer == 40
    driver.prefill(text(2, 60))  # the device is nearly full
    driver.run()
    assert tiers.held_tokens(spec.encoding_id) == 90
    driver.engine.store.evict_all()
    call = driver.submit([1, 2], driver.chain(spec), sampling=Sampling(max_tokens=2))
    driver.run()
    assert driver.result(call).tokens_loaded == 90
    for found, expected in zip(driver.keys_and_values(spec), other.keys_and_values(spec), strict=True):
        torch.testing.assert_close(found, expected, atol=2e-4, rtol=0)


def test_what_was_written_to_disk_is_what_the_host_lets_go_first(tmp_path: Path) -> None:
    """To be written is no use of it; else what is on no disk would go."""
    driver = driver_of(pool_tokens=128, host_tokens=1024, disk_folder=tmp_path / "kv", eviction="lru")
    tiers, number = driver.engine.tiers, 0
    assert tiers.host is not None
    assert tiers._spills is not None
    while not tiers._spills._held:
        number += 1
        driver.prefill(text(number, 60))
        driver.run()
        assert number < 100
    victims = [entry.key for entry in tiers.host.next_victims()]
    assert set(victims[: len(tiers._spills._held)]) == set(tiers._spills._held)
    driver.engine.close()


def test_a_file_that_cannot_be_deleted_takes_its_room_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = driver_of(pool_tokens=1024, host_tokens=4096, disk_folder=tmp_path / "kv")
    specs = [driver.prefill(text(number, 100)) for number in range(9)]
    save_all(driver)
    tiers = driver.engine.tiers
    disk, spills = tiers.disk, tiers._spills
    file_bytes = disk.bytes_for(specs[0].encoding_id, specs[0].namespace, 100)
    disk.max_bytes = 3 * file_bytes + file_bytes // 2
    kept: list[Path] = []

    def unlink(path: Path) -> bool:
        if path.suffix == ".kv" and (not kept or path in kept):
            kept.append(path)
            return False
        path.unlink(missing_ok=True)
        return True

    monkeypatch.setattr("laban.kvstore.disk.unlink", unlink)
    written = []
    for number, spec in enumerate(specs):  # each is worth more than those before it
        driver.engine.advise(Advice(uses=((spec.encoding_id, Use(1, 100.0 / (number + 1))),)))
        driver.run()
        entry = tiers.host.get(spec.encoding_id)
        assert spills._make_room(entry, spec)
        tiers.host.pin(entry)
        spills.used_bytes += file_bytes
        spills._writing[entry.key] = write = _Write(spills._write(entry, spec), entry, file_bytes)
        assert write.arrival.wait(10)
        spills.take_written([write.arrival.standing])
        written.append(write.arrival.problem is None)
        assert spills.used_bytes == disk.used_bytes
    assert len(kept) == 1
    assert written == [True] * 3 + [False] + [True] * 5  # that one found out
    assert set(disk.held()) == {spec.encoding_id for spec in specs[-2:]}
    driver.engine.close()


def test_a_damaged_file_costs_an_encoding_and_no_call(tmp_path: Path) -> None:
    driver = driver_of(pool_tokens=512, host_tokens=512, disk_folder=tmp_path / "kv")
    spec = driver.prefill(text(1, 300))
    save_all(driver)
    entry = driver.engine.tiers.host.get(spec.encoding_id)
    write = driver.engine.tiers._spills._write(entry, spec)
    assert write.wait(10)
    driver.engine.close()
    (file,) = (tmp_path / "kv").glob("*.kv")
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    file.write_bytes(data)
    again = driver_of(pool_tokens=512, host_tokens=512, disk_folder=tmp_path / "kv")
    again.specs = driver.specs
    call = again.submit([1], again.chain(spec), sampling=force([3, 4]))
    again.run()
    assert again.engine.tiers.counters.totals().tokens_loaded_disk == 256
    assert again.result(call).tokens_encoded == 45
    whole = Driver(make_engine())
    whole.specs = driver.specs
    expected = whole.submit([1], whole.chain(spec), sampling=force([3, 4]))
    whole.run()
    torch.testing.assert_close(logprobs(again.result(call)), logprobs(whole.result(expected)), atol=2e-4, rtol=0)
    assert not list((tmp_path / "kv").glob("*.kv"))
    again.engine.close()


@pytest.mark.parametrize("share", [0.5])
def test_no_tenant_takes_more_than_its_share(share: float) -> None:
    driver = driver_of(pool_tokens=256, host_tokens=256, tenant_share=share)
    for number in range(8):
        driver.prefill(text(number, 60))
        taken = sum(len(e.pages) for e in driver.engine.store.entries())
        assert taken <= 8
        driver.engine.tiers.host.check_integrity()


def on_disk(driver: Driver, sizes: tuple[int, ...]) -> list[EncodingSpec]:
    """Encodings that each read those before, all of them on disk, and as many in the host as there is room for."""
    specs: list[EncodingSpec] = []
    for number, size in enumerate(sizes):
        specs.append(driver.prefill(text(number, size), driver.chain(*specs)))
        save_all(driver)
        while not driver.engine.tiers.is_on_disk(specs[-1].encoding_id):
            driver.step()
    driver.engine.store.evict_all()
    return specs


def arrivals_begun(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    begun, begin = [], driver.engine.tiers._begin

    def counted(encoding_id: str, *rest: Any) -> bool:
        began = begin(encoding_id, *rest)
        begun.extend([encoding_id] if began else [])
        return began

    monkeypatch.setattr(driver.engine.tiers, "_begin", counted)
    return begun


def test_a_view_larger_than_the_host_does_not_evict_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("laban.actors.engine.spills.SPILL_BELOW", 2.0)
    driver = driver_of(pool_tokens=1024, host_tokens=160, disk_folder=tmp_path / "kv")
    first, second = on_disk(driver, (100, 101))
    begun = arrivals_begun(driver, monkeypatch)
    call = driver.submit([1, 2], driver.chain(first, second), sampling=Sampling(max_tokens=3))
    driver.run(max_steps=2000)
    assert driver.result(call).tokens_loaded == 101
    assert driver.result(call).tokens_encoded == 100 + 2
    assert begun == []
    driver.engine.close()


def test_a_call_asks_the_disk_once_for_what_others_evict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("laban.actors.engine.spills.SPILL_BELOW", 2.0)
    driver = driver_of(pool_tokens=1024, disk_folder=tmp_path / "kv")
    specs = on_disk(driver, (100, 101))
    host, take = driver.engine.tiers.host, driver.engine.tiers.take_arrivals
    host.evict_all()

    def taken(standings: Any) -> Any:
        ended = take(standings)
        host.evict_all()
        return ended

    monkeypatch.setattr(driver.engine.tiers, "take_arrivals", taken)
    begun = arrivals_begun(driver, monkeypatch)
    call = driver.submit([1, 2], driver.chain(*specs), sampling=Sampling(max_tokens=3))
    driver.run(max_steps=2000)
    assert driver.result(call).tokens_encoded == 201 + 2
    assert sorted(begun) == sorted(spec.encoding_id for spec in specs)
    driver.engine.close()


def test_a_folder_without_host_memory_is_said_to_be_of_no_use(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for host_tokens, of_bytes in ((0, "its 0 bytes"), (15, "bytes a page takes")):
        caplog.clear()
        engine = make_engine(host_tokens=host_tokens, disk_folder=tmp_path / "kv")
        assert engine.tiers.disk is None
        assert f"{tmp_path / 'kv'} is not used: " in caplog.text
        assert of_bytes in caplog.text
        engine.close()
    caplog.clear()
    make_engine(host_tokens=16, disk_folder=tmp_path / "kv").close()
    assert caplog.text == ""
