"""What a call takes at its worst, against what a store has and could have."""

from __future__ import annotations

import pytest

from laban.actors.calls import Call, Sampling
from laban.actors.engine.planning import Plan, target_of
from laban.actors.engine.room import STOP_SLACK_TOKENS, Room, worst_case_tokens
from laban.actors.engine.tiers import Way
from laban.actors.errors import FailedPrecondition
from laban.kvstore.encodings import EMPTY_VIEW, EncodingSpec, Placement, View, make_spec
from laban.kvstore.store import EncodingStore

PAGE = 16


def message(token: int, num_pages: int, namespace: str = "test") -> EncodingSpec:
    return make_spec(namespace, [token] * (PAGE * num_pages), 0, EMPTY_VIEW, {})


def reading(*specs: EncodingSpec, num_pages: int = 1, namespace: str = "test", prefill: bool = False) -> Call:
    """A call whose own message takes `num_pages`."""
    view = View(None, tuple(Placement(spec.encoding_id, 0, 0, spec.num_tokens) for spec in specs))
    if prefill:
        return Call("c", namespace, view, 0, (1,) * PAGE * num_pages, specs)
    return Call("c", namespace, view, 0, (1,) * PAGE, specs, Sampling(max_tokens=PAGE * (num_pages - 1)))


def plan(call: Call, *missing: EncodingSpec) -> Plan:
    specs = {spec.encoding_id: spec for spec in call.specs}
    target = target_of(call, specs)
    lacking = [(spec, Way.ENCODE) for spec in (*missing, *([target] if target else []))]
    return Plan(specs, [], target, lacking, dict.fromkeys(specs), set(), {})


def test_a_message_counts_at_full_length() -> None:
    plain = reading(num_pages=3)
    assert worst_case_tokens(plain) == 3 * PAGE
    assert worst_case_tokens(reading(num_pages=3, prefill=True)) == 3 * PAGE
    stopping = Call("c", "test", EMPTY_VIEW, 0, (1, 2), (), Sampling(max_tokens=5, stop=("x",)), terminator=(9,))
    assert worst_case_tokens(stopping) == 2 + 5 + 1 + STOP_SLACK_TOKENS


@pytest.mark.parametrize(
    ("read_pages", "own_pages", "namespace", "said"),
    [
        (6, 4, "test", None),
        (7, 4, "test", "176 tokens of KV memory at its worst, the pool holds 160"),
        (3, 3, "test/a", "96 tokens of KV memory at its worst, a tenant may have 80"),
        (2, 3, "test/a", None),
    ],
)
def test_what_can_never_fit_is_refused_with_what_it_needs(
    read_pages: int, own_pages: int, namespace: str, said: str | None
) -> None:
    room = Room(EncodingStore(10, PAGE, tenant_pages=5 if "/" in namespace else None))
    call = reading(message(1, read_pages, namespace), num_pages=own_pages, namespace=namespace)
    if said is None:
        room.check(call)
    else:
        with pytest.raises(FailedPrecondition, match=said):
            room.check(call)


def test_what_is_common_counts_for_no_tenant() -> None:
    room = Room(EncodingStore(10, PAGE, tenant_pages=5))
    room.check(reading(message(1, 5, "test/*"), num_pages=5, namespace="test/a"))
    with pytest.raises(FailedPrecondition, match="a tenant may have 80"):
        room.check(reading(message(1, 4, "test/*"), num_pages=6, namespace="test/a"))


def test_pages_can_be_had_from_what_nobody_reads_and_from_who_gives_them_back() -> None:
    store = EncodingStore(10, PAGE)
    room, read = Room(store), message(1, 3)
    there = store.reserve(read.encoding_id, read.num_tokens)
    store.publish(there, read.encoding_id, read.num_tokens, read)
    store.unpin(there)
    running = store.reserve("call/other", 4 * PAGE)
    call = reading(read, num_pages=5)
    assert room.num_short(plan(call), call) == 2  # what it reads is not evicted for it
    assert not room.fits(plan(call), call)
    assert room.num_short(plan(call), call, [running]) == -2
    other = reading(num_pages=5)
    assert room.fits(plan(other), other)
    assert room.num_short(plan(other, message(2, 4)), other) == 3
    store.discard(running)
    large = reading(read, num_pages=9)
    assert "the call needs 192 tokens of KV memory at its worst" in str(room.never(plan(large), large))


def test_the_answer_of_a_prefill_takes_pages_only_where_it_is_missing() -> None:
    room = Room(EncodingStore(10, PAGE))
    call = reading(num_pages=4, prefill=True)
    assert room.num_short(plan(call), call) == 4 - 10
    assert room.num_short(Plan({}, [], target_of(call, {}), [], {}, set(), {}), call) == -10
