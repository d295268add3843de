"""What goes wrong while iterations overlap: aborts and failures after a launch, pools and plans that are too small."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from engine_harness import Driver, assert_same_encoding, byte_tokenizer, force, interpreter, logprobs, make_engine
from engine_reference import MAX_CONTEXT, random_model
from torch import OutOfMemoryError
from wild_drafts import draft_wildly, remember_texts

from laban.actors.calls import CallFinished, Sampling
from laban.actors.engine.config import EngineConfig
from laban.actors.engine.engine import Engine
from laban.actors.engine.fused_runner import FusedRunner
from laban.actors.engine.launched import BatchTooLarge, Launched
from laban.actors.engine.plan_buffers import PlanBuffers, TileChoice
from laban.actors.engine.runner import Runner
from laban.actors.engine.sequence import Chunk
from laban.kvstore.encodings import EMPTY_VIEW, EncodingSpec, View

pytestmark = pytest.mark.slow


def thin_driver(fused: bool, kind: str = "llama", *, pool_tokens: int = 2048, **sizes: int) -> Driver:
    """Over a model of one layer, for what plans and the scheduler do."""
    config = EngineConfig(pool_tokens=pool_tokens, drafting=False, **sizes)  # type: ignore[arg-type]
    changes = {"layer_types": ["sliding_attention", "full_attention"]} if kind == "gemma3" else {}
    layers = 2 if changes else 1
    model = random_model(kind, num_hidden_layers=layers, **changes)
    slots = pool_tokens // config.page_size * config.page_size
    runner: Runner | FusedRunner = Runner(model, slots)
    if fused:
        model = random_model(kind, num_hidden_layers=layers, **changes)
        runner = FusedRunner(
            model,
            slots,
            page_size=config.page_size,
            max_batch_tokens=config.batch_tokens,
            max_running=config.max_running,
        )
    return Driver(Engine(runner, byte_tokenizer(), config, namespace="test", max_context=MAX_CONTEXT))


def limit_plans(driver: Driver, **limits: int) -> None:
    """Of the forwards that would be captured."""
    runner = driver.engine.runner
    assert isinstance(runner, FusedRunner)
    runner._plans = tuple(
        PlanBuffers(
            plans.kind,
            TileChoice(replace(plans.choice.narrow, **limits), replace(plans.choice.wide, **limits)),
            runner.device,
        )
        for plans in runner._plans
    )


def ids(draw: random.Random, size: int) -> list[int]:
    return [draw.randrange(128) for _ in range(size)]


def random_view(driver: Driver, draw: random.Random, specs: list[EncodingSpec]) -> View:
    view, at = EMPTY_VIEW, draw.choice([0, 0, 20])
    for spec in draw.sample(specs, draw.randrange(len(specs) + 1)):
        begin = draw.choice([0, 0, spec.num_tokens // 2])
        view = driver.place(view, spec, at, begin)
        at += spec.num_tokens - begin
    return view


def play(driver: Driver, seed: int, *, abort_share: float) -> list[CallFinished | None]:
    """Messages and calls that come at random times, some twice and some aborted (None)."""
    draw = random.Random(seed)
    specs = [driver.prefill(ids(draw, size), EMPTY_VIEW, draw.choice([0, 7])) for size in (1, 15, 33)]
    specs.append(driver.prefill(ids(draw, 9), driver.chain(specs[0])))
    calls: list[str] = []
    aborted: set[str] = set()
    for _ in range(10):
        sampling = draw.choice([
            None,
            force(ids(draw, draw.randrange(1, 5))),
            Sampling(max_tokens=draw.choice([1, 2, 9]), temperature=1.5, seed=draw.randrange(99)),
            Sampling(max_tokens=9, temperature=2.0, seed=draw.randrange(99), stop=("a", "bc", "d")),
            Sampling(max_tokens=9, temperature=2.0, seed=draw.randrange(99), stop_token_ids=tuple(range(0, 128, 3))),
        ])  # fmt: skip
        terminator = tuple(draw.choice([[], [9], [0, 3, 9]])) if sampling is not None else ()
        tokens, view = ids(draw, draw.choice([1, 3, 17])), random_view(driver, draw, specs)
        for _ in range(draw.choice([1, 1, 2])):
            calls.append(driver.submit(tokens, view, None, sampling, terminator))
            if draw.random() < abort_share:
                victim = draw.choice(calls)
                aborted.add(victim)
                for _ in range(draw.randrange(4)):
                    driver.step()
                driver.engine.abort(victim)
                driver.engine.store.check_integrity()
        for _ in range(draw.choice([0, 0, 1, 3])):
            driver.step()
            driver.engine.store.check_integrity()
    driver.run()
    assert all(entry.pins == 0 for entry in driver.engine.store._entries.values())
    return [None if call in aborted else driver.result(call) for call in calls]


def assert_same_outcomes(found: list[CallFinished | None], expected: list[CallFinished | None]) -> None:
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        if a is None or b is None:
            assert a is b
            continue
        assert (a.finish_reason, a.encoding, a.generated, a.text) == (b.finish_reason, b.encoding, b.generated, b.text)
        torch.testing.assert_close(logprobs(a), logprobs(b), atol=2e-4, rtol=0)


@pytest.mark.parametrize("seed", range(6))
def test_random_calls_with_little_of_everything(seed: int) -> None:
    """Pages, batches and calls at once, for models with windows and without."""
    kind = ["llama", "mistral-window", "gemma3"][seed % 3]
    page_size = [1, 4, 16, 64][seed % 4]
    sizes = {
        "pool_tokens": [512 if page_size == 64 else 256, 2048][seed // 6],
        "page_size": page_size,
        "max_batch_tokens": [1, 5, 40, 100_000][seed * 7 % 12 // 3],
        "max_running": [1, 3, 64][seed * 5 % 9 // 3],
    }
    outcomes = [play(thin_driver(fused, kind, **sizes), seed, abort_share=0.0) for fused in (True, False)]
    assert_same_outcomes(*outcomes)


@pytest.mark.parametrize("seed", range(4))
def test_random_aborts_leave_the_others_alone(seed: int) -> None:
    sizes = {"max_batch_tokens": [3, 11, 512][seed % 3], "pool_tokens": 512}
    outcomes = [play(thin_driver(fused, **sizes), seed, abort_share=0.5) for fused in (True, False)]
    assert_same_outcomes(*outcomes)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("seed", range(6))
def test_drafts_right_and_wrong_change_nothing(seed: int, fused: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """With little of everything, calls that are aborted, and launches that fail."""
    kind = ["llama", "mistral-window", "gemma3"][seed % 3]
    sizes = {
        "pool_tokens": [256, 2048][seed % 2],
        "page_size": [1, 4, 16][seed // 2],
        "max_batch_tokens": [5, 40, 100_000][seed * 7 % 12 // 4],
        "max_running": [3, 64][seed // 3],
    }
    plain = thin_driver(False, kind, **sizes)
    known = remember_texts(plain.engine)
    expected = play(plain, seed, abort_share=[0.0, 0.4][seed % 2])
    driver, draw = thin_driver(fused, kind, **sizes), random.Random(seed)
    drafting = draft_wildly(driver.engine, known, draw)
    launch: Callable[..., Launched] = driver.engine.runner.launch

    def fragile(chunks: list[Chunk], *rest: object) -> Launched:
        if sum(chunk.count for chunk in chunks) > 1 and draw.random() < 0.1:
            raise BatchTooLarge("as if")
        return launch(chunks, *rest)

    monkeypatch.setattr(driver.engine.runner, "launch", fragile)
    assert_same_outcomes(play(driver, seed, abort_share=[0.0, 0.4][seed % 2]), expected)
    assert drafting.num_right > 5
    assert drafting.num_wrong > 5


@pytest.mark.parametrize("after", [True, False], ids=["after it was queued", "before"])
@pytest.mark.parametrize("seed", range(2))
def test_launches_that_fail_are_tried_again(seed: int, after: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = random.Random(seed)
    launch: Callable[..., Launched] = FusedRunner.launch
    failed = 0

    def fragile(self: FusedRunner, chunks: list[object], *rest: object) -> Launched:
        nonlocal failed
        fails = sum(chunk.count for chunk in chunks) > 1 and draw.random() < 0.4  # type: ignore[attr-defined]
        failed += fails
        if not fails:
            return launch(self, chunks, *rest)
        samples = self._samples.clone()
        if after:  # all of it but the samples was done
            launch(self, chunks, *rest)
            self._samples.copy_(samples)
        raise draw.choice([OutOfMemoryError, BatchTooLarge])("as if")

    expected = play(thin_driver(False), seed, abort_share=0.0)
    monkeypatch.setattr(FusedRunner, "launch", fragile)
    assert_same_outcomes(play(thin_driver(True), seed, abort_share=0.0), expected)
    assert failed > 3


@pytest.mark.parametrize(
    "limits",
    [
        {},
        {"max_turned": 11},
        {"max_turned": 0},
        {"max_items": 3},
        {"max_partials": 3},
    ],
)
def test_plans_that_do_not_fit_change_nothing(limits: dict[str, int]) -> None:
    """Those that fail while their messages grow, and those that never fit."""
    results = []
    for fused in (False, True):
        driver, draw = thin_driver(fused, max_running=8), random.Random(1)
        specs = [driver.prefill(ids(draw, 9)) for _ in range(5)]
        if fused and limits:
            limit_plans(driver, **limits)
        calls = []
        for c in range(3):
            view, at = EMPTY_VIEW, c
            for spec in draw.sample(specs, 4):
                view = driver.place(view, spec, at)
                at += 9
            calls.append(driver.submit([1, 2, c], view, 100, force(ids(draw, 8))))
        driver.run()
        results.append([driver.result(call) for call in calls])
    assert_same_outcomes(*results)


def test_a_prefill_aborted_after_its_launch_harms_nobody() -> None:
    driver = Driver(make_engine(fused=True))
    other = driver.submit([5, 6], EMPTY_VIEW, 0, Sampling(max_tokens=20))
    driver.step()
    call = driver.submit([1, 2, 3])
    driver.step()
    driver.engine.abort(call)
    driver.run()
    assert driver.result(other).finish_reason == "length"
    assert len(driver.engine.store) == 1


def test_a_prefill_aborted_after_its_launch_and_sent_again_has_pages_of_its_own() -> None:
    driver, oracle = Driver(make_engine(fused=True)), interpreter()
    message = list(range(40))
    first = driver.submit(message)
    driver.step()
    driver.engine.abort(first)
    again = driver.submit(message)
    driver.step()
    driver.engine.store.check_integrity()
    driver.run()
    driver.prefill([7] * 60)
    assert_same_encoding(driver, oracle, driver.result(again).encoding, oracle.encode(message, 0, []))


@pytest.mark.parametrize("steps", range(1, 6))
def test_a_decode_aborted_while_its_end_is_under_way_harms_nobody(steps: int) -> None:
    driver = Driver(make_engine(fused=True))
    other = driver.submit([5, 6], EMPTY_VIEW, 0, Sampling(max_tokens=20))
    call = driver.submit([1, 2], EMPTY_VIEW, 0, Sampling(max_tokens=1), (1, 2))
    for _ in range(steps):
        driver.step()
    driver.engine.abort(call)
    driver.run()
    assert driver.result(other).finish_reason == "length"


@pytest.mark.parametrize("fused", [False, True])
def test_an_encoding_in_the_making_goes_with_the_call_that_failed(fused: bool) -> None:
    """It is whole in the very iteration whose logits end the call, and nobody else wants it."""
    driver, maker = Driver(make_engine(fused=fused)), Driver(make_engine())
    poisoned, parent = driver.prefill([9] * 20), maker.prefill(list(range(20)))
    entry = driver.engine.store.get(poisoned.encoding_id)
    assert entry is not None
    driver.engine.runner.v_pool[:, entry.runs(0, 1)[0][0]] = torch.nan
    driver.specs[parent.encoding_id] = parent
    other = driver.submit([1], EMPTY_VIEW, 0, Sampling(max_tokens=6))
    bad = driver.submit([1, 2], driver.place(driver.chain(poisoned), parent, 40), 100, Sampling(max_tokens=3))
    driver.run()
    assert "not finite" in driver.failure(bad).message
    assert driver.result(other).finish_reason == "length"
