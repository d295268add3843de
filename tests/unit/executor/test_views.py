"""Composing views: what folds into a chain, what is placed, where the new message goes, what is refused."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from laban.actors.errors import InvalidInput, OutOfRange
from laban.cluster.views import Entry, Message, Overlap, check_fits, compose, home_of
from laban.kvstore.encodings import EncodingSpec, Placement, View, flatten, make_spec
from laban.kvstore.spaces import Space

ROOT = (1, 2, 3)
CONTEXT = 1000
NAMESPACE = "model/tenant"


def given_message(specs: dict[str, EncodingSpec], *tokens: int, role: str = "user", root=ROOT) -> Message:
    home, more = home_of(Space(NAMESPACE), root, tokens, max_context=CONTEXT, what="message")
    specs.update(more)
    return Message(role, home)


def composed_of(specs, entries, root=ROOT, **options):
    result = compose(Space(NAMESPACE), root, entries, specs, max_context=CONTEXT, **options)
    specs.update(result.added)
    return result


def tokens_of(view: View, specs) -> list[tuple[int, int]]:
    """(position, token) of everything placed, in order."""
    return [
        (placed.position + offset, specs[placed.encoding_id].tokens[placed.begin + offset])
        for placed in flatten(view, specs)
        for offset in range(placed.num_tokens)
    ]


def test_no_reads_is_the_root_alone():
    specs: dict[str, EncodingSpec] = {}
    result = composed_of(specs, [])
    assert result.start == 3
    assert result.view.placements == ()
    assert specs[result.view.prefix_id].tokens == ROOT


def test_no_root_and_no_reads_is_the_empty_view():
    result = composed_of({}, [], root=())
    assert (result.view, result.start, result.has_root) == (View(), 0, False)


def test_an_exact_view_is_one_chain():
    specs: dict[str, EncodingSpec] = {}
    messages = [given_message(specs, 10 + n, 20 + n) for n in range(3)]
    result = composed_of(specs, [Entry(message) for message in messages])
    assert result.view.placements == ()
    assert specs[result.view.prefix_id].exact
    assert [token for _, token in tokens_of(result.view, specs)] == [*ROOT, 10, 20, 11, 21, 12, 22]
    assert [position for position, _ in tokens_of(result.view, specs)] == list(range(9))
    assert result.start == 9


def test_the_first_exact_read_is_its_home():
    specs: dict[str, EncodingSpec] = {}
    message = given_message(specs, 10, 11)
    result = composed_of(specs, [Entry(message)])
    assert result.view == View(message.home.encoding_id)
    assert result.added == {}


def test_a_direct_read_is_placed_at_the_cursor():
    specs: dict[str, EncodingSpec] = {}
    first, second = given_message(specs, 10, 11), given_message(specs, 20, 21, 22)
    result = composed_of(specs, [Entry(first, "direct"), Entry(second, "direct")])
    # The first one has not moved, so it folds; the second is at home at 3 and read at 5.
    assert result.view == View(first.home.encoding_id, (Placement(second.home.encoding_id, 5, 0, 3),))
    assert second.home.start == 3
    assert result.start == 8
    assert result.added == {}


def test_an_exact_read_after_a_direct_one_is_not_exact():
    specs: dict[str, EncodingSpec] = {}
    first, second, third = (given_message(specs, n, n + 1) for n in (10, 20, 30))
    result = composed_of(specs, [Entry(first), Entry(second, "direct"), Entry(third)])
    assert result.view.placements[0].encoding_id == second.home.encoding_id
    assert not specs[result.view.placements[1].encoding_id].exact
    assert [token for _, token in tokens_of(result.view, specs)] == [*ROOT, 10, 11, 20, 21, 30, 31]


def test_a_generated_message_is_reused_by_an_exact_reader_with_the_same_view():
    specs: dict[str, EncodingSpec] = {}
    task = given_message(specs, 10, 11)
    before = composed_of(specs, [Entry(task)])
    home = make_spec(NAMESPACE, (50, 51), before.start, before.view, specs)
    specs[home.encoding_id] = home
    answer = Message("assistant", home)
    same = composed_of(specs, [Entry(task), Entry(answer)])
    assert same.view == View(home.encoding_id)
    assert same.added == {}
    other = given_message(specs, 12)
    moved = composed_of(specs, [Entry(other), Entry(answer)])
    assert moved.view.prefix_id != home.encoding_id
    assert specs[moved.view.prefix_id].tokens == home.tokens


def test_as_encoded_places_each_at_home_and_the_new_message_at_the_furthest_end():
    specs: dict[str, EncodingSpec] = {}
    long = given_message(specs, *range(100, 110))
    short = given_message(specs, 20)
    result = composed_of(specs, [Entry(long, "direct"), Entry(short, "direct")], layout="as_encoded")
    assert [(placed.position, placed.num_tokens) for placed in flatten(result.view, specs)] == [(0, 3), (3, 10), (3, 1)]
    assert result.start == 13
    assert result.overlaps() == (Overlap(0, 1, 3, 4),)
    assert result.overlaps()[0].describe(2) == "view[0] and view[1] share the positions 3 to 3"


def test_as_encoded_of_a_range_keeps_its_tokens_where_they_were():
    specs: dict[str, EncodingSpec] = {}
    message = given_message(specs, *range(100, 110))
    result = composed_of(specs, [Entry(message, "direct", begin=4, end=6)], layout="as_encoded")
    assert tokens_of(result.view, specs)[3:] == [(7, 104), (8, 105)]


def test_explicit_positions_win_and_the_next_one_follows():
    specs: dict[str, EncodingSpec] = {}
    first, second = given_message(specs, 10, 11), given_message(specs, 20)
    result = composed_of(specs, [Entry(first, "direct", position=40), Entry(second, "direct")], position=7)
    assert [placed.position for placed in flatten(result.view, specs)] == [0, 40, 42]
    assert result.start == 7
    assert result.overlaps(40) == (Overlap(0, 2, 40, 42), Overlap(1, 2, 42, 43))


def test_overlap_with_the_root_is_said():
    specs: dict[str, EncodingSpec] = {}
    message = given_message(specs, 10, 11)
    result = composed_of(specs, [Entry(message, "direct", position=2)])
    assert result.overlaps() == (Overlap(-1, 0, 2, 3),)
    assert result.overlaps()[0].describe(1) == "the root and view[0] share the positions 2 to 2"


def test_the_same_message_twice_is_two_placements():
    specs: dict[str, EncodingSpec] = {}
    message = given_message(specs, 10, 11)
    for fidelity in ("direct", "exact"):
        result = composed_of(specs, [Entry(message, fidelity), Entry(message, fidelity)])
        assert tokens_of(result.view, specs)[3:] == [(3, 10), (4, 11), (5, 10), (6, 11)]
        assert result.overlaps() == ()


@pytest.mark.parametrize("fidelity", ["direct", "exact"])
def test_a_range_places_only_its_tokens(fidelity):
    specs: dict[str, EncodingSpec] = {}
    message = given_message(specs, 10, 11, 12, 13)
    result = composed_of(specs, [Entry(message, fidelity, begin=1, end=3)])
    assert tokens_of(result.view, specs)[3:] == [(3, 11), (4, 12)]
    assert result.start == 5


def test_a_whole_first_message_has_its_first_tokens():
    specs: dict[str, EncodingSpec] = {}
    home, more = home_of(Space(NAMESPACE), ROOT, (10, 11), max_context=CONTEXT, what="message")
    specs.update(more)
    message = Message("user", home, None, (9, 10, 11))
    result = composed_of(specs, [Entry(message, "direct"), Entry(message, "direct")])
    assert [token for _, token in tokens_of(result.view, specs)] == [*ROOT, 9, 10, 11, 10, 11]
    assert result.start == 8


@pytest.mark.parametrize("position", [-1, CONTEXT, CONTEXT + 5])
def test_positions_out_of_range(position):
    specs: dict[str, EncodingSpec] = {}
    message = given_message(specs, 10)
    with pytest.raises(OutOfRange) as raised:
        composed_of(specs, [Entry(message), Entry(message, position=position)])
    assert raised.value.field == "view[1].position"
    assert raised.value.value == position
    with pytest.raises(OutOfRange) as raised:
        composed_of(specs, [], position=position)
    assert raised.value.field == "position"


def test_an_entry_that_ends_beyond_the_context():
    specs: dict[str, EncodingSpec] = {}
    message = given_message(specs, 10, 11)
    composed_of(specs, [Entry(message, position=CONTEXT - 2)])
    with pytest.raises(OutOfRange) as raised:
        composed_of(specs, [Entry(message, position=CONTEXT - 1)])
    assert raised.value.field == "view[0]"


@pytest.mark.parametrize(
    ("begin", "end", "field"),
    [(-1, None, "begin"), (2, None, "begin"), (1, 1, "end"), (None, 3, "end"), (None, 0, "end"), (1, -1, "end")],
)
def test_ranges_that_are_empty_or_outside(begin, end, field):
    specs: dict[str, EncodingSpec] = {}
    message = given_message(specs, 10, 11)
    with pytest.raises(InvalidInput) as raised:
        composed_of(specs, [Entry(message, begin=begin, end=end)])
    assert raised.value.field == f"view[0].{field}"


def test_fits_says_the_numbers():
    check_fits("step a", 10, {"header": 5, "max_tokens": 85}, 100)
    with pytest.raises(
        OutOfRange, match=r"step a needs up to 101 .*view of 10 \+ 5 of header \+ 86 of max_tokens.* 100"
    ):
        check_fits("step a", 10, {"header": 5, "max_tokens": 86}, 100)


def test_a_message_longer_than_the_context():
    with pytest.raises(OutOfRange) as raised:
        home_of(Space(NAMESPACE), ROOT, range(CONTEXT), max_context=CONTEXT, what="message task", field="messages.task")
    assert raised.value.field == "messages.task"


entries = st.lists(
    st.tuples(
        st.integers(0, 3),
        st.sampled_from(["exact", "direct"]),
        st.none() | st.integers(0, 200),
        st.booleans(),
    ),
    max_size=7,
)


@settings(max_examples=150, deadline=None)
@given(entries, st.sampled_from(["packed", "as_encoded"]), st.sampled_from([(), ROOT]))
def test_any_view_places_every_token_once_in_order(chosen, layout, root):
    specs: dict[str, EncodingSpec] = {}
    messages = [given_message(specs, *range(100 * n, 100 * n + 3 + n), root=root) for n in range(1, 5)]
    listed = [
        Entry(messages[n], fidelity, position, 1 if partly else None, 3 if partly else None)
        for n, fidelity, position, partly in chosen
    ]
    before = dict(specs)
    result = compose(Space(NAMESPACE), root, listed, specs, max_context=CONTEXT, layout=layout)
    assert specs == before, "composing changes nothing"
    specs.update(result.added)
    expected: list[tuple[int, int]] = list(enumerate(root))
    cursor = len(root)
    for entry in listed:
        home = entry.message.home
        tokens = home.tokens[entry.begin : entry.end]
        at = cursor if layout == "packed" else home.start + (entry.begin or 0)
        at = at if entry.position is None else entry.position
        expected += [(at + offset, token) for offset, token in enumerate(tokens)]
        cursor = at + len(tokens)
    assert tokens_of(result.view, specs) == expected
    assert result.start == max((position + 1 for position, _ in expected), default=0)
    everything_exact = all(fidelity == "exact" for _, fidelity, _, _ in chosen)
    if everything_exact:
        assert result.view.placements == ()
        assert result.view.prefix_id is None or specs[result.view.prefix_id].exact
    positions = [position for position, _ in expected]
    assert bool(result.overlaps()) == (len(positions) != len(set(positions)))
