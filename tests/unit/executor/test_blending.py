"""Blended views: which tokens are encoded again, what they attend to, and that all else is as in direct ones."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from math import ceil

from hypothesis import assume, given
from hypothesis import strategies as st

from laban.cluster.views import PART, Composed, Entry, Message, compose, encoded_again, home_of
from laban.kvstore.encodings import EncodingSpec, flatten, make_spec
from laban.kvstore.spaces import Space

ROOT = (1, 2, 3)
CONTEXT = 10_000
NAMESPACE = "model/tenant"

Specs = dict[str, EncodingSpec]
lengths = st.one_of(st.integers(1, 30), st.integers(47, 240))
shares = st.one_of(st.floats(0.001, 1.0), st.sampled_from([0.15, 0.5, 1.0]))


@st.composite
def stories(draw: st.DrawFn) -> tuple[Specs, list[Message]]:
    """Given messages, and generated ones that read some of those before them."""
    specs: Specs = {}
    messages: list[Message] = []
    for number in range(draw(st.integers(1, 6))):
        tokens = [1000 * number + i for i in range(draw(lengths))]
        if messages and draw(st.booleans()):
            reads = draw(st.lists(st.sampled_from(messages), min_size=1, max_size=4))
            level = draw(st.sampled_from(["exact", "direct", "blended"]))
            under = composed_of(specs, [Entry(message, level) for message in reads])
            home = make_spec(NAMESPACE, tokens, under.start, under.view, specs)
            specs[home.encoding_id] = home
        else:
            home, more = home_of(Space(NAMESPACE), ROOT, tokens, max_context=CONTEXT, what="message")
            specs.update(more)
        messages.append(Message("user", home))
    return specs, messages


def composed_of(specs: Specs, entries: list[Entry]) -> Composed:
    result = compose(Space(NAMESPACE), ROOT, entries, specs, max_context=CONTEXT)
    specs.update(result.added)
    return result


def told(composed: Composed, specs: Specs) -> list[tuple[int, int]]:
    """(position, token) of all that the view places, in order."""
    return [
        (placed.position + i, specs[placed.encoding_id].tokens[placed.begin + i])
        for placed in flatten(composed.view, specs)
        for i in range(placed.num_tokens)
    ]


@st.composite
def views(draw: st.DrawFn) -> tuple[Specs, list[Entry]]:
    specs, messages = draw(stories())
    entries = []
    for message in draw(st.lists(st.sampled_from(messages), min_size=1, max_size=6)):
        begin = draw(st.integers(0, message.home.num_tokens - 1)) if draw(st.booleans()) else None
        level = draw(st.sampled_from(["exact", "direct", "blended", "blended"]))
        entries.append(Entry(message, level, begin=begin, recompute_share=draw(shares)))
    return specs, entries


@given(views())
def test_a_blended_view_has_the_same_tokens_at_the_same_places(given_view: tuple[Specs, list[Entry]]) -> None:
    specs, entries = given_view
    exact = composed_of(specs, [Entry(e.message, "exact", begin=e.begin) for e in entries])
    found = composed_of(specs, entries)
    assert told(found, specs) == told(exact, specs)
    assert (found.start, found.spans) == (exact.start, exact.spans)


@given(stories(), st.data())
def test_a_share_of_one_is_exact(story: tuple[Specs, list[Message]], data: st.DataObject) -> None:
    specs, messages = story
    reads = data.draw(st.lists(st.sampled_from(messages), min_size=1, max_size=6))
    exact = composed_of(specs, [Entry(message) for message in reads])
    assume(all(specs[p.encoding_id].exact for p in flatten(exact.view, specs)))  # no home is an approximate one itself
    assert composed_of(specs, [Entry(message, "blended", recompute_share=1.0) for message in reads]).view == exact.view


@given(st.lists(lengths, max_size=6), st.integers(0, 2000))
def test_each_from_the_last_back_gets_its_part_of_what_is_left(sizes: list[int], count: int) -> None:
    def dealt(sizes: list[int], count: int) -> list[int]:
        """What one time round gives, by definition."""
        if not sizes:
            return []
        head = min(sizes[-1], ceil(PART * count))
        return [*dealt(sizes[:-1], count - head), head]

    expected = [0] * len(sizes)
    for _ in range(count):
        rest = [size - head for size, head in zip(sizes, expected, strict=True)]
        more = dealt(rest, min(count, sum(sizes)) - sum(expected))
        expected = [head + one for head, one in zip(expected, more, strict=True)]
    assert encoded_again(sizes, count) == expected


@given(st.lists(lengths, max_size=6), st.integers(0, 2000), st.integers(0, 2000))
def test_what_is_chosen_of_less_is_chosen_of_more(sizes: list[int], count: int, more: int) -> None:
    fewer, heads = encoded_again(sizes, count), encoded_again(sizes, count + more)
    assert all(one <= other <= size for one, other, size in zip(fewer, heads, sizes, strict=True))
    assert sum(heads) == min(count + more, sum(sizes))


@given(stories(), shares, st.data())
def test_the_share_is_of_all_that_is_read_so_and_what_stands_in_place_needs_none(
    story: tuple[Specs, list[Message]], share: float, data: st.DataObject
) -> None:
    specs, messages = story
    given_ones = [message for message in messages if message.home.start == len(ROOT)]
    assume(given_ones)
    reads = data.draw(st.lists(st.sampled_from(given_ones), min_size=1, max_size=6))
    composed = composed_of(specs, [Entry(message, "blended", recompute_share=share) for message in reads])
    homes = {message.home.encoding_id for message in messages}
    placed = flatten(composed.view, specs)[1:]
    found = [each.encoding_id in homes for each in placed for _ in range(each.num_tokens)]
    sizes = [message.home.num_tokens for message in reads]
    heads = [0, *encoded_again(sizes[1:], ceil(Fraction(str(share)) * sum(sizes)))]  # the first is where it was made
    assert found == [i >= head for size, head in zip(sizes, heads, strict=True) for i in range(size)]


@given(views())
def test_what_is_encoded_again_attends_to_all_before_it(given_view: tuple[Specs, list[Entry]]) -> None:
    specs, entries = given_view
    composed = composed_of(specs, entries)
    placed = flatten(composed.view, specs)
    homes = {entry.message.home.encoding_id for entry in entries}
    for index, each in enumerate(placed):
        spec = specs[each.encoding_id]
        if each.encoding_id not in homes:
            assert (each.begin, each.end, each.position) == (0, spec.num_tokens, spec.start)
            assert flatten(spec.view, specs) == placed[:index]


def given_messages(specs: Specs, *texts: range) -> list[Message]:
    messages = []
    for tokens in texts:
        home, more = home_of(Space(NAMESPACE), ROOT, tokens, max_context=CONTEXT, what="message")
        specs.update(more)
        messages.append(Message("user", home))
    return messages


def test_a_message_that_was_made_under_this_view_is_taken_as_it_is() -> None:
    specs: Specs = {}
    before = [Entry(message, "direct") for message in given_messages(specs, range(10, 20), range(20, 30))]
    under = composed_of(specs, before)
    home = make_spec(NAMESPACE, range(30, 40), under.start, under.view, specs)
    specs[home.encoding_id] = home
    answer = Entry(Message("assistant", home), "blended", recompute_share=0.5)
    assert composed_of(specs, [*before, answer]).added == {}


def test_shares_of_several_reads_add_up_and_the_last_are_served_first() -> None:
    specs: Specs = {}
    first, *others = given_messages(specs, range(100, 110), range(200, 210), range(300, 310))
    blended = [Entry(o, "blended", recompute_share=share) for o, share in zip(others, (0.9, 0.2), strict=True)]

    def again(*entries: Entry) -> list[tuple[int, int]]:
        """Positions and sizes of what is not read as it was made."""
        composed = composed_of(specs, list(entries))
        homes = {entry.message.home.encoding_id for entry in entries}
        placed = flatten(composed.view, specs)[1:]
        return [(p.position, p.num_tokens) for p in placed if p.encoding_id not in homes]

    assert again(Entry(first), *blended) == [(13, 1), (23, 10)]
    assert again(Entry(first, "blended", recompute_share=0.5), *blended) == [(13, 6), (23, 10)]  # 5 more to encode
    assert again(blended[0], Entry(first), blended[1]) == [(13, 10), (23, 10)]
    long = Entry(*given_messages(specs, range(1000, 1100)), "blended", recompute_share=0.5)
    assert again(Entry(first), blended[0], long) == [(13, 5), (23, 54)]  # 9 and 50 are due, 0.9 of them to the last


def test_a_message_put_elsewhere_does_not_stand_where_it_was_made() -> None:
    specs: Specs = {}
    first, second = given_messages(specs, range(10, 20), range(20, 30))
    for share in (1.0, 0.5):
        entries = [Entry(first, position=50), Entry(second)]
        blended = [replace(entry, fidelity="blended", recompute_share=share) for entry in entries]
        found, exact = composed_of(specs, blended), composed_of(specs, entries)
        assert (found.view == exact.view) == (share == 1.0)
        again = [p for p in flatten(found.view, specs)[1:] if specs[p.encoding_id].start == p.position]
        assert sum(p.num_tokens for p in again) == share * 20


def test_the_first_message_is_encoded_whole_where_it_is_framed_otherwise() -> None:
    specs: Specs = {}
    first, *others = given_messages(specs, range(10, 20), range(20, 30), range(30, 40))
    reads = [replace(first, first_tokens=tuple(range(50, 62))), *others]
    composed = composed_of(specs, [Entry(message, "blended", recompute_share=0.4) for message in reads])
    again = [p for p in flatten(composed.view, specs)[1:] if specs[p.encoding_id].start == p.position]
    assert [(p.position, p.num_tokens) for p in again] == [(3, 12), (15, 2), (25, 10)]  # 12 of 30 are due beside it
