"""A shard of the directory: numbers, gaps, epochs, lateness; news and who missed them; uses and pins; its size."""

from __future__ import annotations

import gc
import time
import tracemalloc

import pytest

from laban.kvstore.directory import FENCE_S, IDLE_S, LATE_S, DirectoryShard
from laban.kvstore.directory_messages import Answer, Batch, HeldPlacement, Interest, News, Watch
from laban.kvstore.placements import PACKED_BITS, PlacementState, Tier, pack, unpack
from laban.kvstore.uses import Use

pytestmark = pytest.mark.slow

READY, LOADING, GONE = PlacementState.READY, PlacementState.LOADING, PlacementState.GONE


def on_device(*names: str, state: PlacementState = READY) -> tuple[tuple[str, int, str], ...]:
    return tuple((name, pack(Tier.DEVICE, state, 5), "model/t") for name in names)


def changes(epoch: str, number: int, *changed, worker_id: str = "w") -> Batch:
    return Batch(worker_id, epoch, number, "changes", changed)


def snapshot(epoch: str, number: int, *changed, worker_id: str = "w") -> Batch:
    return Batch(worker_id, epoch, number, "snapshot", changed)


def heartbeat(epoch: str, number: int, worker_id: str = "w") -> Batch:
    return Batch(worker_id, epoch, number, "heartbeat")


def holders(shard: DirectoryShard, encoding_id: str) -> list[str]:
    return [placed.worker_id for placed in shard.find(encoding_id, 0.0).placements]


@pytest.fixture
def shard():
    made = DirectoryShard()
    yield made
    made.check_integrity()


@pytest.fixture
def epoch(shard):
    return shard.register("w", 0.0, 100)


def test_changes_are_taken_in_order_by_tier_and_state(shard, epoch):
    host = ("a", pack(Tier.HOST, LOADING, 9), "")
    assert shard.publish(changes(epoch, 1, *on_device("a", "b")), 0.0) is Answer.TAKEN
    assert shard.publish(changes(epoch, 2, host, *on_device("b", state=GONE)), 0.0) is Answer.TAKEN
    record = shard.find("a", 0.0)
    assert (record.namespace, record.num_tokens) == ("model/t", 9)
    assert record.placements == (
        HeldPlacement("w", epoch, Tier.DEVICE, READY, 5),
        HeldPlacement("w", epoch, Tier.HOST, LOADING, 9),
    )
    assert shard.find("b", 0.0).placements == ()
    assert shard.status().num_encodings == 1


def test_a_batch_taken_before_is_ignored_and_a_gap_waits_for_a_snapshot(shard, epoch):
    assert shard.publish(changes(epoch, 1, *on_device("a")), 0.0) is Answer.TAKEN
    assert shard.publish(changes(epoch, 1, *on_device("x")), 0.0) is Answer.TAKEN
    assert shard.publish(changes(epoch, 3, *on_device("c")), 0.0) is Answer.GAP
    assert shard.publish(changes(epoch, 4, *on_device("d")), 0.0) is Answer.GAP
    assert [holders(shard, name) for name in "axcd"] == [["w"], [], [], []]
    assert shard.publish(snapshot(epoch, 5, *on_device("c", "d")), 0.0) is Answer.TAKEN
    assert [holders(shard, name) for name in "acd"] == [[], ["w"], ["w"]]
    assert shard.publish(snapshot(epoch, 4, *on_device("a")), 0.0) is Answer.TAKEN
    assert holders(shard, "a") == [], "an older snapshot changes nothing"
    assert shard.publish(changes(epoch, 6, *on_device("e")), 0.0) is Answer.TAKEN


def test_a_heartbeat_tells_that_the_last_batch_was_lost(shard, epoch):
    assert shard.publish(heartbeat(epoch, 0), 0.0) is Answer.TAKEN
    assert shard.publish(changes(epoch, 1, *on_device("a")), 0.0) is Answer.TAKEN
    assert shard.publish(heartbeat(epoch, 1), 0.0) is Answer.TAKEN
    assert shard.publish(heartbeat(epoch, 2), 0.0) is Answer.GAP


def test_a_new_life_empties_the_former_one_and_its_late_messages_are_stale(shard, epoch):
    shard.publish(changes(epoch, 1, *on_device("a")), 0.0)
    later = shard.register("w", 1.0, 50)
    assert later > epoch, "whatever the clock says"
    assert holders(shard, "a") == []
    for late in (changes(epoch, 2, *on_device("b")), snapshot(epoch, 9, *on_device("b")), heartbeat(epoch, 2)):
        assert shard.publish(late, 1.0) is Answer.STALE
    assert shard.publish(changes(later, 1, *on_device("c")), 1.0) is Answer.TAKEN
    shard.drop("w", epoch, 1.0)
    assert holders(shard, "c") == ["w"], "a late death harms no later life"


def test_another_shard_learns_of_a_life_by_its_first_message(shard):
    first, second = "0000000000000010", "0000000000000020"
    assert shard.publish(changes(first, 1, *on_device("a")), 0.0) is Answer.TAKEN, "a first batch misses nothing"
    assert shard.publish(changes(second, 7, *on_device("b")), 0.0) is Answer.GAP
    assert holders(shard, "a") == holders(shard, "b") == [], "the former life is over all the same"
    assert shard.publish(snapshot(second, 8, *on_device("b")), 0.0) is Answer.TAKEN
    assert shard.publish(changes(first, 2, *on_device("a")), 0.0) is Answer.STALE
    assert shard.register("v", 0.0, 5) > second, "later than every life that it heard of"


def test_the_dead_vanish_at_once_and_stay_dead(shard, epoch):
    shard.publish(changes(epoch, 1, *on_device("a", "b")), 0.0)
    shard.drop("w", epoch, 0.0)
    assert holders(shard, "a") == []
    assert shard.publish(heartbeat(epoch, 1), 1.0) is Answer.STALE
    shard.tick(FENCE_S + 1.0)
    assert shard.publish(heartbeat(epoch, 1), FENCE_S + 1.0) is Answer.GAP, "kept for a time, not for ever"


def test_a_death_may_be_heard_of_before_the_life(shard):
    shard.drop("w", "0000000000000010", 0.0)
    assert shard.publish(changes("0000000000000010", 1, *on_device("a")), 0.0) is Answer.STALE
    assert shard.publish(changes("0000000000000011", 1, *on_device("a")), 0.0) is Answer.TAKEN


def test_a_silent_worker_loses_its_entries_until_it_speaks_again(shard, epoch):
    shard.publish(changes(epoch, 1, *on_device("a")), 0.0)
    shard.tick(LATE_S)
    assert holders(shard, "a") == ["w"]
    shard.tick(LATE_S + 0.1)
    assert holders(shard, "a") == []
    before = f"{int(epoch, 16) - 1:016x}"
    assert shard.publish(changes(before, 1, *on_device("x")), 6.0) is Answer.STALE
    assert shard.publish(heartbeat(epoch, 1), 6.0) is Answer.GAP
    assert shard.publish(snapshot(epoch, 2, *on_device("a")), 6.0) is Answer.TAKEN
    assert holders(shard, "a") == ["w"]


def test_what_the_dead_left_is_swept_bit_by_bit(shard, epoch):
    other = shard.register("v", 0.0, 200)
    names = [f"e{number}" for number in range(50)]
    shard.publish(changes(epoch, 1, *on_device(*names)), 0.0)
    shard.publish(changes(other, 1, *on_device(*names[:10]), worker_id="v"), 0.0)
    shard.drop("w", epoch, 0.0)
    assert [holders(shard, name) for name in names[9:11]] == [["v"], []]
    assert shard.status().num_encodings == 50
    calls = 0
    while shard.sweep(7):
        shard.check_integrity()
        calls += 1
    assert calls >= 8
    assert shard.status().num_encodings == 10


# News


def watch(number: int, *added: str, removed=(), anew: bool = False) -> Watch:
    return Watch("s", number, added, tuple(removed), anew)


def told(news: News | None) -> dict[str, set[tuple[str, Tier]]]:
    assert news is not None
    return {
        encoding_id: {(news.lives[each >> PACKED_BITS][0], unpack(each)[0]) for each in placements}
        for encoding_id, placements in news.encodings
    }


def test_news_is_of_what_is_watched_and_says_how_it_stands(shard, epoch):
    assert shard.watch(watch(1, "a", "b", anew=True), 0.0)
    assert told(shard.take_news("s", 0, 0.0)) == {"a": set(), "b": set()}
    shard.publish(changes(epoch, 1, *on_device("a", "unwatched")), 0.0)
    shard.publish(changes(epoch, 2, ("a", pack(Tier.DISK, READY, 5), "")), 0.0)
    assert shard.has_news("s", 1, 0.0)
    news = shard.take_news("s", 1, 0.0)
    assert told(news) == {"a": {("w", Tier.DEVICE), ("w", Tier.DISK)}}
    assert (news.number, news.lives) == (2, (("w", epoch),))
    assert not shard.has_news("s", 2, 0.0)
    assert shard.has_news("s", 1, 0.0), "it was lost"
    assert shard.take_news("s", 2, 0.0) == News(2)
    assert shard.watch(watch(2, "unwatched", removed=["a"]), 0.0)
    shard.publish(changes(epoch, 3, *on_device("a", state=GONE)), 0.0)
    assert told(shard.take_news("s", 2, 0.0)) == {"unwatched": {("w", Tier.DEVICE)}}


def test_who_missed_news_is_told_everything_again(shard, epoch):
    shard.watch(watch(1, "a", "b", anew=True), 0.0)
    shard.take_news("s", 0, 0.0)
    shard.publish(changes(epoch, 1, *on_device("a")), 0.0)
    lost = shard.take_news("s", 1, 0.0)
    assert told(shard.take_news("s", 1, 0.0)) == {"a": {("w", Tier.DEVICE)}, "b": set()}
    assert lost.number == 2
    assert shard.take_news("s", 3, 0.0) == News(3)


def test_a_death_is_told_without_naming_each_encoding(shard, epoch):
    shard.watch(watch(1, *"abc", anew=True), 0.0)
    shard.publish(changes(epoch, 1, *on_device(*"abc")), 0.0)
    shard.take_news("s", 0, 0.0)
    shard.drop("w", epoch, 0.0)
    news = shard.take_news("s", 1, 0.0)
    assert (news.gone, news.encodings) == ((("w", epoch),), ())


def test_a_snapshot_tells_what_is_gone_too(shard, epoch):
    shard.watch(watch(1, "a", "b", anew=True), 0.0)
    shard.publish(changes(epoch, 1, *on_device("a", "b")), 0.0)
    shard.take_news("s", 0, 0.0)
    shard.publish(snapshot(epoch, 3, *on_device("b")), 0.0)
    news = shard.take_news("s", 1, 0.0)
    assert news.gone == (("w", epoch),)
    assert told(news) == {"b": {("w", Tier.DEVICE)}}


def test_much_news_comes_in_parts(shard, epoch):
    names = [f"e{number}" for number in range(10)]
    shard.watch(watch(1, *names, anew=True), 0.0)
    shard.publish(changes(epoch, 1, *on_device(*names)), 0.0)
    parts = [shard.take_news("s", number, 0.0, 4) for number in range(3)]
    assert [len(part.encodings) for part in parts] == [4, 4, 2]
    assert {name for part in parts for name in told(part)} == set(names)


def test_a_watch_that_was_lost_is_asked_for_anew(shard, epoch):
    assert shard.take_news("s", 0, 0.0) is None
    assert shard.has_news("s", 0, 0.0), "that it is unknown is news, too"
    assert not shard.watch(watch(1, "a"), 0.0)
    assert shard.watch(watch(2, "a", "b", anew=True), 0.0)
    assert not shard.watch(watch(4, "d"), 0.0)
    assert shard.watch(watch(2, "z", anew=True), 0.0), "repeated: ignored"
    assert shard.watch(watch(5, "b", "d", anew=True), 0.0)
    assert set(told(shard.take_news("s", 0, 0.0))) == {"b", "d"}


def test_who_does_not_ask_takes_no_more_room_and_is_forgotten(shard, epoch):
    shard.watch(watch(1, "a", anew=True), 0.0)
    shard.tell(Interest("s", (("a", Use(1, 5.0)),)), 0.0)
    for number in range(1, 100):
        shard.publish(changes(epoch, number, *on_device("a", state=(READY, GONE)[number % 2])), 0.0)
    subscriber = shard._subscriptions.get("s")
    assert len(subscriber.changed) == 1
    shard.tick(IDLE_S)
    assert shard.take_news("s", 0, IDLE_S), "asking keeps it"
    shard.publish(heartbeat(epoch, 99), 2 * IDLE_S)
    shard.tick(2 * IDLE_S + 1.0)
    assert shard.take_news("s", 1, 2 * IDLE_S) is None
    assert not shard._subscriptions.watchers
    assert shard.find("a", 0.0).next_use is None


def test_a_shard_that_came_back_says_nothing_before_the_workers_have_spoken(epoch):
    shard = DirectoryShard(quiet_until_s=10.0)
    shard.watch(watch(1, "a", anew=True), 8.0)
    assert not shard.has_news("s", 7, 9.0)
    assert shard.take_news("s", 7, 9.0) == News(0)
    shard.publish(heartbeat(epoch, 3), 9.0)
    shard.publish(snapshot(epoch, 4, *on_device("a")), 9.0)
    assert shard.has_news("s", 0, 10.0)
    assert told(shard.take_news("s", 0, 10.0)) == {"a": {("w", Tier.DEVICE)}}


# Uses and pins


def test_uses_and_pins_are_the_nearest_and_longest_over_sources(shard):
    for source in ("s", "t"):
        shard.watch(Watch(source, 1, ("a",), (), True), 0.0)
    shard.tell(Interest("s", (("a", Use(3, 9.0, rank=1)),), (("a", 4.0),)), 0.0)
    shard.tell(Interest("t", (("a", Use(5, 6.0, rank=2)),), (("a", 8.0),)), 1.0)
    shard.tell(Interest("stranger", (("a", Use(0, 0.0)),)), 1.0)
    record = shard.find("a", 2.0)
    assert record.next_use == Use(3, 5.0, rank=1), "the sooner time, the fewer steps, the older workflow"
    assert record.pinned_s == 7.0
    shard.tell(Interest("t", (("a", None),), (("a", 0.0),)), 2.0)
    record = shard.find("a", 3.0)
    assert (record.next_use, record.pinned_s) == (Use(3, 6.0, rank=1), 1.0)
    shard.tick(20.0)
    assert shard.find("a", 20.0).pinned_s == 0.0
    assert shard.find("a", 20.0).next_use == Use(3, 0.0, rank=1), "overdue is due now"
    shard.tick(IDLE_S + 1.0)
    assert shard.find("a", 61.0).next_use is None, "gone with its source"


# Size and speed


def test_an_encoding_takes_less_than_600_bytes_and_the_collector_has_nothing_to_look_at(shard, epoch):
    other = shard.register("v", 0.0, 200)
    count = 30_000
    gc.collect()
    before = len(gc.get_objects())
    tracemalloc.start()
    for at in range(0, count, 1000):
        names = [f"{number:032x}" for number in range(at, at + 1000)]
        number = 1 + at // 1000
        shard.publish(changes(epoch, number, *(on_device(*names))), 0.0)
        held = tuple((name, pack(Tier.HOST, READY, at + 300), "model/t") for name in names)
        shard.publish(changes(other, number, *held, worker_id="v"), 0.0)
    del names, held
    gc.collect()
    num_bytes = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert len(shard._records) == count
    assert num_bytes / count < 450, "two placements each; a larger table may be half as full"
    assert len(gc.get_objects()) - before < 1000


def test_changes_are_taken_fast(shard, epoch):
    batches = [changes(epoch, 1 + n, *on_device(*(f"{n}/{m}" for m in range(1000)))) for n in range(20)]
    begin = time.process_time()
    for batch in batches:
        shard.publish(batch, 0.0)
    assert 20_000 / (time.process_time() - begin) > 50_000


def test_a_thousand_times_as_many_records_do_not_delay_a_death(shard, epoch):
    shard.publish(changes(epoch, 1, *on_device(*(f"e{n}" for n in range(100_000)))), 0.0)
    begin = time.process_time()
    shard.drop("w", epoch, 0.0)
    assert time.process_time() - begin < 0.005
