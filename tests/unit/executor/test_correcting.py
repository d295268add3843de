"""Corrected reads: what they ask a worker for."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from laban.cluster.views import Composed, Entry, Message, compose, home_of
from laban.kvstore.encodings import EncodingSpec, flatten
from laban.kvstore.spaces import Space

ROOT = (1, 2, 3)
Specs = dict[str, EncodingSpec]


def told(*texts: tuple[int, ...]) -> tuple[Specs, list[Message]]:
    specs: Specs = {}
    messages = []
    for tokens in texts:
        home, more = home_of(Space("m/t"), ROOT, tokens, max_context=1000, what="message")
        specs |= more
        messages.append(Message("user", home))
    return specs, messages


def composed(specs: Specs, *entries: Entry) -> Composed:
    found = compose(Space("m/t"), ROOT, entries, specs, max_context=1000)
    specs.update(found.added)
    return found


@given(st.lists(st.lists(st.integers(4, 9), min_size=1, max_size=9).map(tuple), min_size=2, max_size=5))
def test_a_corrected_view_has_the_tokens_and_places_of_the_exact_one(texts: list[tuple[int, ...]]) -> None:
    specs, messages = told(*texts)
    exact = composed(specs, *(Entry(message) for message in messages))
    found = composed(specs, *(Entry(message, "corrected", tolerance=0.1) for message in messages))
    assert (found.start, found.spans) == (exact.start, exact.spans)
    pairs = list(zip(flatten(found.view, specs), flatten(exact.view, specs), strict=True))
    for one, other in pairs:
        mine, its = specs[one.encoding_id], specs[other.encoding_id]
        assert (mine.tokens, mine.start, one.position) == (its.tokens, its.start, other.position)
    ends = [(specs[one.encoding_id], specs[other.encoding_id]) for one, other in pairs[2:]]
    for mine, its in ends:  # the root and the first message stand where they were made
        assert mine.tolerance == 0.1
        assert mine.encoding_id != its.encoding_id
        assert not mine.exact
    assert [one.encoding_id for one, _ in pairs[:2]] == [other.encoding_id for _, other in pairs[:2]]


def test_a_tolerance_of_none_is_exact_and_others_are_told_apart() -> None:
    specs, (one, other) = told((4, 5), (6, 7, 8))
    exact = composed(specs, Entry(one), Entry(other))
    views = [composed(specs, Entry(one), Entry(other, "corrected", tolerance=t)).view for t in (0.0, 0.1, 0.2)]
    assert views[0] == exact.view
    assert len({view.prefix_id for view in views}) == 3
    part = composed(specs, Entry(one), Entry(other, "corrected", begin=1)).view
    assert specs[part.prefix_id or ""].tokens == (7, 8)


def test_whole_messages_under_other_views_are_told_with_their_homes_and_the_read_that_they_are_of() -> None:
    specs, (one, other, third) = told((4, 5), (6, 7, 8), (9, 4))
    entries = [
        Entry(one, "corrected", slot=0),  # stands where it was made
        Entry(other, "corrected", slot=1),
        Entry(other, "corrected", begin=1, slot=2),
        Entry(third, "corrected"),
        Entry(third, "direct", slot=4),
        Entry(third, "corrected", tolerance=0.0, slot=5),
        Entry(third, "corrected", slot=5),
    ]
    found = composed(specs, *entries)
    assert [(slot.home_id, slot.number) for slot in found.slots] == [
        (other.home.encoding_id, 1),
        (third.home.encoding_id, 5),
    ]
    placed = {placement.encoding_id for placement in flatten(found.view, specs)}
    for slot in found.slots:
        assert slot.encoding_id in placed
        assert specs[slot.encoding_id].tokens == specs[slot.home_id].tokens
        assert specs[slot.encoding_id].tolerance


def test_a_message_that_is_framed_otherwise_at_the_front_is_none_of_its_home() -> None:
    specs, (one, other) = told((4, 5), (6, 7, 8))
    first = Message("user", other.home, first_tokens=(5, 6, 7, 8))
    found = composed(specs, Entry(first, "corrected", slot=0), Entry(one, "corrected", slot=1))
    assert [slot.home_id for slot in found.slots] == [one.home.encoding_id]
