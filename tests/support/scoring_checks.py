"""Forced calls that an engine compares, and what the interpreter finds of the same in float64."""

from __future__ import annotations

import random
from dataclasses import replace

import torch
from engine_harness import Driver, force, interpreter, place_recorded
from engine_reference import VOCAB_SIZE

from laban.actors.calls import Comparison, Scoring
from laban.actors.engine.engine import Engine
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


def check_reported_divergence(engine: Engine, seed: int) -> None:
    """Of an engine over the random model of that seed: random texts, one after the other and apart."""
    rng = random.Random(seed)
    driver, oracle = Scored(engine), interpreter(seed=seed)
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
