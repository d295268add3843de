"""Which of a view's reads are predicted, where not all may be."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from laban.actors.calls import Call
from laban.actors.engine.planning import predicted
from laban.kvstore.anchors import Mix
from laban.kvstore.encodings import EMPTY_VIEW, EncodingSpec, View, make_spec


class Offering:
    """Offers to predict each spec with the error that it is told."""

    def __init__(self, errors: dict[str, float], before: float) -> None:
        self._errors, self._before = errors, before

    def choose(self, spec: EncodingSpec, specs: dict[str, EncodingSpec], call: Call) -> Mix | None:
        error = self._errors[spec.encoding_id]
        return Mix((), 0.5, error) if error + self._before <= spec.tolerance else None

    def spent(self, spec: EncodingSpec, specs: dict[str, EncodingSpec]) -> float:
        return self._before


def view_of(sizes: list[int], tolerances: list[float]) -> tuple[View, dict[str, EncodingSpec]]:
    specs: dict[str, EncodingSpec] = {}
    view, at = EMPTY_VIEW, 0
    for number, (size, tolerance) in enumerate(zip(sizes, tolerances, strict=True)):
        spec = make_spec("m/t", [number + 1] * size, at, view, specs, tolerance=tolerance)
        specs[spec.encoding_id] = spec
        view, at = View(spec.encoding_id), spec.stop
    return view, specs


def chosen(sizes: list[int], tolerances: list[float], errors: list[float], before: float = 0.0) -> list[int]:
    """The places of those that are predicted."""
    view, specs = view_of(sizes, tolerances)
    names = list(specs)
    call = Call("call", "m/t", view, sum(sizes), (1,), tuple(specs.values()))
    offering = Offering(dict(zip(names, errors, strict=True)), before)
    mixes = predicted(call, call.specs, specs, set(), offering)  # type: ignore[arg-type]
    return sorted(names.index(name) for name in mixes)


def test_what_errs_by_the_least_a_token_goes_first() -> None:
    assert chosen([10, 100, 100], [0.2] * 3, [0.12, 0.05, 0.1]) == [1, 2]
    assert chosen([10, 100, 100], [0.3] * 3, [0.12, 0.05, 0.1]) == [0, 1, 2]
    assert chosen([10, 100, 100], [0.3] * 3, [0.12, 0.05, 0.1], before=0.04) == [1, 2]


def test_an_earlier_one_is_not_predicted_where_a_later_one_could_not_see_it() -> None:
    assert chosen([10, 10], [0.5, 0.1], [0.2, 0.05]) == [1]
    assert chosen([10, 10], [0.5, 0.3], [0.2, 0.05]) == [0, 1]
    assert chosen([10, 10], [0.1, 0.5], [0.05, 0.4]) == [0, 1]


whole = st.integers(1, 64)  # 64ths, which add up without rounding
reads = st.lists(st.tuples(st.integers(1, 50), whole, st.integers(0, 32)), min_size=1, max_size=8)


@given(reads, st.integers(0, 8))
def test_nobody_sees_more_than_its_tolerance_and_nothing_is_left_that_would_fit(
    reads: list[tuple[int, int, int]], before: int
) -> None:
    sizes = [size for size, _, _ in reads]
    found = chosen(
        sizes, [tolerance / 64 for _, tolerance, _ in reads], [error / 64 for *_, error in reads], before / 64
    )

    def fits(some: list[int]) -> bool:
        return all(before + sum(reads[other][2] for other in some if other <= each) <= reads[each][1] for each in some)

    assert fits(found)
    assert not any(fits([*found, each]) for each in set(range(len(reads))) - set(found))


def test_hundreds_of_reads_are_planned_at_once() -> None:
    rng = random.Random(1)
    num = 300
    found = chosen([rng.randrange(1, 50) for _ in range(num)], [1.0] * num, [rng.random() / 50 for _ in range(num)])
    assert 50 < len(found) < num
