"""Whatever a worker keeps where, calls are answered as if it had memory without end."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from engine_harness import Driver, force, logprobs, make_engine
from tier_rig import assert_nothing_is_held, driver_of, fail_copies, save_all

from laban.actors.calls import Advice, Prefetch, Sampling, WorkerRates
from laban.kvstore.encodings import EncodingSpec, closure
from laban.kvstore.uses import Use

CHUNKED_BYTES_PER_S = 5e5
"""At which a message takes several chunks."""


class Play:
    """The same calls for two engines: one with room for everything, one that has to let go all the time."""

    def __init__(self, seed: int, tight: Driver, whole: Driver, most_new: int = 25) -> None:
        self.draw = random.Random(seed)
        self.tight, self.whole, self.most_new = tight, whole, most_new
        self.pairs: list[tuple[str, str]] = []

    def text(self, most: int) -> list[int]:
        return [self.draw.randrange(128) for _ in range(self.draw.randint(1, most))]

    def known(self) -> list[EncodingSpec]:
        return list(self.whole.specs.values())

    def call(self, among: list[EncodingSpec] | None = None) -> None:
        """Reads some messages, of those known or `among` a few, some of them moved or cut, and answers or encodes."""
        draw = self.draw
        known = self.known() if among is None else among
        chosen = draw.sample(known, min(len(known), draw.choice([0, 1, 2, 2])))
        placed, position = [], 0
        for spec in chosen:
            begin, end = (
                (0, spec.num_tokens) if draw.random() < 0.6 else sorted(draw.sample(range(spec.num_tokens + 1), 2))
            )
            at = spec.start if not placed and begin == 0 and draw.random() < 0.5 else position
            placed.append((spec, at, begin, end))
            position = max(position, at + end - begin)
        sampling = draw.choice(
            [
                None,
                force(self.text(4)),
                Sampling(max_tokens=draw.randint(1, self.most_new), seed=draw.randrange(99), temperature=0.0),
            ]
        )
        tokens, rank = self.text(70 if sampling is None else 6), draw.randrange(4)
        ids = []
        for driver in (self.tight, self.whole):
            view = driver.chain()
            for spec, at, begin, end in placed:
                driver.specs[spec.encoding_id] = spec
                view = driver.place(view, spec, at, begin, end)
            ids.append(driver.submit(tokens, view, position, sampling, rank=rank))
        self.pairs.append((ids[0], ids[1]))

    def abort(self) -> None:
        """The last of those that have not been compared yet, or any of them."""
        if self.pairs:
            victim = self.pairs.pop(self.draw.choice([-1, self.draw.randrange(len(self.pairs))]))
            self.tight.engine.abort(victim[0])
            self.whole.engine.abort(victim[1])

    def advise(self) -> None:
        draw = self.draw
        if not self.known():
            return
        specs = draw.sample(self.known(), min(len(self.known()), 4))
        uses = tuple((s.encoding_id, None if draw.random() < 0.2 else Use(1, draw.random() * 3)) for s in specs)
        orders = tuple(
            Prefetch(s.encoding_id, tuple(closure([s.encoding_id], self.whole.specs)), compute=draw.random() < 0.5)
            for s in specs
        )
        cancelled = tuple(s.encoding_id for s in specs if draw.random() < 0.2)
        pins = tuple((s.encoding_id, draw.random()) for s in specs[:1])
        self.tight.engine.advise(Advice(uses, orders, cancelled, pins))

    def step(self) -> None:
        self.tight.step()
        engine = self.tight.engine
        engine.store.check_integrity()
        if engine.tiers.host is not None:
            engine.tiers.host.check_integrity()
            assert engine.tiers.disk_bytes_used <= engine.tiers.disk_bytes

    def compare(self) -> None:
        self.tight.run()
        self.whole.run()
        for tight_id, whole_id in self.pairs:
            found, expected = self.tight.result(tight_id), self.whole.result(whole_id)
            assert found.encoding == expected.encoding
            assert (found.generated, found.finish_reason) == (expected.generated, expected.finish_reason)
            assert found.tokens_read == expected.tokens_read
            assert 0 <= found.tokens_loaded <= found.tokens_reused <= found.tokens_read
            if found.logprobs:
                torch.testing.assert_close(logprobs(found), logprobs(expected), atol=4e-4, rtol=0)
        self.pairs = []


@pytest.mark.parametrize("seed", range(4))
def test_calls_do_not_notice(seed: int, tmp_path: Path) -> None:
    play_tightly(seed, tmp_path)


@pytest.mark.parametrize("seed", range(4))
def test_calls_do_not_notice_copies_that_fail(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = random.Random(seed)
    fail_copies(monkeypatch, lambda direction: draw.random() < 0.2)
    play_tightly(seed, tmp_path)


def play_tightly(seed: int, tmp_path: Path) -> None:
    fused, slow = seed % 2 == 1, seed % 4 >= 2
    tight = make_engine(
        pool_tokens=256,
        host_tokens=(600, 160)[seed % 3 == 0],
        disk_folder=tmp_path / "kv" if seed % 3 else None,
        fused=fused,
        link_bytes_per_s=4e6 if slow else None,
        eviction=("cost", "steps", "lru")[seed % 3],
        max_batch_tokens=48,
    )
    play = Play(seed, Driver(tight), Driver(make_engine(pool_tokens=40_000, fused=fused)))
    if slow:  # so that mixing pays
        tight.tiers.rates._measured = {"encode_tokens_per_s": 1e6, "host_bytes_per_s": 4e6}
    for _ in range(8):
        for _ in range(play.draw.randint(1, 4)):
            play.call()
        if play.draw.random() < 0.6:
            play.advise()
        for _ in range(play.draw.randint(0, 12)):
            if tight.has_work():
                play.step()
        if play.draw.random() < 0.3:
            play.abort()
        play.compare()
        assert_nothing_is_held(play.tight)
    assert tight.tiers.counters.totals().num_evicted_device > 0
    tight.close()


@pytest.mark.parametrize("seed", range(2))
def test_calls_do_not_notice_others_that_come_and_go(seed: int) -> None:
    """They read the same few messages, which are in the making for others, who are aborted or have to make room."""
    loads = seed % 2 == 0
    rates = WorkerRates(100.0, 0.001, CHUNKED_BYTES_PER_S)
    tight = driver_of(240, 4096 * loads, rates, max_batch_tokens=12, link_bytes_per_s=CHUNKED_BYTES_PER_S)
    play = Play(seed, tight, Driver(make_engine(pool_tokens=40_000)), most_new=60)
    draw, tiers = play.draw, tight.engine.tiers
    for _ in range(8):
        play.call([])
    play.compare()
    roots = sorted(play.known(), key=lambda spec: spec.num_tokens)[-4:]  # which take nothing else to encode
    for _ in range(6):
        if tiers.host is not None:
            save_all(tight)
        tight.engine.store.evict_all()
        few = draw.sample(roots, 2)
        for _ in range(6):
            play.call(few)
            for _ in range(draw.choice([1, 1, 1, 3])):
                if tight.engine.has_work():
                    play.step()
            if draw.random() < 0.5:
                play.abort()
        play.compare()
        assert_nothing_is_held(tight)
    assert (tiers.counters.totals().tokens_loaded_host > 0) == loads
    tight.engine.close()
