"""The directory: order, gaps, former epochs, the dead; and its mirror in another process."""

from __future__ import annotations

import asyncio

import pytest

from laban.actors.directory import DirectoryService, DirectoryUpdate
from laban.cluster.routing.mirror import DirectoryMirror
from laban.kvstore.directory import Directory, Holdings
from laban.kvstore.placements import MergedChanges, PlacementChange, PlacementState, Tier


def changes(added=(), removed=()) -> tuple[PlacementChange, ...]:
    gone = [PlacementChange(name, Tier.DEVICE, PlacementState.GONE, 0) for name in removed]
    return (*gone, *(PlacementChange(name, Tier.DEVICE, PlacementState.READY, tokens) for name, tokens in added))


def test_changes_in_order():
    directory = Directory()
    directory.begin("w", "one")
    assert directory.apply("w", "one", 1, changes([("a", 3), ("b", 4)], []))
    assert directory.apply("w", "one", 2, changes([("c", 5)], ["a"]))
    assert dict(directory.held_by("w")) == {"b": 4, "c": 5}
    assert directory.holders("b") == ["w"]
    assert directory.holders("a") == []


def test_removed_and_added_again_in_one_change_is_held():
    directory = Directory()
    directory.begin("w", "one")
    assert directory.apply("w", "one", 1, changes([("a", 3)], ["a"]))
    assert "a" in directory.held_by("w")


def test_a_gap_asks_for_a_snapshot_and_views_stay_live():
    directory = Directory()
    directory.begin("w", "one")
    held = directory.held_by("w")
    assert directory.apply("w", "one", 1, changes([("a", 3)], []))
    assert not directory.apply("w", "one", 3, changes([("c", 5)], []))
    directory.replace(Holdings("w", "one", 3, (("b", 1),)))
    assert dict(held) == {"b": 1}
    assert directory.apply("w", "one", 3, changes([("x", 5)], [])), "taken with the snapshot: ignored"
    assert dict(held) == {"b": 1}
    assert directory.apply("w", "one", 4, changes([("d", 5)], []))


def test_an_older_snapshot_is_ignored():
    directory = Directory()
    directory.begin("w", "one")
    directory.apply("w", "one", 1, changes([("a", 3)], []))
    directory.replace(Holdings("w", "one", 0, ()))
    assert "a" in directory.held_by("w")


def test_a_former_epoch_is_ignored():
    directory = Directory()
    directory.begin("w", "one")
    directory.apply("w", "one", 1, changes([("a", 3)], []))
    directory.begin("w", "two")
    assert not directory.held_by("w")
    assert directory.apply("w", "one", 2, changes([("b", 3)], []))
    directory.replace(Holdings("w", "one", 9, (("b", 1),)))
    assert not directory.held_by("w")
    assert directory.apply("w", "two", 1, changes([("c", 3)], []))


def test_the_dead_vanish_and_a_late_death_harms_no_later_life():
    directory = Directory()
    directory.begin("w", "one")
    directory.begin("v", "x")
    directory.apply("w", "one", 1, changes([("a", 3)], []))
    directory.apply("v", "x", 1, changes([("a", 3)], []))
    assert directory.holders("a") == ["v", "w"]
    directory.drop("w", "one")
    assert directory.holders("a") == ["v"]
    directory.begin("w", "two")
    directory.apply("w", "two", 1, changes([("a", 3)], []))
    directory.drop("w", "one")
    assert directory.holders("a") == ["v", "w"]


def test_unknown_workers_need_a_snapshot():
    directory = Directory()
    assert not directory.apply("w", "one", 1, changes([], []))
    directory.replace(Holdings("w", "one", 1, (("a", 2),)))
    assert directory.snapshot() == [Holdings("w", "one", 1, (("a", 2),))]


def test_of_merged_changes_the_last_one_of_each_counts():
    merged = MergedChanges()
    assert not merged
    merged.add(changes([("a", 1), ("b", 2)]))
    merged.add(changes([("c", 3)], ["a"]))
    merged.add(changes([("d", 4)], ["old"]))
    merged.add(changes([("old", 5)]))
    directory = Directory()
    directory.begin("w", "one")
    directory.apply("w", "one", 1, changes([("old", 5)]))
    directory.apply("w", "one", 2, merged.take())
    assert dict(directory.held_by("w")) == {"b": 2, "c": 3, "d": 4, "old": 5}
    assert not merged


class ServicePort:
    """The service in this process; `down` makes every call fail, `lose` the next replies."""

    def __init__(self) -> None:
        self.service = DirectoryService()
        self.down = False
        self.applied = 0

    async def apply(self, updates):
        self._check()
        self.applied += 1
        return self.service.apply(updates)

    async def replace(self, holdings):
        self._check()
        self.service.replace(holdings)

    async def drop(self, worker_id, epoch):
        self._check()
        self.service.drop(worker_id, epoch)

    async def snapshot(self):
        return self.service.snapshot()

    def _check(self):
        if self.down:
            raise ConnectionError("down")

    def held(self) -> dict[str, set[str]]:
        return {held.worker_id: {entry[0] for entry in held.entries} for held in self.service.snapshot()}


async def until(condition) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.001)


@pytest.fixture
def local():
    return Directory()


def test_the_mirror_follows_survives_a_restart_and_drops_the_dead(local):
    async def scenario():
        port = ServicePort()
        mirror = DirectoryMirror(port, local, interval_s=0.001, retry_s=0.001)
        task = asyncio.create_task(mirror.run())
        sequence = 0

        def change(*added: str, removed: tuple[str, ...] = ()) -> None:
            nonlocal sequence
            sequence += 1
            these = changes([(name, 1) for name in added], removed)
            local.apply("w", "one", sequence, these)
            mirror.record("w", these)

        local.begin("w", "one")
        mirror.begin("w", "one")
        change("a", "b")
        await until(lambda: port.held() == {"w": {"a", "b"}})
        change("c", removed=("a",))
        await until(lambda: port.held() == {"w": {"b", "c"}})
        port.service = DirectoryService()  # it died and came back empty
        change("d")
        await until(lambda: port.held() == {"w": {"b", "c", "d"}})
        port.down = True
        change("e")
        await asyncio.sleep(0.01)
        assert port.held() == {"w": {"b", "c", "d"}}
        port.down = False
        await until(lambda: port.held() == {"w": {"b", "c", "d", "e"}})
        local.drop("w", "one")
        mirror.drop("w")
        await until(lambda: port.held() == {})
        applied = port.applied
        await asyncio.sleep(0.02)
        assert port.applied == applied, "it is quiet while nothing changes"
        task.cancel()

    asyncio.run(scenario())


def test_the_service_names_each_gap_once():
    service = DirectoryService()
    update = DirectoryUpdate("w", "one", 2)
    assert service.apply([update, update]) == ("w",)
