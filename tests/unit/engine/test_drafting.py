"""Drafting: when it is worth it, what is kept of a draft, and that nobody can tell from the text."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from itertools import product

import pytest
import torch
from engine_harness import Driver, interpreter, make_engine
from wild_drafts import SameCosts, draft_wildly

from laban.actors.calls import CallTokens, Constraint, Sampling, Scoring
from laban.actors.engine import settling
from laban.actors.engine.draft_policy import WIDTHS, Chances, WidthCosts, choose
from laban.actors.engine.drafting import Drafting, num_accepted
from laban.actors.engine.sequence import Chunk
from laban.kvstore.encodings import EMPTY_VIEW

TEXT = [(37 * i * i + 11 * i) % 126 + 1 for i in range(60)]  # hardly any pair of tokens comes twice


def test_what_is_taken_of_a_draft() -> None:
    assert num_accepted([], [5]) == 0
    assert num_accepted([5, 6, 7], [5, 6, 7, 8]) == 3
    assert num_accepted([5, 6, 7], [5, 9, 7, 8]) == 1
    assert num_accepted([5], [4, 4]) == 0


def test_the_most_expected_tokens_a_second_are_chosen() -> None:
    draw = random.Random(1)
    for _ in range(200):
        offers = [
            sorted((draw.random() for _ in range(draw.randrange(4))), reverse=True) for _ in range(draw.randrange(1, 4))
        ]
        num_calls = len(offers) + draw.randrange(3)
        costs = [1.0]
        for _ in range(8):
            costs.append(costs[-1] + draw.choice([0.0, 0.0, 0.02, 0.3]))
        counts = choose(offers, num_calls, costs, waits=False)

        def rate(chosen: tuple[int, ...]) -> float:
            brought = sum(sum(offer[:n]) for offer, n in zip(offers, chosen, strict=True))  # noqa: B023
            return (num_calls + brought) / costs[sum(chosen)]  # noqa: B023

        every = [c for c in product(*(range(len(o) + 1) for o in offers)) if sum(c) < len(costs)]
        best = max(map(rate, every))
        plain = rate((0,) * len(offers))
        assert rate(tuple(counts)) == pytest.approx(best if best > 1.05 * plain else plain)


def test_a_draft_that_waits_has_to_bring_more_than_the_token_missed() -> None:
    flat = [1.0] * 9
    assert choose([[0.9]], 2, flat, waits=True) == [0]
    assert choose([[0.9]], 2, flat, waits=False) == [1]
    assert choose([[0.9, 0.8, 0.7]], 2, flat, waits=True) == [3]
    assert choose([[0.9]], 1, flat, waits=True) == [1]  # nobody goes on without it


def test_costs_follow_what_is_measured_and_forget_a_bad_moment() -> None:
    costs = WidthCosts(0.1, 0.05)
    assert costs.expected(1) == 1.0
    assert costs.expected(2) == pytest.approx(1.1)
    costs.observe(1, 0.010)
    assert costs.expected(2) == pytest.approx(0.011)
    costs.observe(8, 100.0)  # something else held it up
    assert costs.expected(8) < 0.05
    for _ in range(600):
        costs.observe(1, 0.010)
    assert costs.expected(8) == pytest.approx(0.010 * 1.4, rel=0.02)
    for _ in range(50):
        costs.observe(8, 0.012)
    assert costs.expected(7) == pytest.approx(0.012, rel=0.01)
    costs.observe(WIDTHS[-1] + 1, 5.0)  # too wide to be drafted for
    other = WidthCosts(0.5, 0.5)
    other.adopt(costs.known)
    assert other.expected(8) == costs.expected(8)


def test_chances_are_learned_by_how_many_tokens_are_alike() -> None:
    everyone = Chances()
    own = Chances(everyone)
    first = own.chance(2), own.chance(9)
    assert first[0] < first[1]
    for _ in range(60):
        own.observe(2, hit=False)
        own.observe(9, hit=True)
    assert own.chance(2) < 0.05
    assert own.chance(9) > 0.95
    assert Chances(everyone).chance(2) < first[0]  # the others of its kind begin where it is
    following = own.of_following(8, 5)
    assert len(following) == 5
    assert following == sorted(following, reverse=True)
    assert own.of_following(2, 5) == []


def quoting(num_tokens: int, **more: object) -> Sampling:
    """A text that repeats TEXT from its fourth token on."""
    return Sampling(max_tokens=num_tokens, forced=tuple(TEXT[3 : 3 + num_tokens]), **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("fused", [False, True])
def test_what_is_quoted_takes_few_iterations_and_is_streamed_whole(fused: bool) -> None:
    driver = Driver(make_engine(fused=fused, drafting=True))
    driver.engine._drafting.costs = SameCosts()
    read = driver.prefill(TEXT)
    call = driver.submit([1, 2], driver.chain(read), None, quoting(40, num_logprobs=1), (9, 8))
    driver.run()
    result = driver.result(call)
    assert list(result.generated) == TEXT[3:43]
    assert result.encoding.tokens == (1, 2, *TEXT[3:43], 9, 8)
    assert [told.token_id for told in result.logprobs] == TEXT[3:43]
    assert driver.streamed(call)[0] == TEXT[3:43]
    assert len([event for event in driver.events[call] if isinstance(event, CallTokens)]) < 12
    assert result.phases.num_iterations < 12
    assert 25 < result.tokens_accepted == result.tokens_drafted  # also those after a token still under way
    assert result.phases.num_iterations + result.tokens_accepted == 41
    totals = driver.engine.tiers.tallying.totals()
    assert (totals.tokens_drafted, totals.tokens_accepted) == (result.tokens_drafted, result.tokens_accepted)
    assert totals.tokens_decoded == 42
    assert sum(totals.inter_token_s.counts) == 39


@pytest.mark.parametrize(
    ("sampling", "config"),
    [
        (quoting(40), {"drafting": False}),
        (quoting(40, drafting=False), {}),
    ],
)
def test_switched_off_by_configuration_or_by_a_call(sampling: Sampling, config: dict[str, str]) -> None:
    driver = Driver(make_engine(**{"drafting": True, **config}))  # type: ignore[arg-type]
    driver.engine._drafting.costs = SameCosts()
    call = driver.submit([1, 2], driver.chain(driver.prefill(TEXT)), None, sampling)
    driver.run()
    assert driver.result(call).tokens_drafted == 0
    assert driver.result(call).phases.num_iterations == 41


def test_no_more_is_drafted_than_the_call_may_have_and_the_setting_says() -> None:
    driver = Driver(make_engine(drafting=True, draft_tokens=3))
    driver.engine._drafting.costs = SameCosts()
    widest = 0
    launch = driver.engine.runner.launch

    def watched(chunks: list, *rest: object) -> object:  # type: ignore[type-arg]
        nonlocal widest
        for chunk in chunks:
            decode = chunk.sequence.decode
            if chunk.drafted:
                widest = max(widest, len(chunk.drafted))
                assert decode.num_launched + 1 + len(chunk.drafted) <= decode.sampling.most_tokens
        return launch(chunks, *rest)

    driver.engine.runner.launch = watched  # type: ignore[method-assign, assignment]
    read = driver.prefill(TEXT)
    calls = [driver.submit([1, 2], driver.chain(read), None, quoting(n)) for n in range(1, 14)]
    driver.run()
    assert widest == 3
    assert [list(driver.result(call).generated) for call in calls] == [TEXT[3 : 3 + n] for n in range(1, 14)]


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize(("stop", "stop_ids"), [(("*",), ()), (("/0",), ()), ((), (43,))])
def test_a_stop_within_what_was_drafted(stop: tuple[str, ...], stop_ids: tuple[int, ...], fused: bool) -> None:
    """A stop string, and a token that ends the message: what comes after it does not count."""
    driver = Driver(make_engine(fused=fused, drafting=True))
    plain = Driver(make_engine())
    for each in (driver, plain):
        each.engine._drafting.costs = SameCosts()
    letters = [33 + i for i in range(40)]
    results = []
    for each in (driver, plain):
        read = each.prefill(letters)
        asked = Sampling(max_tokens=30, stop=stop, stop_token_ids=stop_ids)
        call = each.submit([1, 2], each.chain(read), None, asked, (43, 44, 7))
        make = each.engine.runner.launch

        def guided(chunks, samplings, indices, ask=None, make=make):  # type: ignore[no-untyped-def]
            """The model's own choice is what is read, token by token."""
            return make(chunks, [Sampling(30, forced=tuple(letters[:30]))] * len(samplings), indices, ask)

        each.engine.runner.launch = guided  # type: ignore[method-assign]
        each.run()
        results.append((each.result(call), each.streamed(call), each.keys_and_values(each.result(call).encoding)))
    (found, stream, kv), (expected, expected_stream, expected_kv) = results
    assert (found.generated, found.text, found.finish_reason) == (
        expected.generated, expected.text, expected.finish_reason)  # fmt: skip
    assert found.finish_reason == "stop"
    assert len(found.generated) < 16
    assert found.tokens_accepted > 3
    assert found.encoding == expected.encoding
    assert stream == expected_stream
    for x, y in zip(kv, expected_kv, strict=True):
        torch.testing.assert_close(x, y, atol=2e-4, rtol=0)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("steps", [2, 3, 4])
def test_a_call_that_makes_room_while_it_is_drafted_for_goes_on_with_the_same_text(steps: int, fused: bool) -> None:
    driver = Driver(make_engine(fused=fused, drafting=True, draft_tokens=4, pool_tokens=256))
    driver.engine._drafting.costs = SameCosts()
    read = driver.prefill(TEXT)
    call = driver.submit([1, 2], driver.chain(read), None, quoting(50), (9, 8), rank=5)
    for _ in range(steps):
        driver.step()
    older = driver.submit([4] * 60, sampling=Sampling(max_tokens=70), rank=1)
    driver.run()
    assert driver.engine.tiers.counters.totals().preemptions == 1
    assert driver.result(older).finish_reason == "length"
    assert driver.result(call).encoding.tokens == (1, 2, *TEXT[3:53], 9, 8)
    assert driver.streamed(call)[0] == TEXT[3:53]
    assert driver.result(call).tokens_accepted > 20


def test_forced_calls_that_are_scored_and_constrained_ones_are_not_drafted() -> None:
    drafting = Drafting(make_engine(drafting=True).scheduler.config, on_card=False, waits=False)
    driver = Driver(make_engine())
    call_id = driver.submit([1], EMPTY_VIEW, 0, Sampling(4))
    (waiting,) = driver.engine.scheduler.waiting
    assert waiting.call.call_id == call_id
    assert drafting.drafter(waiting.call) is not None
    for other in (
        replace(waiting.call, sampling=None),
        replace(waiting.call, spare=True),
        replace(waiting.call, sampling=Sampling(4, constraint=Constraint(choices=("a",)))),
        replace(waiting.call, sampling=Sampling(4, forced=(1,)), scoring=Scoring(keep="k")),
    ):
        assert drafting.drafter(other) is None
    driver.run()


# The distribution of four sampled tokens, of the four that are likeliest at each place, against the model's own.
NUM_SAMPLED, SHAPED = 4, {"temperature": 1.0, "top_k": 4}


def sampled_texts(num_calls: int, drafted: list[int] | None) -> Counter[tuple[int, ...]]:
    """How often each text came, with seeds of their own."""
    driver, draw = Driver(make_engine(pool_tokens=4096)), random.Random(0)
    header = [3, 1, 4, 1, 5]
    if drafted is not None:
        drafting = draft_wildly(driver.engine, {}, draw)

        def offer(chunk: Chunk) -> tuple[list[int], list[float]]:
            decode = chunk.sequence.decode
            tokens = (
                drafted[decode.num_sampled :] if decode is not None and decode.num_sampled and chunk.samples else []
            )
            return tokens[:-1], [1.0] * len(tokens[:-1])

        drafting._offer = offer  # type: ignore[method-assign]
    calls = [
        driver.submit(header, EMPTY_VIEW, 0, Sampling(NUM_SAMPLED, seed=seed, **SHAPED))  # type: ignore[arg-type]
        for seed in range(num_calls)
    ]
    driver.run()
    return Counter(tuple(driver.result(call).generated) for call in calls)


def expected_shares() -> dict[tuple[int, ...], float]:
    oracle, header = interpreter(), [3, 1, 4, 1, 5]
    shares: dict[tuple[int, ...], float] = {(): 1.0}
    for _ in range(NUM_SAMPLED):
        longer = {}
        for text, share in shares.items():
            logits = oracle.encode([*header, *text], 0, []).logits[-1]
            likely = logits.topk(4)
            for token, p in zip(likely.indices.tolist(), likely.values.softmax(-1).tolist(), strict=True):
                longer[*text, token] = share * p
        shares = longer
    return shares


def fits(counts: Counter[tuple[int, ...]], shares: dict[tuple[int, ...], float]) -> float:
    """The chance of counts as far off or further, by Pearson's chi-square over the texts expected five times or more,
    and the others together; 0 for a text that cannot be."""
    if set(counts) - set(shares):
        return 0.0
    often = [text for text, share in shares.items() if share * counts.total() >= 5]
    found = torch.tensor([*(counts[text] for text in often), 0.0], dtype=torch.float64)
    expected = torch.tensor([*(shares[text] * counts.total() for text in often), 0.0], dtype=torch.float64)
    found[-1], expected[-1] = counts.total() - found.sum(), counts.total() - expected.sum()
    distance = ((found - expected) ** 2 / expected.clamp(min=1.0)).sum()
    return float(torch.special.gammaincc(torch.tensor(len(often) / 2.0, dtype=torch.float64), distance / 2))


def test_sampled_texts_are_distributed_as_without_drafts(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the test can tell: it refuses drafts that are taken untested."""
    shares = expected_shares()
    likeliest = list(max(shares, key=lambda text: shares[text]))
    with_drafts = sampled_texts(1500, likeliest)
    assert fits(with_drafts, shares) > 0.01
    assert with_drafts == sampled_texts(1500, None)  # token for token, in fact
    monkeypatch.setattr(settling, "num_accepted", lambda drafted, sampled: len(drafted))
    assert fits(sampled_texts(1500, likeliest), shares) < 1e-6
