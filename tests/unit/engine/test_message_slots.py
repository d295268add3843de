"""Messages that are read as they were made, where others in the same slot of a step are known to lose little so."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from correction_checks import HEADER, Reader, words
from engine_harness import make_engine

from laban.actors.calls import Call, Sampling, Scoring
from laban.actors.engine.planning import MEASURED, is_measured
from laban.kvstore.anchors import AnchorPool
from laban.kvstore.encodings import EncodingSpec, Placement, View, extend, make_spec, view_stop
from laban.kvstore.error_bounds import MIN_ERRORS
from laban.kvstore.message_slots import MAX_ERRORS, MessageSlot

ROOT = (1, 2, 3)
ANY = 50.0
KIND = "flow/step"


def asked(reader: Reader, home: EncodingSpec, before: tuple[int, ...], tolerance: float) -> tuple[View, EncodingSpec]:
    """A view of the root, other words and the message of `home`, which is to be as it would be encoded there."""
    view, _ = reader.view_of((ROOT, 0.0), (before, 0.0))
    spec = make_spec("test", home.tokens, view_stop(view, reader.specs), view, reader.specs, tolerance=tolerance)
    reader.specs[spec.encoding_id] = spec
    return extend(view, Placement(spec.encoding_id, spec.start, 0, spec.num_tokens), reader.specs), spec


def read(
    reader: Reader, rng: random.Random, tolerance: float = ANY, *, number: int = 0, kind: str = KIND
) -> tuple[EncodingSpec, EncodingSpec]:
    """A new message, made and then read after other words: its home, and what was read."""
    home = reader.prefill(list(words(rng, 30)), reader.view_of((ROOT, 0.0))[0])
    view, spec = asked(reader, home, words(rng, 12), tolerance)
    slot = MessageSlot(spec.encoding_id, home.encoding_id, number)
    call = reader.submit(HEADER, view, sampling=Sampling(max_tokens=4), kind=kind, slots=(slot,))
    reader.run()
    reader.result(call)
    return home, spec


def learnt(num: int = MIN_ERRORS, seed: int = 1) -> tuple[Reader, random.Random]:
    reader, rng = Reader(make_engine()), random.Random(seed)
    for number in range(num):
        _, spec = read(reader, rng)
        assert reader.mix(spec) is None, number
    return reader, rng


def test_a_message_is_taken_as_it_was_made_once_enough_others_of_its_slot_were_measured() -> None:
    reader, rng = learnt()
    home, spec = read(reader, rng)
    mix = reader.mix(spec)
    assert mix is not None
    assert [(anchor.encoding_id, weight) for anchor, weight in mix.parts] == [(home.encoding_id, 1.0)]
    assert mix.error == reader.corrections.pool.slots.bound((*mix.slot,)) if mix.slot else False
    (_, its_values), (_, values) = reader.keys_and_values(home), reader.keys_and_values(spec)
    assert (its_values == values).all()
    assert reader.specs[spec.encoding_id].exact is False


def test_its_error_is_what_a_reader_was_measured_to_lose() -> None:
    """The same as the divergence of a forced call that reads the home, turned to its place, from one that reads it
    encoded there."""
    reader, rng = learnt()
    (errors,) = reader.corrections.pool.slots._errors["test"].values()
    assert len(errors) == MIN_ERRORS
    assert all(error > 0 for error in errors)
    bound = reader.corrections.pool.slots.bound(MessageSlot("", "", 0).key("test", KIND))
    assert bound > max(errors)
    refused = read(reader, rng, bound * 0.99)[1]
    assert reader.mix(refused) is None
    bound = reader.corrections.pool.slots.bound(MessageSlot("", "", 0).key("test", KIND))
    assert reader.mix(read(reader, rng, bound * 1.01)[1]) is not None


@pytest.mark.parametrize("other", [{"number": 1}, {"kind": "flow/other"}, {"kind": ""}])
def test_other_slots_know_nothing_of_it(other: dict[str, object]) -> None:
    reader, rng = learnt()
    assert reader.mix(read(reader, rng, **other)[1]) is None  # type: ignore[arg-type]


def test_nothing_is_learnt_of_calls_that_are_of_no_step() -> None:
    reader, rng = Reader(make_engine()), random.Random(1)
    for _ in range(MIN_ERRORS + 2):
        assert reader.mix(read(reader, rng, kind="")[1]) is None
    assert reader.corrections.pool.slots.num_bytes == 0


@pytest.mark.parametrize("gone", ["lost", "other", "unknown"])
def test_a_home_that_is_not_there_or_not_of_it_serves_nothing(gone: str) -> None:
    reader, rng = learnt()
    home = reader.prefill(list(words(rng, 30)), reader.view_of((ROOT, 0.0))[0])
    view, spec = asked(reader, home, words(rng, 12), ANY)
    home_id = home.encoding_id
    if gone == "lost":
        assert reader.engine.store.drop(home_id)
    elif gone == "other":
        home_id = reader.prefill(list(words(rng, 30)), reader.view_of((ROOT, 0.0))[0]).encoding_id
    else:
        home_id = "nobody"
    slots = (MessageSlot(spec.encoding_id, home_id, 0),)
    call = reader.submit(HEADER, view, sampling=Sampling(max_tokens=4), kind=KIND, slots=slots)
    reader.run()
    reader.result(call)
    assert reader.mix(spec) is None


def test_what_was_taken_as_it_was_made_serves_nobody_else() -> None:
    reader, rng = learnt()
    _, spec = read(reader, rng)
    assert reader.mix(spec) is not None
    assert spec.encoding_id not in reader.corrections.pool
    twin = make_spec("test", spec.tokens, spec.start, spec.view, reader.specs, tolerance=1e-9)
    view = extend(
        spec.view, Placement(twin.encoding_id, twin.start, 0, twin.num_tokens), {**reader.specs, twin.encoding_id: twin}
    )
    reader.specs[twin.encoding_id] = twin
    call = reader.submit(
        HEADER,
        view,
        sampling=Sampling(max_tokens=4),
        kind=KIND,
        slots=(MessageSlot(twin.encoding_id, spec.encoding_id, 0),),
    )
    reader.run()
    reader.result(call)
    assert reader.mix(twin) is None  # not even as a home


def test_an_empty_pool_learns_nothing_and_a_deleted_home_is_not_tried() -> None:
    reader, rng = Reader(make_engine()), random.Random(1)
    reader.corrections.pool = AnchorPool(tenant_bytes=0)
    for _ in range(MIN_ERRORS + 2):
        assert reader.mix(read(reader, rng)[1]) is None
    assert reader.corrections.pool.num_bytes == 0


def test_errors_are_the_last_ones_and_a_tenants_slots_are_bounded() -> None:
    slots = AnchorPool(tenant_bytes=16 * 1024 * 3).slots
    for number in range(5):
        for _ in range(2 * MAX_ERRORS):
            slots.learn(("tenant", KIND, number), 0.1)
    slots.learn(("other", KIND, 0), 0.1)
    assert [key[2] for key in slots._errors["tenant"]] == [2, 3, 4]
    assert slots.num_bytes == 4 * 1024
    for _ in range(MAX_ERRORS):
        slots.learn(("tenant", KIND, 4), 0.001)
    assert slots.bound(("tenant", KIND, 4)) == pytest.approx(0.001)


def test_one_call_in_so_many_is_encoded_so_that_errors_go_on_being_found() -> None:
    reader, rng = learnt()
    predicted = [reader.mix(read(reader, rng)[1]) is not None for _ in range(3 * MEASURED)]
    (errors,) = reader.corrections.pool.slots._errors["test"].values()
    assert 0 < predicted.count(False) < len(predicted) / 8
    assert len(errors) == MIN_ERRORS + predicted.count(False)


def test_what_an_audit_compares_is_never_the_one_that_is_encoded() -> None:
    slots = (MessageSlot("read", "home", 0),)
    calls = [Call(f"audit/{n}", "test", View(), 0, (1,), (), kind=KIND, slots=slots) for n in range(3 * MEASURED)]
    assert any(is_measured(call) for call in calls)
    assert not any(is_measured(replace(call, scoring=Scoring(against="exact"))) for call in calls)
