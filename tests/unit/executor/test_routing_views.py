"""What a call needs, as sets, against a walk through its view."""

from __future__ import annotations

import random

import pytest
from routing_world import PlainView, info_of

from laban.actors.calls import Call, Sampling
from laban.cluster.routing.call_view import MAX_SUCCESSORS, bits, view_call, view_encoding
from laban.cluster.routing.ledger import Ledger
from laban.cluster.routing.policies import CostPolicy
from laban.cluster.routing.policy import missing_encodings
from laban.cluster.routing.router import Router
from laban.kvstore.encodings import EMPTY_VIEW, Placement, View, closure, dependencies, extend, make_spec


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


def call_of(view, specs, sampling=None, call_id="wf-1/a", tokens=(1, 2)):
    needed = tuple(closure(dependencies(view), specs))
    return Call(call_id, "m", view, 50, tokens, needed, sampling or Sampling(4), terminator=(9,))


def lacks(call, held) -> dict[str, int]:
    """What the estimate would have encoded by a worker that holds `held`, the only one there is."""
    ledger, where = Ledger(), PlainView()
    ledger.add(info_of("a"))
    view = view_call(call)
    for need in view.needs:
        if need.encoding_id in held:
            where.on_device(need.encoding_id, "a", need.num_tokens)
    told = Router(CostPolicy(), where, ledger).choose(view).estimate
    encoded = bits(told.encoded)
    assert told.tokens_encode == sum(view.needs[at].num_tokens for at in encoded)
    return {view.needs[at].encoding_id: view.needs[at].num_tokens for at in encoded}


def test_a_chain_is_needed_whole(specs):
    found, root, child, _, _ = specs
    view = View(child.encoding_id)
    assert missing_encodings(view, found, ()) == {root.encoding_id: 3, child.encoding_id: 5}
    assert missing_encodings(view, found, {child.encoding_id}) == {root.encoding_id: 3}
    assert missing_encodings(view, found, {child.encoding_id, root.encoding_id}) == {}
    for held in ((), {child.encoding_id}, {root.encoding_id}, {child.encoding_id, root.encoding_id}):
        assert lacks(call_of(view, found), held) == missing_encodings(view, found, held)


def test_a_placement_that_is_held_needs_nothing_else(specs):
    found, root, _, _, grandchild = specs
    view = View(None, (Placement(grandchild.encoding_id, 0, 0, 11),))
    assert lacks(call_of(view, found), {grandchild.encoding_id}) == {}
    assert sum(lacks(call_of(view, found), ()).values()) == 3 + 5 + 7 + 11
    assert sum(lacks(call_of(view, found), {root.encoding_id}).values()) == 5 + 7 + 11


@pytest.mark.parametrize("seed", range(40))
def test_what_is_missing_is_what_the_walk_says(seed):
    rng = random.Random(seed)
    found = {}
    views = [EMPTY_VIEW]
    for _ in range(rng.randrange(1, 12)):
        spec = make_spec("m", (rng.randrange(9),) * rng.randrange(1, 9), rng.randrange(50), rng.choice(views), found)
        found[spec.encoding_id] = spec
        whole = Placement(spec.encoding_id, rng.choice([spec.start, rng.randrange(50)]), 0, spec.num_tokens)
        views.append(extend(rng.choice(views), whole, found))
        views.append(View(spec.encoding_id))
    for view in views:
        held = {each for each in found if rng.random() < 0.5}
        assert lacks(call_of(view, found), held) == missing_encodings(view, found, held)


def test_a_long_chain_is_walked_once(specs):
    found, root, *_ = specs
    view, start = View(root.encoding_id), 3
    for _ in range(3000):
        spec = make_spec("m", (1,), start, view, found)
        found[spec.encoding_id] = spec
        view, start = View(spec.encoding_id), start + 1
    assert sum(lacks(call_of(view, found), ()).values()) == 3003


def test_a_prefill_needs_its_view_only_where_its_result_is_not(specs):
    found, root, child, *_ = specs
    call = Call("s-1/m1", "m", View(child.encoding_id), 8, (4, 4), tuple(found.values()))
    view = view_call(call)
    made = make_spec("m", (4, 4), 8, View(child.encoding_id), found)
    assert view.needs[-1].encoding_id == made.encoding_id
    assert (view.own_tokens, view.tokens_read) == (0, 8)
    assert lacks(call, {made.encoding_id}) == {}
    assert lacks(call, {root.encoding_id}) == {made.encoding_id: 2, child.encoding_id: 5}


def test_what_a_call_reads_and_makes(specs):
    found, _, child, other, _ = specs
    view = View(child.encoding_id, (Placement(other.encoding_id, 20, 2, 6), Placement(other.encoding_id, 30, 0, 7)))
    told = view_call(call_of(view, found, Sampling(max_tokens=6)))
    assert told.tokens_read == 3 + 5 + 4 + 7
    assert {need.num_tokens: need.num_read for need in told.needs} == {3: 3, 5: 5, 7: 11}
    assert (told.family, told.own_tokens, told.output_tokens) == ("wf-1", 2, 9)


def test_successors_are_those_told_of_or_the_newest_of_the_family(specs):
    found, root, child, other, grandchild = specs
    call = call_of(View(root.encoding_id), found)
    told = view_call(call, {root.encoding_id: 3, other.encoding_id: 7}, found)
    assert told.successors == ((other.encoding_id, 7),), "what it reads itself is there anyway"
    assert dict(view_call(call, None, found).successors) == {
        s.encoding_id: s.num_tokens for s in (child, other, grandchild)
    }
    many = {}
    for number in range(100):
        spec = make_spec("m", (number, 1), 0, EMPTY_VIEW, {})
        many[spec.encoding_id] = spec
    assert [name for name, _ in view_call(call, None, many).successors] == list(reversed(many))[:MAX_SUCCESSORS]


def test_having_an_encoding(specs):
    found, grandchild = specs[0], specs[-1]
    view = view_encoding("drain/x", list(closure([grandchild.encoding_id], found)))
    assert [need.encoding_id for need in view.needs][-1] == grandchild.encoding_id
    assert bits(view.wanted) == [len(view.needs) - 1]
    assert view.own_tokens == 0
