"""The book of uses: of few and of many that will read one encoding it tells the same nearest one."""

from __future__ import annotations

from functools import reduce

from hypothesis import given
from hypothesis import strategies as st

from laban.kvstore.uses import CROWD, Use, UseBook

uses = st.builds(
    Use, st.integers(0, 5), st.integers(0, 20).map(float), st.sampled_from([0.2, 0.5, 1.0]), st.booleans(),
    st.integers(0, 9),
)  # fmt: skip
said = st.dictionaries(st.sampled_from("ab"), uses)


@given(st.lists(st.tuples(st.integers(0, 2 * CROWD), said), max_size=40), st.lists(said, min_size=2 * CROWD))
def test_the_nearest_of_many_is_that_of_all_taken_one_by_one(
    later: list[tuple[int, dict[str, Use]]], first: list[dict[str, Use]]
) -> None:
    book, known = UseBook(), {}
    for number, said_now in [*enumerate(first), *later, *((number, {}) for number in range(2 * CROWD))]:
        book.put(str(number), said_now)
        known[number] = said_now
        for name in "ab":
            each = [said_by[name] for said_by in known.values() if name in said_by]
            assert book.nearest(name) == (reduce(Use.nearer, each) if each else None)
            assert len(book.sources(name)) == len(each)
    assert book.all() == {name: use for name in "ab" if (use := book.nearest(name))}
