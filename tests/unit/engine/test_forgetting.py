"""What is to be forgotten leaves every tier, whatever is being done with it just then."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from correction_checks import HEADER, Reader, words
from engine_harness import Driver, force, make_engine
from tier_rig import driver_of, text

from laban.actors.calls import Advice, CallFinished, Sampling
from laban.actors.engine.tiers import SPARE_TO_SAVE


def is_somewhere(driver: Driver, encoding_id: str) -> bool:
    tiers = driver.engine.tiers
    assert tiers.host is not None
    assert tiers.disk is not None
    return encoding_id in driver.engine.store or encoding_id in tiers.host or encoding_id in tiers.disk.held()


@pytest.mark.parametrize("seed", range(4))
def test_at_any_moment(seed: int, tmp_path: Path) -> None:
    draw = random.Random(seed)
    driver = Driver(make_engine(pool_tokens=512, host_tokens=512, disk_folder=tmp_path / "kv"))
    specs = [driver.prefill([draw.randrange(128) for _ in range(60)]) for _ in range(16)]
    assert driver.engine.tiers.disk.held()
    assert list((tmp_path / "kv").rglob("*.kv"))
    gone, kept = specs[::2], specs[1::2]
    # Half of what goes is being brought back and read until just before that is said.
    calls = [driver.submit([1, 2], driver.chain(spec), sampling=force([3, 4, 5])) for spec in gone[::2]]
    for _ in range(draw.randrange(4)):
        driver.step()
    held = [spec for spec in kept if is_somewhere(driver, spec.encoding_id)]
    for call in calls:
        driver.engine.abort(call)
    driver.engine.advise(Advice(forgotten=tuple(spec.encoding_id for spec in gone)))
    driver.run()
    assert not any(is_somewhere(driver, spec.encoding_id) for spec in gone)
    assert held
    names = {path.stem for path in (tmp_path / "kv").rglob("*.kv")}
    assert not names & {spec.encoding_id for spec in gone}
    assert any(is_somewhere(driver, spec.encoding_id) for spec in kept)
    driver.engine.store.check_integrity()
    driver.engine.tiers.host.check_integrity()
    again = driver.prefill(list(gone[0].tokens))  # and may be made again
    assert again.encoding_id == gone[0].encoding_id
    assert is_somewhere(driver, again.encoding_id)
    driver.engine.close()


def test_what_others_read_is_waited_for_and_not_looked_at_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver(make_engine(pool_tokens=128, host_tokens=512))
    engine = driver.engine
    specs = [driver.prefill([i] * 60) for i in range(4)]
    lent = next(entry for spec in specs if (entry := engine.tiers.host.get_ready(spec.encoding_id)))
    engine.tiers.host.pin(lent)  # as an export has it
    engine.advise(Advice(forgotten=(lent.key,)))
    waits: list[float] = []
    monkeypatch.setattr("laban.actors.engine.engine.time.sleep", waits.append)
    for _ in range(20):
        assert engine.has_work()
        driver.step()
    assert len(waits) == 20
    engine.tiers.host.unpin(lent)
    driver.run()
    assert lent.key not in engine.tiers.host
    driver.step()
    assert len(waits) <= 21  # with nothing left to do there is nothing to wait for
    engine.close()


@pytest.mark.parametrize("until", ["it waits", "the first call", "the second call"])
def test_no_trial_brings_it_back(until: str) -> None:
    draw = random.Random(1)
    reader = Reader(make_engine(pool_tokens=4096, max_batch_tokens=8))  # so that a call takes several steps
    engine, tried = reader.engine, words(draw, 64)
    for _ in range(3):
        reader.read((words(draw, 16), 0.0), (tried, 0.5), num_tokens=6)
    view, specs = reader.view_of((words(draw, 32), 0.0), (tried, 0.5))
    call = reader.submit(HEADER, view, sampling=Sampling(max_tokens=6))
    while not (reader.events[call] and isinstance(reader.events[call][-1], CallFinished)):
        reader.step()
    assert engine._trials.is_waiting
    running = {"it waits": (), "the first call": ("keep",), "the second call": ("keep", "against")}[until]
    for name in running:
        while not any(call_id.endswith(name) for call_id in engine.scheduler.running):
            assert engine.has_work()
            reader.step()
    gone = (*(spec.encoding_id for spec in specs), reader.result(call).encoding.encoding_id)
    there = {entry.key for entry in engine.store.entries()}
    engine.advise(Advice(cancelled=gone, forgotten=gone))
    reader.run()
    assert {entry.key for entry in engine.store.entries()} <= there.difference(gone)
    assert all(entry.pins == 0 for entry in engine.store.entries())
    assert engine._scores.num_bytes == 0
    assert not engine._trials.is_waiting
    reader.read((words(draw, 16), 0.0), (tried, 0.5))  # and others are tried as before


def test_nothing_of_it_is_remembered(tmp_path: Path) -> None:
    """However many come and are forgotten, on a device with room and on a host without."""
    roomy = driver_of(pool_tokens=4096)
    for number in range(100):
        spec = roomy.prefill(text(number, 20))
        roomy.engine.advise(Advice(forgotten=(spec.encoding_id,)))
        roomy.run()
    assert len(roomy.engine.tiers._to_save) <= SPARE_TO_SAVE
    tight = driver_of(pool_tokens=128, host_tokens=640, disk_folder=tmp_path / "kv", disk_bytes=1)
    spills = tight.engine.tiers._spills
    number = 0
    while len(spills._refused) < 4 or tight.engine.tiers.host.allocator.num_free > 4:
        number += 1
        tight.prefill(text(number, 40))
        assert number < 100
    gone = next(iter(spills._refused))
    tight.engine.advise(Advice(forgotten=(gone,)))
    tight.run()
    assert spills._refused
    assert gone not in spills._refused
    for driver in (roomy, tight):
        driver.engine.close()
