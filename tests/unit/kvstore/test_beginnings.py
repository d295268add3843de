"""The common beginning that is found is the longest there is, whatever was added, dropped or encoded elsewhere."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from laban.kvstore.beginnings import Beginnings
from laban.kvstore.encodings import EMPTY_VIEW, EncodingSpec, Placement, View, make_spec
from laban.kvstore.store import Entry

BASE = make_spec("a", (9, 9), 0, EMPTY_VIEW, {})
SPECS = {BASE.encoding_id: BASE}
PLACED = View(None, (Placement(BASE.encoding_id, 0, 0, 1),))

tokens = st.lists(st.integers(0, 2), min_size=1, max_size=8).map(tuple)
homes = st.sampled_from([("a", 0, EMPTY_VIEW), ("b", 0, EMPTY_VIEW), ("a", 3, EMPTY_VIEW), ("a", 3, PLACED)])


@st.composite
def specs(draw: st.DrawFn) -> EncodingSpec:
    namespace, start, view = draw(homes)
    return make_spec(namespace, draw(tokens), start, view, SPECS)


def entry_of(spec: EncodingSpec) -> Entry:
    return Entry(spec.encoding_id, [], 16, num_tokens=spec.num_tokens, ready=True, spec=spec)


def shared(one: EncodingSpec, other: EncodingSpec) -> int:
    if (one.namespace, one.start, one.view) != (other.namespace, other.start, other.view):
        return 0
    most = min(one.num_tokens, other.num_tokens - 1)
    return next((at for at in range(most) if one.tokens[at] != other.tokens[at]), most)


@given(st.lists(st.tuples(specs(), st.booleans()), max_size=200), specs())
def test_the_longest_of_those_that_are_there_is_found(
    told: list[tuple[EncodingSpec, bool]], wanted: EncodingSpec
) -> None:
    there: dict[str, Entry] = {}
    beginnings = Beginnings(lambda entry: there.get(entry.key) is entry)
    for spec, stays in told:
        if stays and spec.encoding_id not in there:
            there[spec.encoding_id] = entry_of(spec)
            beginnings.add(there[spec.encoding_id])
        elif not stays:
            there.pop(spec.encoding_id, None)
    longest = max((shared(entry.spec, wanted) for entry in there.values() if entry.spec), default=0)
    found = beginnings.find(wanted)
    assert (0 if found is None else found[1]) == longest
    if found is not None:
        assert there[found[0].key] is found[0]
        assert found[0].spec is not None
        assert found[0].spec.tokens[:longest] == wanted.tokens[:longest]


def test_what_is_gone_is_forgotten() -> None:
    there: set[Entry] = set()
    beginnings = Beginnings(there.__contains__)
    for number in range(10_000):
        entry = entry_of(make_spec("a", (number, 1), 0, EMPTY_VIEW, {}))
        there.clear()
        there.add(entry)
        beginnings.add(entry)
        assert len(beginnings) <= 200
