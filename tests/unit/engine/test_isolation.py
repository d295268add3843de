"""Nothing is moved, nothing else is read, nothing is left behind."""

from __future__ import annotations

import pytest
import torch
from engine_harness import Driver, assert_same_encoding, force, interpreter, logprobs, make_engine, place_recorded

from laban.actors.calls import Sampling
from laban.kvstore.encodings import EMPTY_VIEW, EncodingSpec


def seeded(driver: Driver) -> list[EncodingSpec]:
    return [driver.prefill([(i * 5 + j) % 128 for j in range(size)]) for i, size in enumerate((70, 9, 130))]


def test_reading_elsewhere_and_back_leaves_the_stored_bytes() -> None:
    driver = Driver(make_engine("llama"))
    specs = seeded(driver)
    before = [driver.keys_and_values(spec) for spec in specs]
    outputs = []
    for position in (0, 300, 17, 0):
        call = driver.submit([1, 2], driver.place(EMPTY_VIEW, specs[2], position), position + 130, force([3, 4, 5]))
        driver.run()
        outputs.append(logprobs(driver.result(call)))
    for spec, (keys, values) in zip(specs, before, strict=True):
        after = driver.keys_and_values(spec)
        assert torch.equal(after[0], keys)
        assert torch.equal(after[1], values)
    assert torch.equal(outputs[0], outputs[3])  # and the view is what it was, to the bit


def run_batch(poison: bool) -> tuple[list[torch.Tensor], list[tuple[torch.Tensor, torch.Tensor]]]:
    """Five calls over some of the messages, with everything they may not read poisoned or not."""
    driver = Driver(make_engine("llama", pool_tokens=1024))
    specs = seeded(driver)
    stranger = driver.prefill([9] * 50)
    if poison:
        readable = set()
        for spec in specs:
            entry = driver.engine.store.get(spec.encoding_id)
            assert entry is not None
            readable |= {first + i for first, n in entry.runs(0, entry.num_tokens) for i in range(n)}
        slots = [s for s in range(1024) if s not in readable]  # strangers, free pages and the tails of pages
        driver.engine.runner.k_pool[:, slots] = torch.nan
        driver.engine.runner.v_pool[:, slots] = torch.nan
    assert stranger.num_tokens == 50
    calls = []
    for i in range(5):
        view = driver.place(EMPTY_VIEW, specs[i % 3], 11 * i)
        view = driver.place(view, specs[(i + 1) % 3], 200 + i, 1, 8)
        calls.append(driver.submit([1 + i] * (1 + i), view, 350, force([3] * (2 + i)), (7,)))
    driver.run()
    results = [driver.result(call) for call in calls]
    return [logprobs(r) for r in results], [driver.keys_and_values(r.encoding) for r in results]


def test_poison_outside_of_a_view_changes_no_bit() -> None:
    clean, clean_kv = run_batch(poison=False)
    poisoned, poisoned_kv = run_batch(poison=True)
    for a, b in zip(clean, poisoned, strict=True):
        assert torch.equal(a, b)
    for (k, v), (k2, v2) in zip(clean_kv, poisoned_kv, strict=True):
        assert torch.equal(k, k2)
        assert torch.equal(v, v2)


def test_poison_inside_of_a_view_is_an_error_and_the_engine_lives() -> None:
    driver = Driver(make_engine("llama"))
    specs = seeded(driver)
    entry = driver.engine.store.get(specs[0].encoding_id)
    assert entry is not None
    driver.engine.runner.v_pool[:, entry.runs(0, 1)[0][0]] = torch.nan
    bad = driver.submit([1], driver.chain(specs[0]), sampling=force([2]))
    good = driver.submit([1], driver.chain(specs[1]), sampling=force([2]))
    driver.run()
    assert "not finite" in driver.failure(bad).message
    assert driver.result(good).finish_reason == "forced"


@pytest.mark.parametrize("steps", [0, 1, 2, 3, 5, 8])
def test_an_aborted_call_leaves_the_store_as_it_was(steps: int) -> None:
    """Aborted while waiting, while its view is being encoded, while it decodes."""
    driver = Driver(make_engine("llama", max_batch_tokens=64))
    kept = driver.prefill([5] * 40)
    store = driver.engine.store
    before = (sorted(store.ready_ids()), store.allocator.num_free, driver.keys_and_values(kept))
    new = Driver(make_engine("llama"))  # only to make specs that the first engine has not seen
    parent = new.prefill([6] * 100)
    driver.specs[parent.encoding_id] = parent
    view = driver.place(driver.chain(parent), kept, 100)
    call = driver.submit([7] * 10, view, 140, Sampling(max_tokens=50), (1, 2))
    for _ in range(steps):
        driver.step()
    driver.engine.abort(call)
    driver.run()
    store.check_integrity()
    left = set(store.ready_ids()) - set(before[0])
    # A message that was whole before the abort is an encoding like any other; nothing half-made stays.
    assert left <= {(parent.encoding_id, 100)}
    assert store.allocator.num_free == before[1] - (7 if left else 0)
    assert all(torch.equal(a, b) for a, b in zip(driver.keys_and_values(kept), before[2], strict=True))
    again = driver.submit([7] * 10, view, 140, force([8, 9]))
    driver.run()
    assert driver.result(again).encoding.encoding_id not in dict(before[0])


def test_an_abort_does_not_take_what_another_call_waits_for() -> None:
    driver, oracle = Driver(make_engine("llama", max_batch_tokens=16)), interpreter("llama")
    message = [(3 * i) % 128 for i in range(90)]
    first = driver.submit(message)
    second = driver.submit(message)
    driver.step()
    driver.engine.abort(first)
    driver.run()
    assert_same_encoding(driver, oracle, driver.result(second).encoding, oracle.encode(message, 0, []))


def test_ids_never_alias() -> None:
    """Same text, other view, start, range or namespace: another encoding. The same again: the same one."""
    driver = Driver(make_engine("llama"))
    a, b = driver.prefill([1] * 20), driver.prefill([2] * 20)
    message = [3] * 10
    places = [
        (EMPTY_VIEW, 0), (EMPTY_VIEW, 40), (driver.chain(a), 40), (driver.chain(b), 40),
        (driver.place(EMPTY_VIEW, a, 1), 40), (driver.place(EMPTY_VIEW, a, 0, 0, 19), 40),
        (driver.place(driver.chain(a), b, 20), 40), (driver.place(driver.chain(b), a, 20), 40),
    ]  # fmt: skip
    ids = [driver.prefill(message, view, start).encoding_id for view, start in places]
    assert len(set(ids)) == len(ids)
    size = len(driver.engine.store)
    assert [driver.prefill(message, view, start).encoding_id for view, start in places] == ids
    assert len(driver.engine.store) == size


def test_a_diamond_and_a_message_read_twice() -> None:
    driver, oracle = Driver(make_engine("llama")), interpreter("llama")
    root, recorded_root = driver.prefill([4] * 33), oracle.encode([4] * 33, 0, [])
    left = driver.prefill([5] * 20, driver.chain(root))
    right = driver.prefill([6] * 20, driver.chain(root))
    recorded = [oracle.encode([t] * 20, 33, [place_recorded(recorded_root, 0)]) for t in (5, 6)]
    view = driver.place(driver.place(driver.chain(root), left, 33), right, 53)
    view = driver.place(view, left, 90)
    call = driver.submit([7, 8], view, 120, force([9, 10]))
    driver.run()
    seen = [place_recorded(recorded_root, 0), place_recorded(recorded[0], 33), place_recorded(recorded[1], 53)]
    expected = oracle.encode([7, 8, 9, 10], 120, [*seen, place_recorded(recorded[0], 90)])
    assert_same_encoding(driver, oracle, driver.result(call).encoding, expected)
