"""Routing: what a worker lacks, and the one sort key."""

from __future__ import annotations

from dataclasses import replace

import pytest

from laban.cluster.routing.policy import WorkerView, choose_worker, missing_encodings
from laban.cluster.routing.rates import DEFAULT_TOKENS_PER_MS, Rates
from laban.kvstore.encodings import EMPTY_VIEW, Placement, View, make_spec

IDLE = WorkerView("a", 0, 0, 100, 1.0, 0, 10)


def best(*workers: WorkerView) -> str:
    return choose_worker(workers)


def test_a_call_goes_where_most_of_what_it_needs_is():
    assert best(IDLE, replace(IDLE, worker_id="b", missing_tokens=20)) == "b"


def test_unless_the_queue_there_makes_it_slower():
    assert best(IDLE, replace(IDLE, worker_id="b", missing_tokens=20, queued_tokens=90)) == "a"
    assert best(IDLE, replace(IDLE, worker_id="b", missing_tokens=20, queued_tokens=70)) == "b"


def test_a_faster_worker_may_be_worth_encoding_more():
    assert best(IDLE, replace(IDLE, worker_id="b", missing_tokens=150, tokens_per_ms=2.0)) == "b"


def test_equal_times_are_decided_by_successors_then_pages_then_id():
    assert best(replace(IDLE, successor_tokens=5), replace(IDLE, worker_id="b", successor_tokens=4)) == "b"
    assert best(IDLE, replace(IDLE, worker_id="b", free_pages=11)) == "b"
    assert best(replace(IDLE, worker_id="b"), IDLE) == "a"


def test_running_calls_count_a_little():
    assert best(replace(IDLE, num_running=3), replace(IDLE, worker_id="b")) == "b"


def test_order_of_the_workers_does_not_matter():
    workers = [replace(IDLE, worker_id=name, missing_tokens=n) for name, n in (("c", 7), ("a", 9), ("b", 7))]
    assert best(*workers) == best(*reversed(workers)) == "b"


def test_no_worker():
    with pytest.raises(ValueError, match="empty"):
        choose_worker([])


@pytest.fixture
def specs():
    found = {}

    def add(name: int, view: View = EMPTY_VIEW, start: int = 0):
        spec = make_spec("m", (name,) * name, start, view, found)
        found[spec.encoding_id] = spec
        return spec

    root = add(3)
    child = add(5, View(root.encoding_id), 3)
    other = add(7, View(root.encoding_id), 3)
    grandchild = add(11, View(child.encoding_id, (Placement(other.encoding_id, 8, 0, 7),)), 15)
    return found, root, child, other, grandchild


def test_a_chain_is_needed_whole(specs):
    found, root, child, _, _ = specs
    view = View(child.encoding_id)
    assert missing_encodings(view, found, ()) == {root.encoding_id: 3, child.encoding_id: 5}
    assert missing_encodings(view, found, {child.encoding_id}) == {root.encoding_id: 3}
    assert missing_encodings(view, found, {child.encoding_id, root.encoding_id}) == {}


def test_a_placement_that_is_held_needs_nothing_else(specs):
    found, root, _, _, grandchild = specs
    view = View(None, (Placement(grandchild.encoding_id, 0, 0, 11),))
    assert missing_encodings(view, found, {grandchild.encoding_id}) == {}
    assert sum(missing_encodings(view, found, ()).values()) == 3 + 5 + 7 + 11
    assert sum(missing_encodings(view, found, {root.encoding_id}).values()) == 5 + 7 + 11


def test_a_long_chain_is_walked_once(specs):
    found, root, *_ = specs
    view, start = View(root.encoding_id), 3
    for _ in range(3000):
        spec = make_spec("m", (1,), start, view, found)
        found[spec.encoding_id] = spec
        view, start = View(spec.encoding_id), start + 1
    assert sum(missing_encodings(view, found, ()).values()) == 3003


def test_rates():
    rates = Rates(weight=0.5)
    assert rates.tokens_per_ms("a") == DEFAULT_TOKENS_PER_MS
    rates.observe("a", 100, 100.0)
    assert rates.tokens_per_ms("a") == 1.0
    assert rates.tokens_per_ms("b") == 1.0, "unmeasured: as fast as the others"
    rates.observe("a", 300, 100.0)
    rates.observe("a", 3, 0.001)
    assert rates.tokens_per_ms("a") == 2.0
    rates.forget("a")
    assert rates.tokens_per_ms("a") == DEFAULT_TOKENS_PER_MS
