"""The engine of a card, on a CPU: flat batches, plans and iterations that overlap, against the engine of tiles."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from engine_checks import check_reordered_ranges_at_offsets
from engine_harness import (
    TOLERANCE,
    Driver,
    force,
    make_engine,
)
from engine_reference import KINDS
from wild_drafts import draft_wildly, remember_texts

from laban.actors.calls import CallFinished, Sampling
from laban.actors.engine.flat_batch import Flattener
from laban.actors.engine.fused_runner import FusedRunner
from laban.kvstore.encodings import EMPTY_VIEW, EncodingSpec, View

pytestmark = pytest.mark.slow

KV = tuple[torch.Tensor, torch.Tensor]


def ids(draw: random.Random, size: int) -> list[int]:
    return [draw.randrange(128) for _ in range(size)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("chunk", [13, 512])
def test_reordered_ranges_at_offsets(kind: str, chunk: int) -> None:
    check_reordered_ranges_at_offsets(make_engine(kind, fused=True, max_batch_tokens=chunk), kind, chunk)


@pytest.mark.parametrize("kind", KINDS)
def test_residual_additions_are_fused(kind: str) -> None:
    runner = make_engine(kind, fused=True).runner
    assert isinstance(runner, FusedRunner)
    assert runner.stack is not None


def play(driver: Driver, seed: int) -> list[tuple[CallFinished, KV]]:
    """Messages, then calls over them that come, stop and are aborted at random times; what became of each."""
    draw = random.Random(seed)
    specs: list[EncodingSpec] = []
    for _ in range(4):
        view = random_view(driver, draw, specs)
        specs.append(driver.prefill(ids(draw, draw.choice([1, 15, 16, 40, 90])), view))
    calls, aborted = [], set()
    for _ in range(12):
        sampling = draw.choice([
            None,
            force(ids(draw, draw.randrange(1, 9))),
            Sampling(max_tokens=draw.randrange(1, 30), temperature=draw.choice([0.0, 1.0]), seed=draw.randrange(99)),
            Sampling(max_tokens=30, temperature=1.5, seed=draw.randrange(99), stop=("a", "bc"), num_logprobs=2),
            Sampling(max_tokens=30, temperature=1.5, seed=draw.randrange(99), stop_token_ids=tuple(range(0, 128, 9))),
        ])  # fmt: skip
        terminator = tuple(draw.choice([[], [9], [0, 9, 18]])) if sampling is not None else ()
        tokens = ids(draw, draw.choice([1, 3, 30]))
        calls.append(driver.submit(tokens, random_view(driver, draw, specs), None, sampling, terminator))
        for _ in range(draw.choice([0, 0, 1, 5])):
            driver.step()
        if draw.random() < 0.15:
            aborted.add(victim := draw.choice(calls))
            driver.engine.abort(victim)
    driver.run()
    finished = [driver.events[call][-1] for call in calls if call not in aborted]
    assert all(isinstance(event, CallFinished) for event in finished), finished
    return [(event, driver.keys_and_values(event.encoding)) for event in finished]  # type: ignore[union-attr]


def random_view(driver: Driver, draw: random.Random, specs: list[EncodingSpec]) -> View:
    view, at = EMPTY_VIEW, draw.choice([0, 0, 20])
    for spec in draw.sample(specs, draw.randrange(len(specs) + 1)):
        view = driver.place(view, spec, at)
        at += spec.num_tokens
    return view


@pytest.mark.parametrize("seed", range(6))
def test_overlapping_iterations_change_nothing(seed: int) -> None:
    kind, sizes = random.Random(seed).choice(KINDS), {"max_batch_tokens": [7, 64, 512][seed % 3]}
    outcomes = [play(Driver(make_engine(kind, fused=fused, **sizes)), seed) for fused in (False, True)]
    assert_same(*outcomes)


def assert_same(found: list[tuple[CallFinished, KV]], expected: list[tuple[CallFinished, KV]]) -> None:
    for (a, kv_a), (b, kv_b) in zip(found, expected, strict=True):
        for x, y in zip(a.logprobs, b.logprobs, strict=True):
            assert (x.token_id, x.logprob) == (y.token_id, pytest.approx(y.logprob, abs=TOLERANCE))
        untimed = {"call_id": "", "ttft_ms": 0.0, "wall_ms": 0.0, "logprobs": (), "phases": None}
        untimed |= {"tokens_drafted": 0, "tokens_accepted": 0}
        assert replace(a, **untimed) == replace(b, **untimed)
        for x, y in zip(kv_a, kv_b, strict=True):
            torch.testing.assert_close(x, y, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_drafts_right_and_wrong_change_nothing(seed: int, fused: bool) -> None:
    kind, sizes = random.Random(seed).choice(KINDS), {"max_batch_tokens": [7, 64, 512][seed % 3]}
    plain, wild = Driver(make_engine(kind, **sizes)), Driver(make_engine(kind, fused=fused, **sizes))
    known = remember_texts(plain.engine)
    expected = play(plain, seed)
    drafting = draft_wildly(wild.engine, known, random.Random(seed))
    assert_same(play(wild, seed), expected)
    assert drafting.num_right > 20
    assert drafting.num_wrong > 20


def test_decoding_goes_on_from_the_last_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    followed = []
    flatten = Flattener.flatten

    def watched(self: Flattener, chunks: list[object]) -> object:
        batch = flatten(self, chunks)  # type: ignore[arg-type]
        followed.append(batch.follows)
        return batch

    monkeypatch.setattr(Flattener, "flatten", watched)
    driver = Driver(make_engine(fused=True))
    for i in range(3):
        driver.submit([1, 2, i], EMPTY_VIEW, 0, Sampling(max_tokens=20))
    driver.run()
    assert sum(followed) >= 17
