"""Forced calls whose distributions are compared on the worker, against the interpreter's in float64."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from engine_harness import Driver, force, interpreter, logprobs, make_engine, place_recorded
from engine_reference import VOCAB_SIZE

from laban.actors.calls import Call, Comparison, Scoring
from laban.actors.engine.scoring import KeptScores, divergence
from laban.actors.errors import Exhausted, FailedPrecondition, InvalidInput
from laban.kvstore.encodings import EMPTY_VIEW, View

HEADER = [3, 5]
TERMINATOR = (7, 8)


class Scored(Driver):
    """Submits forced calls that are kept or compared."""

    def score(self, text: list[int], view: View, scoring: Scoring, rank: int = 0) -> str:
        call_id = self.submit(HEADER, view, sampling=force(text), terminator=TERMINATOR, rank=rank)
        waiting = self.engine.scheduler.waiting.take(call_id)
        assert waiting is not None
        self.engine.submit(replace(waiting.call, scoring=scoring))
        return call_id

    def compare(self, text: list[int], kept: View, view: View) -> Comparison:
        first = self.score(text, kept, Scoring(keep="a"))
        self.run()
        assert self.result(first).comparison is None
        second = self.score(text, view, Scoring(against="a", release=True))
        self.run()
        found = self.result(second).comparison
        assert found is not None
        return found


def words(rng: random.Random, low: int, high: int) -> list[int]:
    return [rng.randrange(VOCAB_SIZE) for _ in range(rng.randint(low, high))]


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_what_the_worker_reports_is_the_interpreters_divergence(seed: int, fused: bool) -> None:
    rng = random.Random(seed)
    driver, oracle = Scored(make_engine(seed=seed, fused=fused, max_batch_tokens=rng.choice([16, 64, 512]))), None
    oracle = interpreter(seed=seed)
    a, b = words(rng, 3, 40), words(rng, 3, 40)
    alone = [driver.prefill(a), driver.prefill(b)]
    chained = driver.prefill(b, driver.chain(alone[0]), len(a))
    exact = driver.chain(alone[0], chained)
    direct = driver.place(driver.place(EMPTY_VIEW, alone[0], 0), alone[1], len(a))
    text = words(rng, 1, 200)

    found = driver.compare(text, exact, direct)

    first, second = oracle.encode(a, 0, []), oracle.encode(b, 0, [])
    after = oracle.encode(b, len(a), [place_recorded(first, 0)])
    start, tokens = len(a) + len(b), [*HEADER, *text]
    views = ([place_recorded(first, 0), place_recorded(after, len(a))],
             [place_recorded(first, 0), place_recorded(second, len(a))])  # fmt: skip
    p, q = (oracle.encode(tokens, start, view).logits[1:-1].double().log_softmax(-1) for view in views)
    kl = (p.exp() * (p - q)).sum(-1)
    assert len(found.kl) == len(text)
    torch.testing.assert_close(torch.tensor(found.kl).double(), kl, atol=1e-4, rtol=1e-3)
    chosen = torch.tensor(text)[:, None]
    torch.testing.assert_close(torch.tensor(found.kept_logprobs).double(), p.gather(1, chosen)[:, 0], atol=2e-4, rtol=0)
    torch.testing.assert_close(torch.tensor(found.logprobs).double(), q.gather(1, chosen)[:, 0], atol=2e-4, rtol=0)
    sure = (p.topk(2).values.diff().abs()[:, 0] > 1e-3) & (q.topk(2).values.diff().abs()[:, 0] > 1e-3)
    agrees = p.argmax(-1) == q.argmax(-1)
    assert torch.equal(torch.tensor(found.agrees)[sure], agrees[sure])


def test_identical_views_do_not_diverge() -> None:
    driver = Scored(make_engine())
    view = driver.chain(driver.prefill([1, 2, 3, 4]))
    found = driver.compare([9, 8, 7] * 40, view, view)
    assert max(found.kl) < 1e-9
    assert all(found.agrees)
    assert found.logprobs == pytest.approx(found.kept_logprobs, abs=1e-5)


def test_a_scored_call_gives_what_the_same_call_forced_token_by_token_gives() -> None:
    driver = Scored(make_engine())
    view = driver.chain(driver.prefill([1, 2, 3, 4]))
    text = words(random.Random(1), 30, 30)
    plain = driver.submit(HEADER, view, sampling=force(text), terminator=TERMINATOR)
    driver.run()
    scored = driver.score(text, view, Scoring(keep="a"))
    driver.run()
    one, other = driver.result(plain), driver.result(scored)
    assert (one.encoding, one.generated, one.text, one.finish_reason, one.tokens_generated) == (
        other.encoding, other.generated, other.text, other.finish_reason, other.tokens_generated)  # fmt: skip
    again = driver.score(text, view, Scoring(against="a"))
    driver.run()
    comparison = driver.result(again).comparison
    assert comparison is not None
    told = logprobs(one).gather(1, torch.tensor(text)[:, None])[:, 0]
    torch.testing.assert_close(torch.tensor(comparison.logprobs), told, atol=2e-4, rtol=0)


def test_scored_calls_run_among_others_and_change_nothing_for_them() -> None:
    driver = Scored(make_engine(max_batch_tokens=48))
    rng = random.Random(2)
    specs = [driver.prefill(words(rng, 5, 20)) for _ in range(3)]
    texts = [words(rng, 20, 160) for _ in specs]
    alone = [driver.compare(text, driver.chain(spec), EMPTY_VIEW) for text, spec in zip(texts, specs, strict=True)]
    for number, (text, spec) in enumerate(zip(texts, specs, strict=True)):
        driver.score(text, driver.chain(spec), Scoring(keep=f"k{number}"))
    busy = driver.submit([4, 4], driver.chain(specs[0]), sampling=force([1, 2, 3] * 10))
    driver.run()
    expected = driver.result(busy)
    ids = [driver.score(text, EMPTY_VIEW, Scoring(against=f"k{number}")) for number, text in enumerate(texts)]
    busy = driver.submit([4, 4], driver.chain(specs[0]), sampling=force([1, 2, 3] * 10))
    driver.run()
    assert driver.result(busy).generated == expected.generated
    for one, call_id in zip(alone, ids, strict=True):
        found = driver.result(call_id).comparison
        assert found is not None
        assert found.kl == pytest.approx(one.kl, abs=2e-5)


def test_what_cannot_be_scored_is_refused() -> None:
    driver = Scored(make_engine())
    missing = driver.score([1, 2], EMPTY_VIEW, Scoring(against="nothing"))
    driver.run()
    assert driver.failure(missing).status == "FAILED_PRECONDITION"
    driver.score([1, 2], EMPTY_VIEW, Scoring(keep="a"))
    driver.run()
    other = driver.score([1, 3], EMPTY_VIEW, Scoring(against="a"))
    driver.run()
    assert "other tokens" in driver.failure(other).message
    gone = driver.score([1, 2], EMPTY_VIEW, Scoring(against="a", release=True))
    driver.run()
    assert driver.result(gone).comparison is not None
    gone = driver.score([1, 2], EMPTY_VIEW, Scoring(against="a"))
    driver.run()
    assert driver.failure(gone).status == "FAILED_PRECONDITION"


def _call(text: list[int], scoring: Scoring) -> Call:
    return Call("c", "", EMPTY_VIEW, 0, (1,), (), force(text), scoring=scoring)


def test_what_is_kept_is_bounded_and_the_oldest_goes_first() -> None:
    scores = KeptScores(vocab_size=10, max_bytes=4 * 10 * 8)
    with pytest.raises(Exhausted):
        scores.check(_call([0] * 9, Scoring(keep="a")))
    with pytest.raises(InvalidInput):
        scores.check(_call([0], Scoring(keep="a", against="b")))
    for key in "abc":
        call = _call([0] * 4, Scoring(keep=key))
        scores.check(call)
        scorer = scores.begin(call, 0.0)
        scorer.take(torch.randn(4, 10))
    assert scores.num_bytes <= 4 * 10 * 8
    with pytest.raises(FailedPrecondition):
        scores.check(_call([0] * 4, Scoring(against="a")))
    scores.check(_call([0] * 4, Scoring(against="c")))
    scores.begin(_call([0], Scoring(keep="d")), 1e6)
    with pytest.raises(FailedPrecondition):
        scores.check(_call([0] * 4, Scoring(against="c")))


def test_a_token_that_cannot_be_adds_nothing() -> None:
    p = torch.tensor([[0.5, 0.5, 0.0]]).log()
    q = torch.tensor([[0.25, 0.5, 0.25]]).log()
    assert divergence(p, q).item() == pytest.approx(0.5 * torch.log(torch.tensor(2.0)).item())
    assert divergence(p, p).item() == 0.0
