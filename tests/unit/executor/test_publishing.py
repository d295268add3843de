"""A worker's word to the directory: merged, numbered, repeated after a gap, from a thread that survives its loss."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import CancelledError

import pytest

from laban.actors.publishing import STALE_S, Publisher, Publishing
from laban.kvstore.directory import DirectoryShard
from laban.kvstore.directory_messages import Answer, Batch
from laban.kvstore.placements import PlacementChange, PlacementState, Tier, pack, shard_of

READY, GONE = PlacementState.READY, PlacementState.GONE


def change(name: str, state: PlacementState = READY, tier: Tier = Tier.DEVICE) -> PlacementChange:
    return PlacementChange(name, tier, state, 5, "" if state is GONE else "model/t")


def packed(name: str, state: PlacementState = READY, tier: Tier = Tier.DEVICE, namespace: str = "model/t"):
    return name, pack(tier, state, 5), namespace


@pytest.fixture
def publisher():
    return Publisher("w", "e", 1, heartbeat_s=1.0)


def test_changes_between_sends_are_merged_and_the_last_one_counts(publisher):
    publisher.put([change("a"), change("b"), change("a", tier=Tier.HOST)])
    publisher.put([change("a", GONE), change("c")])
    batch = publisher.take(0, 0.0)
    assert (batch.worker_id, batch.epoch, batch.number, batch.kind) == ("w", "e", 1, "changes")
    assert set(batch.changes) == {
        packed("a", GONE, namespace=""),
        packed("a", tier=Tier.HOST),
        packed("b"),
        packed("c"),
    }
    publisher.answered(0, Answer.TAKEN)
    assert publisher.take(0, 0.5) is None
    publisher.put([change("d")])
    assert publisher.take(0, 0.6).number == 2


def test_a_heartbeat_repeats_the_last_number_once_in_a_while(publisher):
    assert publisher.take(0, 0.0) == Batch("w", "e", 0, "heartbeat")
    assert publisher.take(0, 0.9) is None
    publisher.put([change("a")])
    publisher.take(0, 0.9)
    assert publisher.due_s(0) == 1.9
    assert publisher.take(0, 1.9) == Batch("w", "e", 1, "heartbeat")


def test_after_a_gap_comes_everything_that_is_held(publisher):
    publisher.put([change("a"), change("b"), change("b", tier=Tier.DISK), change("c")])
    publisher.take(0, 0.0)
    publisher.put([change("c", GONE), change("d")])
    publisher.answered(0, Answer.GAP)
    batch = publisher.take(0, 0.1)
    assert (batch.kind, batch.number) == ("snapshot", 2)
    assert set(batch.changes) == {packed("a"), packed("b"), packed("b", tier=Tier.DISK), packed("d")}
    publisher.put([change("e")])
    publisher.answered(0, Answer.TAKEN)
    batch = publisher.take(0, 0.2)
    assert (batch.kind, batch.number, batch.changes) == ("changes", 3, (packed("e"),)), (
        "what came meanwhile is not lost"
    )


def test_a_failure_is_followed_by_a_heartbeat_at_once(publisher):
    publisher.put([change("a")])
    publisher.take(0, 0.0)
    publisher.failed(0, 0.1)
    assert publisher.take(0, 0.1) == Batch("w", "e", 1, "heartbeat"), "a shard that did not get it finds a gap"


def test_what_waits_for_a_shard_that_is_down_is_never_more_than_is_held(publisher):
    for number in range(1000):
        publisher.put([change(f"e{number}")])
        if number >= 10:
            publisher.put([change(f"e{number - 10}", GONE)])
        publisher.take(0, 0.0)
        publisher.put([change(f"x{number}"), change(f"x{number}", GONE)])
        publisher.put([change(f"y{number}", GONE)])
        publisher.failed(0, 0.0)
        assert len(publisher._shards[0].pending) <= 20
    assert publisher.num_held == 10


def test_a_snapshot_that_is_lost_is_noticed():
    shard = DirectoryShard()
    publisher = Publisher("w", shard.register("w", 0.0, 1), 1, heartbeat_s=1.0)
    publisher.put([change("a")])
    publisher.answered(0, shard.publish(publisher.take(0, 0.0), 0.0))
    publisher.put([change("b")])
    publisher.take(0, 0.0)  # lost
    publisher._shards[0].snapshot_due = True
    assert publisher.take(0, 0.0).kind == "snapshot"  # lost, too
    publisher.failed(0, 0.1)
    publisher.answered(0, shard.publish(publisher.take(0, 0.1), 0.1))
    publisher.answered(0, shard.publish(publisher.take(0, 0.2), 0.2))
    assert shard.find("b", 0.2).placements


def test_a_life_that_is_over_speaks_up_rarely_and_all_at_once_if_it_was_not(publisher):
    publisher.put([change("a")])
    publisher.take(0, 0.0)
    publisher.answered(0, Answer.STALE)
    publisher.put([change("b")])
    assert publisher.take(0, STALE_S - 1.0) is None
    assert publisher.take(0, STALE_S) == Batch("w", "e", 1, "heartbeat")
    publisher.answered(0, Answer.STALE)
    assert publisher.take(0, STALE_S + 5.0) is None
    assert publisher.take(0, 2 * STALE_S).kind == "heartbeat"
    publisher.answered(0, Answer.GAP)  # it is forgotten that it was over
    assert set(publisher.take(0, 2 * STALE_S).changes) == {packed("a"), packed("b")}


def test_each_shard_gets_its_own_and_has_its_own_numbers():
    publisher = Publisher("w", "e", 4)
    names = [f"e{number}" for number in range(40)]
    publisher.put([change(name) for name in names])
    for shard in range(4):
        batch = publisher.take(shard, 0.0)
        assert batch.number == 1
        assert {each[0] for each in batch.changes} == {name for name in names if shard_of(name, 4) == shard}


# The thread


class Shards:
    """DirectoryPort over shards in the publishing thread's loop; `down` makes them fail, `hang` never answer."""

    def __init__(self, num_shards: int = 2) -> None:
        self.shards = [DirectoryShard() for _ in range(num_shards)]
        self.batches: list[tuple[int, Batch]] = []
        self.threads: set[str] = set()
        self.down = self.hang = False

    @property
    def num_shards(self) -> int:
        return len(self.shards)

    async def register(self, worker_id):
        await self._up()
        return self.shards[0].register(worker_id, time.monotonic(), 1)

    async def publish(self, shard, batch):
        await self._up()
        self.batches.append((shard, batch))
        return self.shards[shard].publish(batch, time.monotonic())

    async def _up(self):
        self.threads.add(threading.current_thread().name)
        if self.hang:
            await asyncio.Event().wait()
        if self.down:
            raise ConnectionError("down")

    def held(self) -> int:
        return sum(each.num_placements for shard in self.shards for each in shard.status().workers)


def until(condition) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


@pytest.fixture
def port():
    return Shards()


def publishing(port, **settings) -> Publishing:
    fast = {"interval_s": 0.002, "heartbeat_s": 0.02, "retry_s": 0.002, "timeout_s": 0.05}
    return Publishing(port, "w", **{**fast, **settings})


def test_what_is_put_arrives_and_nothing_is_said_in_the_callers_thread(port):
    told = publishing(port, heartbeat_s=60.0)
    assert told.epoch() == port.shards[0].status().workers[0].epoch
    until(lambda: len(port.batches) == 2)  # a heartbeat each
    told.put([change(f"e{number}") for number in range(20)])
    until(lambda: port.held() == 20)
    told.put([])
    time.sleep(0.02)
    assert len(port.batches) == 4, "quiet while nothing changes"
    assert port.threads == {"publishing"}
    told.stop()
    told.stop()
    told.put([change("late")])


def test_a_directory_that_is_down_is_tried_until_it_is_back(port):
    port.down = True
    told = publishing(port)
    time.sleep(0.02)
    port.down = False
    told.epoch()
    told.put([change("a")])
    until(lambda: port.held() == 1)
    port.down = True
    told.put([change("b"), change("a", GONE)])
    time.sleep(0.02)
    assert port.held() == 1
    port.down = False
    until(lambda: port.shards[shard_of("b", 2)].find("b", 0.0).placements)
    until(lambda: port.held() == 1)
    told.stop()


def test_a_shard_that_came_back_empty_is_filled_though_nothing_changes(port):
    told = publishing(port)
    told.epoch()
    told.put([change(f"e{number}") for number in range(20)])
    until(lambda: port.held() == 20)
    port.shards = [DirectoryShard(), DirectoryShard()]
    until(lambda: port.held() == 20)
    told.stop()


def test_a_shard_that_does_not_answer_is_given_up_and_asked_again(port, caplog):
    told = publishing(port)
    told.epoch()
    port.hang = True
    told.put([change("a")])
    time.sleep(0.1)
    port.hang = False
    until(lambda: port.held() == 1)
    told.stop()
    assert "is down: no answer" in caplog.text


def test_who_waits_for_an_epoch_is_let_go_when_it_stops(port):
    port.down = True
    told = publishing(port)
    threading.Timer(0.02, told.stop).start()
    with pytest.raises(CancelledError):
        told.epoch()


def test_it_outlives_what_nobody_foresaw_and_says_again_what_may_be_lost(port, caplog):
    told = publishing(port)
    told.epoch()
    publish, failures = port.publish, []

    async def broken(shard, batch):
        failures.append(batch.kind)
        raise RuntimeError("the shard is broken")

    port.publish = broken
    told.put([change(f"e{number}") for number in range(20)])
    until(lambda: failures.count("changes") == 2 and len(failures) > 6)
    assert "RuntimeError: the shard is broken" in caplog.text
    assert not told._publisher._arrived
    port.publish = publish
    until(lambda: port.held() == 20)
    told.stop()


def test_who_waits_for_an_epoch_is_told_what_keeps_it_from_coming(port):
    async def register(worker_id):
        raise RuntimeError("no epoch is left")

    port.register = register
    told = publishing(port)
    with pytest.raises(RuntimeError, match="no epoch is left"):
        told.epoch()
    told.stop()
