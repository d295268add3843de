"""The pool of anchors: its books under random use, its weights, and a gate that accepts what it knows and no more."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from laban.kvstore.anchors import MAX_ANCHORS, MAX_MIXED, MIN_ERRORS, AnchorPool
from laban.kvstore.encodings import EMPTY_VIEW, EncodingSpec, Placement, View, extend, make_spec
from laban.kvstore.surroundings import MAX_DIGESTS, Digests, Surroundings, distance, surroundings

Specs = dict[str, EncodingSpec]


def chain(*texts: tuple[int, ...], start: int = 0, namespace: str = "m/t") -> tuple[EncodingSpec, Surroundings]:
    """The last text under those before it."""
    specs: Specs = {}
    view, spec = EMPTY_VIEW, None
    for tokens in texts:
        spec = make_spec(namespace, tokens, start, view, specs)
        specs[spec.encoding_id] = spec
        view, start = View(spec.encoding_id), spec.stop
    assert spec is not None
    return spec, surroundings(spec, specs, Digests())


def always(_: str) -> bool:
    return True


def filled(pool: AnchorPool, text: tuple[int, ...], num: int) -> list[EncodingSpec]:
    found = []
    for number in range(num):
        spec, around = chain((1,), (1000 + number, 7), text)
        pool.add(spec, around, {})
        found.append(spec)
    return found


texts = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=4).map(tuple), max_size=5)


@given(texts, texts)
def test_the_distance_separates(one: list[tuple[int, ...]], other: list[tuple[int, ...]]) -> None:
    a, b = (chain(*each, (9, 9))[1] for each in (one, other))
    assert (distance(a, b) == 0.0) == (one == other)
    assert distance(a, b) == distance(b, a)
    assert 0.0 <= distance(a, b) <= 1.0


def test_what_is_near_and_common_counts() -> None:
    doc, new, other = (1, 2, 3, 4), (5, 6, 7, 8), (10, 11, 12, 13)
    text = (9,)
    own = chain(doc, new, text)[1]
    far = [chain(*each, text)[1] for each in ((other, new), (new, doc), (doc, other), (other, other))]
    assert distance(own, far[0]) < distance(own, far[3])
    assert distance(own, far[1]) < distance(own, far[3])
    assert distance(own, far[0]) < distance(own, far[2])


def test_where_it_stands_does_not_count_but_gaps_do() -> None:
    assert distance(chain((1, 2), (3,), (9,))[1], chain((1, 2), (3,), (9,), start=37)[1]) == 0.0
    specs: Specs = {}
    root = make_spec("m/t", (1, 2), 0, EMPTY_VIEW, specs)
    specs[root.encoding_id] = root
    close, apart = (make_spec("m/t", (9,), at, View(root.encoding_id), specs) for at in (2, 5))
    assert distance(*(surroundings(each, specs, Digests()) for each in (close, apart))) > 0.0


def test_what_was_encoded_elsewhere_counts_as_what_it_is() -> None:
    specs: Specs = {}
    root = make_spec("m/t", (1, 2), 0, EMPTY_VIEW, specs)
    other = make_spec("m/t", (3, 4), 2, EMPTY_VIEW, specs)
    own = make_spec("m/t", (3, 4), 2, View(root.encoding_id), specs | {root.encoding_id: root})
    specs |= {spec.encoding_id: spec for spec in (root, other, own)}
    placed = extend(View(root.encoding_id), Placement(other.encoding_id, 2, 0, 2), specs)
    moved = make_spec("m/t", (9,), 4, placed, specs)
    dense = make_spec("m/t", (9,), 4, View(own.encoding_id), specs)
    assert distance(*(surroundings(each, specs, Digests()) for each in (moved, dense))) > 0.0


def test_digests_are_of_tokens_and_the_oldest_go() -> None:
    digests = Digests()
    specs = [make_spec("m/t", (number // 2, 1), number % 2, EMPTY_VIEW, {}) for number in range(MAX_DIGESTS + 2)]
    found = [digests.of(spec) for spec in specs]
    assert found[0::2] == found[1::2]
    assert len(set(found)) == len(specs) // 2
    assert [digests.of(spec) for spec in specs] == found
    assert len(digests._kept) == MAX_DIGESTS


@pytest.mark.parametrize("num", [1, 20])
def test_the_same_view_takes_all_the_weight(num: int) -> None:
    pool, text = AnchorPool(), (9, 8, 7)
    filled(pool, text, num)
    spec, around = chain((1,), (1000 + num - 1, 7), text, start=5)
    mix = pool.choose(spec, around, 0.0, always)
    assert mix is not None
    assert [weight for _, weight in mix.parts] == [1.0]
    assert (mix.distance, mix.error) == (0.0, 0.0)
    assert pool.predict(spec, around, always, leave_out=True) is None or num > 1


def test_few_are_mixed_and_other_tokens_or_tenants_never() -> None:
    pool, text = AnchorPool(), (9, 8, 7)
    filled(pool, text, 12)
    spec, around = chain((1,), (55, 7), text)
    mix = pool.predict(spec, around, always)
    assert mix is not None
    assert len(mix.parts) <= MAX_MIXED
    assert math.isclose(sum(weight for _, weight in mix.parts), 1.0)
    for spec, around in (chain((1,), (55, 7), (9, 8, 6)), chain((1,), (55, 7), text, namespace="m/u")):
        assert pool.predict(spec, around, always) is None
    parted, around = chain((1,), (55, 7), text, namespace="m/t#part")
    assert pool.predict(parted, around, always) is not None  # of the same owner


def test_only_what_is_usable_is_mixed() -> None:
    pool, text = AnchorPool(), (9, 8, 7)
    found = filled(pool, text, 6)
    spec, around = chain((1,), (55, 7), text)
    mix = pool.predict(spec, around, lambda i: i == found[2].encoding_id)
    assert mix is not None
    assert [anchor.encoding_id for anchor, _ in mix.parts] == [found[2].encoding_id]


def test_the_gate_is_absolute() -> None:
    pool, text = AnchorPool(), (9, 8, 7)
    filled(pool, text, 6)
    spec, around = chain((1,), (55, 7), text)
    far = pool.predict(spec, around, always)
    assert far is not None
    for number in range(MIN_ERRORS):
        assert pool.choose(spec, around, 100.0, always) is None  # whatever is asked for: nothing is known
        pool.learn(spec, far.distance, 0.01 * (1 + number % 2))
    bound = pool.bound(spec, far.distance)
    assert 0.02 < bound < 1.0
    assert pool.choose(spec, around, bound * 1.01, always) is not None
    assert pool.choose(spec, around, bound * 0.99, always) is None
    assert math.isinf(pool.bound(spec, far.distance + 0.05))  # errors from nearer say nothing


@given(st.integers(0, 1000))
@settings(max_examples=20)
def test_the_bound_holds_19_times_of_20(seed: int) -> None:
    """Over 400 pools whose errors are log-normal, one more is above the bound about 20 times."""
    rng, text, above = random.Random(seed), (9, 8, 7), 0
    for _ in range(400):
        pool = AnchorPool()
        spec = filled(pool, text, 1)[0]
        spread = rng.uniform(0.1, 1.0)
        for _ in range(rng.randint(MIN_ERRORS, 12)):
            pool.learn(spec, 0.5, rng.lognormvariate(-3, spread))
        above += rng.lognormvariate(-3, spread) > pool.bound(spec, 0.5)
    assert above <= 46  # 20 are expected: more than six standard deviations


def test_the_temperature_follows_what_predicts_best() -> None:
    """Values that depend on the nearest piece: near ones should count for nearly all. Else all alike."""
    text = (9, 8, 7)
    fitted = []
    for depends in (True, False):
        pool, rng = AnchorPool(), random.Random(0)
        told: dict[str, tuple[float, ...]] = {}
        for number in range(8):
            group = number % 2
            spec, around = chain((1,), (2000 + number,) * 3, (3000 + group,) * 6, text)
            point = tuple(rng.gauss(10.0 * group * depends, 1.0) for _ in range(8))
            gaps = {i: sum((a - b) ** 2 for a, b in zip(point, p, strict=True)) for i, p in told.items()}
            pool.add(spec, around, gaps)
            told[spec.encoding_id] = point
        mix = pool.predict(*chain((1,), (77,) * 3, (3000,) * 6, text), always)
        assert mix is not None
        fitted.append(pool._known[next(iter(pool._known))].temperature)
    assert fitted[0] <= fitted[1]


class Books(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.pool = AnchorPool(tenant_bytes=12_000)
        self.live: dict[str, EncodingSpec] = {}

    @rule(text=st.integers(0, 3), before=st.integers(0, 30), tenant=st.sampled_from(["m/t", "m/u", "m/t#x"]))
    def add(self, text: int, before: int, tenant: str) -> None:
        spec, around = chain((1,), (100 + before,), (text, text), namespace=tenant)
        gaps = {anchor.encoding_id: 1.0 for anchor in self.pool.anchors(spec)}
        self.pool.add(spec, around, gaps)
        self.live[spec.encoding_id] = spec
        assert spec.encoding_id in self.pool  # what is new is never the first to go

    @rule(data=st.data())
    def forget(self, data: st.DataObject) -> None:
        if self.live:
            encoding_id = data.draw(st.sampled_from(sorted(self.live)))
            self.pool.forget(encoding_id)
            assert encoding_id not in self.pool

    @rule(text=st.integers(0, 3), before=st.integers(0, 30), tolerance=st.sampled_from([0.0, 0.1, 9.0]))
    def choose(self, text: int, before: int, tolerance: float) -> None:
        spec, around = chain((1,), (100 + before,), (text, text))
        mix = self.pool.choose(spec, around, tolerance, always)
        if mix is not None:
            assert mix.error <= tolerance
            assert all(anchor.encoding_id in self.pool for anchor, _ in mix.parts)

    @rule(text=st.integers(0, 3), error=st.floats(0.0, 1.0), far=st.floats(0.0, 1.0))
    def learn(self, text: int, error: float, far: float) -> None:
        self.pool.learn(chain((text, text))[0], far, error)

    @invariant()
    def books_agree(self) -> None:
        self.pool.check_integrity()
        assert all(len(self.pool.anchors(spec)) <= MAX_ANCHORS for spec in self.live.values())


TestBooks = Books.TestCase
TestBooks.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
