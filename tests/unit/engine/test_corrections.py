"""Reads that may be predicted from other encodings of the same tokens: when they are, from what, and how well."""

from __future__ import annotations

import os
import random

import pytest
import torch
from correction_checks import HEADER, Reader, largest_difference, words
from engine_harness import force, make_engine

from laban.actors.calls import Advice, Sampling
from laban.actors.engine import corrections
from laban.kvstore.anchors import MAX_ANCHORS, MIN_ERRORS, AnchorPool
from laban.kvstore.encodings import EMPTY_VIEW
from laban.kvstore.surroundings import surroundings

ROOT = (1, 2, 3)
LONG = pytest.mark.skipif("LABAN_LONG" not in os.environ, reason="takes minutes: set LABAN_LONG")
ANY = 50.0  # nats: more than anything can diverge by


def learnt(reader: Reader, text: tuple[int, ...], rng: random.Random, num: int) -> None:
    """Has the text read after so many other messages, each once."""
    for _ in range(num):
        reader.read((ROOT, 0.0), (words(rng, 12), 0.0), (text, ANY))


@pytest.mark.parametrize(("kind", "fused"), [("llama", False), ("qwen3", False), ("gemma3", False), ("llama", True)])
@pytest.mark.parametrize("num_others", [0, 14])
def test_the_same_text_under_the_same_view_is_the_dense_one(kind: str, fused: bool, num_others: int) -> None:
    rng, text, before = random.Random(1), words(random.Random(2), 40), words(random.Random(3), 12)
    reader = Reader(make_engine(kind, fused=fused))
    learnt(reader, text, rng, num_others)
    first = reader.read((ROOT, 0.0), (before, 0.0), (text, 1e-9))[-1]
    again = reader.read((ROOT, 0.0), (before, 0.0), (text, 2e-9))[-1]
    dense = Reader(make_engine(kind, fused=fused))
    wanted = dense.read((ROOT, 0.0), (before, 0.0), (text, 0.0))[-1]
    mix = reader.mix(again)
    assert reader.mix(first) is None
    assert mix is not None
    assert [weight for _, weight in mix.parts] == [1.0]
    assert largest_difference(reader, again, dense, wanted) < 1e-5


@pytest.mark.parametrize("kind", ["llama", "llama3-rope", "yarn-rope"])
def test_an_anchor_serves_37_positions_further_on(kind: str) -> None:
    text, before = words(random.Random(2), 40), words(random.Random(3), 12)
    reader = Reader(make_engine(kind))
    reader.read((ROOT, 0.0), (before, 0.0), (text, 0.25))
    moved = reader.read((ROOT, 0.0), (before, 0.0), (text, 0.25), start=37)[-1]
    there = Reader(make_engine(kind))
    wanted = there.read((ROOT, 0.0), (before, 0.0), (text, 0.25), start=37)[-1]
    assert reader.mix(moved) is not None
    assert there.mix(wanted) is None
    assert largest_difference(reader, moved, there, wanted) < 1e-4


def test_what_is_predicted_is_a_mean_of_a_few() -> None:
    rng, text, before = random.Random(1), words(random.Random(2), 40), words(random.Random(3), 12)
    reader = Reader(make_engine())
    learnt(reader, text, rng, 14)
    found = reader.read((ROOT, 0.0), (before, 0.0), (text, ANY))[-1]
    mix = reader.mix(found)
    assert mix is not None
    assert 1 < len(mix.parts) <= 4
    assert sum(weight for _, weight in mix.parts) == pytest.approx(1.0)
    values = [reader.keys_and_values(reader.specs[anchor.encoding_id])[1] for anchor, _ in mix.parts]
    mean = sum(weight * each for (_, weight), each in zip(mix.parts, values, strict=True))
    torch.testing.assert_close(reader.keys_and_values(found)[1], mean, atol=1e-5, rtol=0)


def test_nothing_is_predicted_before_its_error_is_known() -> None:
    rng, text = random.Random(1), words(random.Random(2), 30)
    reader = Reader(make_engine())
    for number in range(MIN_ERRORS + 1):
        spec = reader.read((ROOT, 0.0), (words(rng, 12), 0.0), (text, ANY))[-1]
        assert reader.mix(spec) is None, number
    assert reader.mix(reader.read((ROOT, 0.0), (words(rng, 12), 0.0), (text, ANY))[-1]) is not None


def test_a_tolerance_below_the_error_refuses() -> None:
    rng, text = random.Random(1), words(random.Random(2), 30)
    reader = Reader(make_engine())
    learnt(reader, text, rng, MIN_ERRORS + 2)
    spec = reader.view_of((ROOT, 0.0), (words(rng, 12), 0.0), (text, ANY))[1][-1]
    bound = reader.corrections.pool.bound(spec, 0.5)
    assert 0 < bound < ANY
    for tolerance, predicted in ((bound / 10, False), (bound * 10, True)):
        found = reader.read((ROOT, 0.0), (words(rng, 12), 0.0), (text, tolerance))[-1]
        assert (reader.mix(found) is not None) is predicted


@pytest.mark.parametrize("num_pairs", [6, pytest.param(1000, marks=LONG)])
@pytest.mark.parametrize("num_tokens", [16, 64, 256])
def test_other_tokens_are_refused(num_tokens: int, num_pairs: int) -> None:
    rng = random.Random(num_tokens)
    reader = Reader(make_engine(pool_tokens=8192))
    learnt(reader, words(rng, num_tokens), rng, MIN_ERRORS + 2)
    for _ in range(num_pairs):
        assert reader.mix(reader.read((ROOT, 0.0), (words(rng, 12), 0.0), (words(rng, num_tokens), ANY))[-1]) is None


def test_an_empty_pool_gives_what_exact_gives() -> None:
    texts = [words(random.Random(i), 20) for i in range(3)]
    sampling = Sampling(max_tokens=24)
    said = []
    for tolerance in (0.0, ANY):
        reader = Reader(make_engine())
        reader.corrections.pool = AnchorPool(tenant_bytes=0)
        learnt(reader, texts[0], random.Random(5), MIN_ERRORS + 3)
        view, _ = reader.view_of(*((tokens, tolerance) for tokens in reversed(texts)))
        call_id = reader.submit(HEADER, view, sampling=sampling)
        reader.run()
        said.append(reader.result(call_id).generated)
        assert reader.corrections.pool.num_anchors == 0
    assert said[0] == said[1]


def test_what_the_device_lost_makes_room_first() -> None:
    rng, text = random.Random(1), words(random.Random(2), 30)
    reader = Reader(make_engine())
    specs = [reader.read((ROOT, 0.0), (words(rng, 12), 0.0), (text, 1e-9))[-1] for _ in range(MAX_ANCHORS)]
    assert reader.engine.store.drop(specs[7].encoding_id)
    found = reader.read((ROOT, 0.0), (words(rng, 12), 0.0), (text, 1e-9))[-1]
    left = {anchor.encoding_id for anchor in reader.corrections.pool.anchors(found)}
    assert left == {spec.encoding_id for spec in [*specs[:7], *specs[8:], found]}


def test_errors_within_one_view_add_up() -> None:
    """Two reads whose errors are each just within the tolerance are not both predicted."""
    rng, one, other = random.Random(1), words(random.Random(2), 30), words(random.Random(3), 30)
    reader = Reader(make_engine())
    for _ in range(MIN_ERRORS + 3):
        reader.read((ROOT, 0.0), (words(rng, 12), 0.0), (one, ANY), (other, ANY))
    _, specs = reader.view_of((ROOT, 0.0), (words(rng, 12), 0.0), (one, ANY), (other, ANY))
    pool = reader.corrections.pool
    enough = 1.01 * max(pool.bound(spec, 0.2) for spec in specs[2:])
    found = reader.read((ROOT, 0.0), (words(rng, 12), 0.0), (one, enough), (other, enough))[2:]
    mixes = [mix for mix in map(reader.mix, found) if mix is not None]
    assert len(mixes) >= 1
    assert sum(mix.error for mix in mixes) <= enough


def test_what_is_predicted_never_serves_exact_and_is_nobodys_anchor() -> None:
    rng, text, before = random.Random(1), words(random.Random(2), 30), words(random.Random(3), 12)
    reader = Reader(make_engine())
    learnt(reader, text, rng, MIN_ERRORS + 2)
    poisoned = reader.read((ROOT, 0.0), (before, 0.0), (text, ANY))[-1]
    assert reader.mix(poisoned) is not None
    entry = reader.engine.store.get_ready(poisoned.encoding_id)
    assert entry is not None
    slots = [first + i for first, length in entry.runs(0, entry.num_tokens) for i in range(length)]
    reader.engine.runner.k_pool[:, slots] = 1e3
    reader.engine.runner.v_pool[:, slots] = 1e3
    exact = reader.read((ROOT, 0.0), (before, 0.0), (text, 0.0))[-1]
    dense = Reader(make_engine())
    wanted = dense.read((ROOT, 0.0), (before, 0.0), (text, 0.0))[-1]
    assert largest_difference(reader, exact, dense, wanted) < 1e-5
    twin = reader.read((ROOT, 0.0), (before, 0.0), (text, 2 * ANY))[-1]
    mix = reader.mix(twin)
    assert mix is not None
    assert [anchor.encoding_id for anchor, _ in mix.parts] == [exact.encoding_id]
    assert largest_difference(reader, twin, dense, wanted) < 1e-5
    assert not any(a.encoding_id == poisoned.encoding_id for a in reader.corrections.pool.anchors(exact))


def test_an_anchor_that_was_lost_and_is_predicted_now_serves_no_more() -> None:
    rng, text = random.Random(1), words(random.Random(2), 30)
    reader = Reader(make_engine())
    learnt(reader, text, rng, MIN_ERRORS + 1)
    before = words(rng, 12)
    lost = reader.read((ROOT, 0.0), (before, 0.0), (text, 1e-9))[-1]
    assert reader.mix(lost) is None
    assert reader.engine.store.drop(lost.encoding_id)
    pool = reader.corrections.pool
    from_others = pool.predict(lost, surroundings(lost, reader.specs, pool.digests), reader.corrections._usable)
    assert from_others is not None
    (made,) = reader.corrections.make([(lost, from_others)])
    reader.engine.store.unpin(made)
    found = reader.read((ROOT, 0.0), (before, 0.0), (text, ANY))[-1]
    mix = reader.mix(found)
    assert mix is None or lost.encoding_id not in {anchor.encoding_id for anchor, _ in mix.parts}


def test_copies_into_freed_pages_wait_for_what_is_predicted_from_them() -> None:
    """On a card nobody waits for a prediction, and what it reads may go before it is made."""
    reader = Reader(make_engine())
    engine, copying = reader.engine, torch.Event("cpu")
    before, after, other = (engine.store.reserve(name, 40) for name in ("before", "after", "other"))
    engine.store.discard(before)
    engine.corrections.copying = copying  # type: ignore[assignment]
    engine.store.discard(after)
    assert engine._fences.after(before.pages) is None
    assert engine._fences.after([*before.pages, *after.pages]) is copying
    assert engine._fences.after(other.pages) is None
    call_id = reader.submit(HEADER, EMPTY_VIEW, sampling=Sampling(max_tokens=2))
    reader.run()
    reader.result(call_id)
    assert engine.corrections.copying is None
    assert engine._fences.after(after.pages) is None  # an iteration later has ended


@pytest.mark.parametrize("num_running", [0, 1])
def test_what_does_not_fit_beside_its_anchors_is_encoded(num_running: int) -> None:
    reader = Reader(make_engine(pool_tokens=24 * 16 + 32 * num_running))
    rng, text = random.Random(1), words(random.Random(2), 64)
    reader.engine._trials.ended = lambda *args: None  # type: ignore[method-assign]
    for _ in range(4):
        (_, spec) = reader.read((words(rng, 16), 0.0), (text, 0.5), num_tokens=2)
    for _ in range(MIN_ERRORS):
        reader.corrections.pool.learn(spec, 1.0, 1e-4)
    younger = [reader.submit(HEADER, sampling=Sampling(max_tokens=20), rank=1) for _ in range(num_running)]
    reader.step()
    assert reader.corrections.pool.num_anchors == 4
    view, _ = reader.view_of((words(rng, 32), 0.0), (text, 0.5))
    call = reader.submit(HEADER, view, sampling=Sampling(max_tokens=60))
    reader.run()
    assert reader.result(call).tokens_generated == 60
    assert [reader.result(other).tokens_generated for other in younger] == [20] * num_running
    assert not reader.engine.tiers.counters.totals().preemptions


def test_a_prediction_that_fails_ends_its_call_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    rng, text = random.Random(1), words(random.Random(2), 30)
    reader = Reader(make_engine())
    learnt(reader, text, rng, MIN_ERRORS + 1)
    engine, copy_mixed = reader.engine, corrections.copy_mixed

    def fail(*args: object) -> None:
        raise RuntimeError("no launch")

    before = words(rng, 12)
    other = reader.submit(HEADER, EMPTY_VIEW, sampling=Sampling(max_tokens=20))
    reader.step()
    pages = engine.store.allocator.num_free
    view, _ = reader.view_of((ROOT, 0.0), (before, 0.0), (text, ANY))
    monkeypatch.setattr(corrections, "copy_mixed", fail)
    failed = reader.submit(HEADER, view, sampling=Sampling(max_tokens=2))
    reader.step()
    assert "no launch" in reader.failure(failed).message
    assert engine.store.allocator.num_free == pages
    reader.run()
    reader.result(other)
    engine.store.check_integrity()
    assert all(entry.pins == 0 for entry in engine.store.entries())
    monkeypatch.setattr(corrections, "copy_mixed", copy_mixed)
    assert reader.mix(reader.read((ROOT, 0.0), (before, 0.0), (text, ANY))[-1]) is not None


@pytest.mark.parametrize("kind", ["llama", "gemma3"])
def test_to_warm_up_changes_nothing(kind: str) -> None:
    engine = make_engine(kind)
    pools = [pool.normal_() for pool in (engine.runner.k_pool, engine.runner.v_pool)]
    before = [pool.clone() for pool in pools]
    engine.corrections._warm_up()
    assert all(map(torch.equal, pools, before))


def test_tenants_have_their_own() -> None:
    reader = Reader(make_engine())
    text = words(random.Random(2), 30)
    spec = reader.read((ROOT, 0.0), (text, ANY))[-1]
    pool = reader.corrections.pool
    assert [anchor.encoding_id for anchor in pool.anchors(spec)] == [spec.encoding_id]
    theirs = spec.__class__(spec.encoding_id, "other", spec.tokens, spec.start, spec.view, spec.exact, spec.tolerance)
    assert pool.anchors(theirs) == []


def test_aborted_calls_leave_no_anchors_and_deleted_texts_none_either() -> None:
    reader = Reader(make_engine(max_batch_tokens=16))
    text = words(random.Random(2), 100)
    view, specs = reader.view_of((ROOT, 0.0), (text, ANY))
    call_id = reader.submit(HEADER, view, sampling=Sampling(max_tokens=4))
    for _ in range(3):
        reader.step()
    reader.engine.abort(call_id)
    reader.run()
    assert reader.corrections.pool.num_anchors == 0
    assert not reader.corrections._due
    reader.read((ROOT, 0.0), (text, ANY))
    assert reader.corrections.pool.num_anchors == 1
    reader.engine.advise(Advice(forgotten=(specs[-1].encoding_id,)))
    reader.run()
    assert reader.corrections.pool.num_anchors == 0


@pytest.mark.parametrize("fused", [False, True])
def test_a_batch_of_all_kinds_gives_what_each_gives_alone(fused: bool) -> None:
    rng, text = random.Random(1), words(random.Random(2), 30)
    others = [words(rng, 12) for _ in range(4)]
    told = []
    for together in (False, True):
        reader = Reader(make_engine(fused=fused))
        learnt(reader, text, random.Random(9), MIN_ERRORS + 2)
        home = reader.prefill(list(text), reader.view_of((ROOT, 0.0))[0])
        views = [reader.view_of((ROOT, 0.0), (others[0], 0.0), (text, 0.0))[0]]
        views.append(reader.view_of((ROOT, 0.0), (others[1], 0.0), (text, ANY))[0])
        views.append(reader.place(reader.view_of((ROOT, 0.0), (others[2], 0.0))[0], home, 15))
        views.append(reader.view_of((ROOT, 0.0), (text[:9], ANY), (others[3], ANY))[0])
        call_ids = []
        for view in views:
            call_ids.append(reader.submit(HEADER, view, sampling=force(list(range(1, 12)))))
            if not together:
                reader.run()
        reader.run()
        told.append([reader.result(i) for i in call_ids])
        predicted = reader.specs[views[1].prefix_id or ""]
        assert reader.mix(predicted) is not None
    for alone, beside in zip(*told, strict=True):
        assert alone.generated == beside.generated
        assert alone.encoding == beside.encoding


@pytest.mark.parametrize("num_requests", [120, pytest.param(10_000, marks=LONG)])
def test_memory_stays_flat(num_requests: int) -> None:
    rng = random.Random(4)
    reader = Reader(make_engine(pool_tokens=2048))
    reader.corrections.pool = AnchorPool(tenant_bytes=20_000)
    texts = [words(rng, 20) for _ in range(40)]
    for _ in range(num_requests):
        reader.read((ROOT, 0.0), (words(rng, 6), 0.0), (rng.choice(texts), ANY), num_tokens=2)
        reader.corrections.pool.check_integrity()
        assert reader.corrections.pool.num_bytes <= 20_000
    assert len(reader.corrections._mixed) <= 2 * len(reader.engine.store) + 1
    assert not reader.corrections._due
