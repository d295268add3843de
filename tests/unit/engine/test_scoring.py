"""Forced calls whose distributions are compared on the worker, against the interpreter's in float64."""

from __future__ import annotations

import random

import pytest
import torch
from engine_harness import force, logprobs, make_engine
from scoring_checks import HEADER, TERMINATOR, Scored, check_reported_divergence, words

from laban.actors.calls import Call, Scoring
from laban.actors.engine.scoring import KeptScores, divergence
from laban.actors.errors import Exhausted, FailedPrecondition, InvalidInput
from laban.kvstore.encodings import EMPTY_VIEW


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_what_the_worker_reports_is_the_interpreters_divergence(seed: int, fused: bool) -> None:
    chunk = random.Random(seed).choice([16, 64, 512])
    check_reported_divergence(make_engine(seed=seed, fused=fused, max_batch_tokens=chunk), seed)


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
