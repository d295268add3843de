"""What the control plane knows of the directory: news, expectations, epochs, and what is watched for how long."""

from __future__ import annotations

import pytest

from laban.cluster.routing import directory_view, watch_book
from laban.cluster.routing.directory_view import DirectoryView
from laban.kvstore.directory_messages import News
from laban.kvstore.placements import PACKED_BITS, PlacementState, Tier, pack, shard_of

READY, LOADING, EVICTING = PlacementState.READY, PlacementState.LOADING, PlacementState.EVICTING
DEVICE, HOST, DISK = Tier


class Time:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def time():
    return Time()


@pytest.fixture
def view(time):
    made = DirectoryView(expire_s=5.0, linger_s=60.0, clock=time)
    made.watch("run", "abc")
    yield made
    made.check_integrity()


def news(number: int = 1, *, epochs: dict[str, str] | None = None, gone=(), **where) -> News:
    """`where`: encoding -> [(worker, tier, state, tokens)]."""
    lives = tuple((epochs or {"w": "e1", "v": "e1"}).items())
    names = [worker_id for worker_id, _ in lives]
    encodings = tuple(
        (
            encoding_id,
            tuple(names.index(worker) << PACKED_BITS | pack(*placed) for worker, *placed in placements),
        )
        for encoding_id, placements in where.items()
    )
    return News(number, lives, tuple(gone), encodings)


def test_news_says_where_an_encoding_is_and_where_it_is_no_more(view):
    view.take(0, news(a=[("w", HOST, READY, 7), ("w", DEVICE, LOADING, 3), ("v", DEVICE, READY, 7)]))
    assert dict(view.holders("a")) == {"w": ((DEVICE, LOADING, 3), (HOST, READY, 7)), "v": ((DEVICE, READY, 7),)}
    assert (view.tier_of("w", "a"), view.tier_of("v", "a"), view.tier_of("v", "b")) == (HOST, DEVICE, None)
    held = view.held_by("w"), view.held_by("v")
    assert [dict(each) for each in held] == [{}, {"a": 7}]
    view.take(0, news(2, a=[("w", DEVICE, READY, 7)]))
    assert dict(view.holders("a")) == {"w": ((DEVICE, READY, 7),)}
    assert [dict(each) for each in held] == [{"a": 7}, {}], "a live view"
    view.take(0, news(3, a=[("w", DEVICE, EVICTING, 7)]))
    assert (dict(held[0]), view.tier_of("w", "a")) == ({}, None)


def test_news_of_what_nobody_watches_is_ignored(view):
    view.take(0, news(x=[("w", DEVICE, READY, 7)]))
    assert not view.holders("x")


def test_what_a_call_left_is_expected_until_it_is_confirmed(view, time):
    view.begin("w", "e1")
    view.expect("w", "e1", "a", 9)
    view.take(0, news(a=[("v", HOST, READY, 9)]))
    assert dict(view.holders("a")) == {"w": ((DEVICE, READY, 9),), "v": ((HOST, READY, 9),)}, "not known there yet"
    view.take(0, news(2, a=[("w", HOST, READY, 9)]))
    assert view.holders("a")["w"] == ((DEVICE, READY, 9), (HOST, READY, 9))
    view.take(0, news(3, a=[("w", DEVICE, READY, 9)]))
    time.now = 100.0
    view.tick()
    assert view.tier_of("w", "a") is DEVICE, "confirmed: it does not expire"
    view.take(0, news(4, a=[]))
    assert view.tier_of("w", "a") is None


def test_what_nobody_confirms_expires_and_what_is_known_besides_stays(view, time):
    view.begin("w", "e1")
    view.take(0, news(a=[("w", DISK, READY, 9)]))
    view.expect("w", "e1", "a", 9)
    view.expect("w", "e1", "unwatched", 4)
    time.now = 4.9
    view.tick()
    assert set(view.held_by("w")) == {"a", "unwatched"}
    time.now = 5.0
    view.tick()
    assert not view.held_by("w")
    assert view.holders("a")["w"] == ((DISK, READY, 9),)
    view.take(0, news(2, a=[("w", DEVICE, LOADING, 9)]))
    view.expect("w", "e1", "a", 9)
    view.take(0, news(3, a=[("w", DEVICE, LOADING, 9)]))
    assert view.tier_of("w", "a") is DEVICE, "older than the call's end, perhaps"
    time.now = 11.0
    view.tick()
    assert view.holders("a")["w"] == ((DEVICE, LOADING, 9),)
    view.expect("w", "e1", "a", 9)
    view.take(0, news(4, a=[("w", DEVICE, EVICTING, 9)]))
    assert view.tier_of("w", "a") is None


def test_nothing_expires_while_its_shard_is_silent(time):
    view = DirectoryView(2, expire_s=5.0, clock=time)
    view.begin("w", "e1")
    names = [f"e{number}" for number in range(8)]
    for name in names:
        view.expect("w", "e1", name, 1)
    view.see(1, False)
    for time.now in (5.0, 10.0, 50.0):
        view.tick()
        assert set(view.held_by("w")) == {name for name in names if shard_of(name, 2) == 1}
    view.see(1, True)
    time.now = 54.0
    view.tick()
    assert view.held_by("w"), "it has its time again"
    time.now = 55.0
    view.tick()
    assert not view.held_by("w")


def test_expectations_are_bounded(view, monkeypatch):
    monkeypatch.setattr(directory_view, "MAX_EXPECTED", 3)
    view.begin("w", "e1")
    for number in range(10):
        view.expect("w", "e1", f"x{number}", 1)
    assert list(view.held_by("w")) == ["x7", "x8", "x9"]


def test_the_dead_have_nothing_and_news_of_that_life_is_ignored(view):
    view.begin("w", "e1")
    view.expect("w", "e1", "b", 3)
    view.take(0, news(a=[("w", DEVICE, READY, 7)]))
    view.drop("w", "e1")
    assert not view.held_by("w")
    assert not view.holders("a")
    assert "w" not in view.epochs
    view.take(0, news(2, a=[("w", DEVICE, READY, 7)]))
    view.expect("w", "e1", "a", 7)
    assert not view.holders("a")
    view.take(0, news(3, epochs={"w": "e2"}, a=[("w", DEVICE, READY, 7)]))
    assert view.epochs["w"] == "e2", "the next life may be heard of before it is attached"
    view.begin("w", "e2")
    assert view.held_by("w") == {"a": 7}
    view.drop("w", "e1")
    assert view.held_by("w") == {"a": 7}, "a late death harms no later life"


def test_a_later_life_ends_the_former_and_late_news_of_that_is_ignored(view):
    view.take(0, news(a=[("w", DEVICE, READY, 7)]))
    view.take(0, news(2, epochs={"w": "e2"}, b=[("w", DEVICE, READY, 7)]))
    assert set(view.held_by("w")) == {"b"}
    view.take(0, news(3, a=[("w", DEVICE, READY, 7)]))
    assert set(view.held_by("w")) == {"b"}


def test_a_life_that_lost_all_in_one_shard_keeps_the_others(time):
    view = DirectoryView(2, clock=time)
    names = [f"e{number}" for number in range(8)]
    view.watch("run", names)
    view.begin("w", "e1")
    for shard in range(2):
        mine = {name: [("w", DEVICE, READY, 1)] for name in names if shard_of(name, 2) == shard}
        view.take(shard, news(**mine))
    view.expect("w", "e1", "e99", 5)
    assert len(view.held_by("w")) == 9
    view.take(1, news(2, gone=[("w", "e1")], **{names[0]: []}))
    left = {name for name in names if shard_of(name, 2) == 0}
    assert set(view.held_by("w")) == left | {"e99"}
    view.take(0, news(2, gone=[("w", "e0")]))
    assert set(view.held_by("w")) == left | {"e99"}, "a former life"
    view.check_integrity()


# What is watched


def test_what_sources_name_is_said_once_and_taken_back_after_a_while(view, time):
    assert [set(part) for part in view.watching.take(0)] == [{"a", "b", "c"}, set()]
    view.watch("other", "cd")
    view.watch_also("other", "ce")
    assert [set(part) for part in view.watching.take(0)] == [{"d", "e"}, set()]
    view.watch("run", "a")
    view.unwatch("other")
    assert view.watching.take(0) == ((), ()), "they linger"
    assert set(view.watching.all_of(0)) == set("abcde")
    time.now = 59.0
    view.watch_also("again", "d")
    time.now = 60.0
    view.take(0, news(b=[("w", DEVICE, READY, 1)], d=[("w", DEVICE, READY, 1)]))
    view.tick()
    assert [set(part) for part in view.watching.take(0)] == [set(), set("bce")]
    assert set(view.held_by("w")) == {"d"}, "what is not watched is not known"
    assert set(view.watching.all_of(0)) == set("ad")


def test_what_lingers_is_bounded_and_the_oldest_goes_first(view, monkeypatch):
    monkeypatch.setattr(watch_book, "MAX_LINGERING", 4)
    for number in range(6):
        view.watch(f"s{number}", [f"x{number}"])
        view.unwatch(f"s{number}")
    assert set(view.watching.all_of(0)) == {*"abc", "x2", "x3", "x4", "x5"}


def test_what_is_named_again_before_it_was_taken_back_is_asked_for_again(view, monkeypatch):
    view.watching.take(0)
    view.take(0, news(c=[("w", DEVICE, READY, 1)]))
    monkeypatch.setattr(watch_book, "MAX_LINGERING", 0)
    view.watch("run", "ab")
    assert not view.holders("c")
    view.watch("run", "abc")
    assert view.watching.take(0) == (("c",), ("c",)), "what was known of it is forgotten here"
    view.watch("run", "abcd")
    view.watch("run", "abc")
    assert view.watching.take(0) == ((), ("d",))
    view.unwatch("nobody")


def test_whoever_feeds_it_is_told_that_there_is_something_to_say(view):
    calls = []
    view.watching.on_interest = lambda: calls.append(1)
    view.watch_also("run", "ab")
    assert not calls
    view.watch_also("run", "xy")
    assert calls


def test_predictions_are_counted_against_what_was_found(view):
    view.count(100, 100)
    view.count(50, 80)
    view.count(40, 10)
    counters = view.counters
    assert (counters.num_calls, counters.tokens_predicted, counters.tokens_found) == (3, 190, 190)
    assert (counters.num_wrong, counters.tokens_missed) == (1, 30)
