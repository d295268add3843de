"""Pages and encodings: nothing is given twice, nothing pinned is taken, random use keeps the books."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from laban.kvstore.pages import OutOfPages, PageAllocator
from laban.kvstore.placements import PlacementState
from laban.kvstore.store import EncodingStore


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 9)), max_size=60))
def test_allocator_gives_each_page_to_one_owner(ops: list[tuple[bool, int]]) -> None:
    allocator, owned = PageAllocator(20), []
    for take, count in ops:
        if take:
            free_before = allocator.num_free
            try:
                owned.append(allocator.allocate(count))
            except OutOfPages:
                assert count > free_before
        elif owned:
            allocator.free(owned.pop(count % len(owned)))
        allocator.check_integrity()
        taken = [page for pages in owned for page in pages]
        assert len(taken) == len(set(taken)) == 20 - allocator.num_free


def test_allocator_prefers_one_piece_and_refuses_double_frees() -> None:
    allocator = PageAllocator(10)
    a, b, c = allocator.allocate(3), allocator.allocate(2), allocator.allocate(5)
    allocator.free(a)
    allocator.free(c[:4])
    assert allocator.allocate(3) == a
    assert allocator.allocate(4) == c[:4]
    allocator.free(b)
    with pytest.raises(ValueError, match="free already"):
        allocator.free(b)
    with pytest.raises(ValueError, match="not in the pool"):
        allocator.free([10])


@given(st.lists(st.tuples(st.sampled_from("rpufd"), st.integers(0, 5), st.integers(1, 40)), max_size=80))
def test_store_keeps_its_books(ops: list[tuple[str, int, int]]) -> None:
    store = EncodingStore(num_pages=8, page_size=4)
    pinned = {}
    for op, name, size in ops:
        key, entry = f"e{name}", store.get(f"e{name}")
        if op == "r" and entry is None:
            before = dict(store.ready_ids())
            try:
                pinned[key] = [store.reserve(key, size)]
            except OutOfPages:
                assert dict(store.ready_ids()) == before  # a refusal evicts nothing
        elif op == "f" and entry is not None and not entry.ready:
            store.publish(entry, key, min(size, entry.capacity))
        elif op == "p" and entry is not None and entry.ready:
            store.pin(entry)
            pinned.setdefault(key, []).append(entry)
        elif op == "u" and entry is not None and entry.ready and pinned.get(key):
            store.unpin(pinned[key].pop())
        elif op == "d" and entry is not None and entry.pins == 1:
            store.discard(entry)
            pinned.pop(key, None)
        store.check_integrity()
        for held, entries in pinned.items():
            assert all(store.get(held) is e for e in entries)  # a pin is a promise


def test_eviction_is_by_last_use() -> None:
    store = EncodingStore(num_pages=3, page_size=4)
    for key in "abc":
        store.unpin(store.publish(store.reserve(key, 4), key, 4))
    a = store.get("a")
    assert a is not None
    store.pin(a)
    store.unpin(a)
    store.reserve("d", 4)
    assert "b" not in store
    assert {"a", "c", "d"} <= {"a", "c", "d"} & {k for k in "abcd" if k in store}
    changes = store.take_changes()
    assert [(c.encoding_id, c.state, c.num_tokens) for c in changes] == [
        ("a", PlacementState.READY, 4),
        ("c", PlacementState.READY, 4),
        ("b", PlacementState.GONE, 0),
    ]


def test_two_makers_of_one_encoding_end_with_one_copy() -> None:
    store = EncodingStore(num_pages=8, page_size=4)
    first, second = store.reserve("call/1", 10), store.reserve("call/2", 10)
    published = store.publish(first, "x", 9)
    store.pin(second)
    assert store.publish(second, "x", 9) is published
    assert published.pins == 1 + 2
    assert store.allocator.num_free == 8 - 3
    store.check_integrity()


def test_runs_follow_the_pages() -> None:
    store = EncodingStore(num_pages=8, page_size=4)
    entry = store.reserve("x", 12)
    entry.pages = [2, 3, 6]
    assert entry.runs(0, 12) == [(8, 8), (24, 4)]
    assert entry.runs(3, 9) == [(11, 5), (24, 1)]
    assert entry.runs(5, 5) == []
