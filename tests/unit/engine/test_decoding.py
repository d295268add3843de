"""Generated text: stop strings, stop tokens, what is streamed when, and sampling that only the seed decides."""

from __future__ import annotations

import collections

import pytest
import torch
from engine_harness import TOLERANCE, Driver, make_engine
from hypothesis import given
from hypothesis import strategies as st

from laban.actors.calls import Call, CallTokens, Sampling
from laban.actors.engine.decoding import Decode
from laban.actors.engine.sampler import logprobs_of, sample
from laban.kernels.noise import gumbel_noise
from laban.kvstore.encodings import EMPTY_VIEW


class Words:
    """Token i spells WORDS[i]; several characters a token, so that a stop string can end inside of one."""

    WORDS = ("a", "b", "ab", "bc", "c", "abc", "", "xyz")

    def encode(self, text: str) -> list[int]:
        return ["abcxyz".index(c) if c in "ab" else 4 if c == "c" else 7 for c in text]

    def decode(self, ids: list[int]) -> str:
        return "".join(self.WORDS[i] for i in ids)

    def detokenizer(self) -> Words:
        return self

    def push(self, ids: list[int]) -> str:
        return self.decode(ids)

    def flush(self) -> str:
        return ""


def decode_of(sampling: Sampling) -> Decode:
    call = Call("c", "", EMPTY_VIEW, 0, (0,), (), sampling)
    words = Words()
    return Decode(call, sampling, words, words)  # type: ignore[arg-type]


@given(
    tokens=st.lists(st.integers(0, 6), min_size=1, max_size=20),
    stops=st.lists(st.text("abc", min_size=1, max_size=4), max_size=2),
)
def test_text_ends_before_the_first_stop_string_and_the_stream_never_takes_back(
    tokens: list[int], stops: list[str]
) -> None:
    decode = decode_of(Sampling(max_tokens=len(tokens), stop=tuple(stops)))
    news: list[CallTokens] = []
    fed = 0
    for token in tokens:
        decode.push(token, None)
        fed += 1
        if (told := decode.take_news()) is not None:
            news.append(told)
        if decode.finish_reason:
            break
    whole = "".join(Words.WORDS[i] for i in tokens)
    found = [at for stop in stops if (at := whole.find(stop)) >= 0]
    # The earliest stop that is complete when some token completes one: later text cannot matter.
    seen = "".join(Words.WORDS[i] for i in tokens[:fed])
    expected = seen[: min((at for stop in stops if (at := seen.find(stop)) >= 0), default=len(seen))]
    assert decode.text == expected
    assert decode.finish_reason == ("stop" if found else "length")
    assert Words().decode(decode.generated) == expected
    assert "".join(n.text for n in news) == expected
    assert [t for n in news for t in n.token_ids] == decode.generated
    indices = [n.index + i for n in news for i in range(len(n.token_ids))]
    assert indices == list(range(len(decode.generated)))


def test_what_a_stop_string_cut_off_is_not_in_the_message() -> None:
    """The engine's own greedy text, cut in the middle: the encoding is that of the shorter text."""
    free = Driver(make_engine("llama", seed=3))
    call = free.submit([40, 41, 42], sampling=Sampling(max_tokens=30))
    free.run()
    text = free.result(call).text
    stop = text[12:15]
    cut_at = text.find(stop)
    driver = Driver(make_engine("llama", seed=3))
    call = driver.submit([40, 41, 42], sampling=Sampling(max_tokens=30, stop=(stop,)), terminator=(9,))
    driver.run()
    result = driver.result(call)
    assert (result.text, result.finish_reason) == (text[:cut_at], "stop")
    assert driver.streamed(call)[1] == result.text
    assert result.encoding.tokens == (40, 41, 42, *result.generated, 9)
    entry = driver.engine.store.get(result.encoding.encoding_id)
    assert entry is not None
    assert entry.num_tokens == len(result.encoding.tokens)
    fresh = Driver(make_engine("llama", seed=3))
    again = fresh.prefill(list(result.encoding.tokens))
    assert again.encoding_id == result.encoding.encoding_id
    for kept, expected in zip(driver.keys_and_values(result.encoding), fresh.keys_and_values(again), strict=True):
        torch.testing.assert_close(kept, expected, atol=TOLERANCE, rtol=0)


def test_a_stop_token_ends_the_text_and_the_terminator_closes_it() -> None:
    driver = Driver(make_engine("llama", seed=3))
    call = driver.submit([40, 41, 42], sampling=Sampling(9, temperature=2.0))
    driver.run()
    generated = driver.result(call).generated
    stop = next(t for i, t in enumerate(generated) if i >= 1 and t not in generated[:i])
    at = generated.index(stop)
    call = driver.submit(
        [40, 41, 42], sampling=Sampling(9, temperature=2.0, stop_token_ids=(stop,)), terminator=(stop, 10)
    )
    driver.run()
    result = driver.result(call)
    assert result.generated == generated[:at]
    assert result.encoding.tokens == (40, 41, 42, *generated[:at], stop, 10)
    assert (result.finish_reason, result.tokens_generated) == ("stop", at + 1)


def test_sampling_is_by_seed_and_index_alone() -> None:
    logits = torch.randn(3, 500)
    sampling = Sampling(max_tokens=9, temperature=1.3, top_p=0.95, top_k=200, seed=11)
    alone = [sample(logits[i : i + 1], [sampling], [i])[0] for i in range(3)]
    assert sample(logits, [sampling] * 3, [0, 1, 2]) == alone
    shuffled = sample(logits[[2, 0, 1]], [sampling] * 3, [2, 0, 1])
    assert shuffled == [alone[2], alone[0], alone[1]]
    draws = {sample(logits[:1], [Sampling(9, temperature=1.3, seed=s)], [0])[0] for s in range(30)}
    assert len(draws) > 10


def test_draws_follow_the_softmax() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]])
    counts = collections.Counter(
        sample(logits, [Sampling(9, temperature=1.0, seed=s)], [i])[0] for s in range(50) for i in range(80)
    )
    for token, p in enumerate(logits[0].softmax(-1).tolist()):
        assert counts[token] / 4000 == pytest.approx(p, abs=4 * (p * (1 - p) / 4000) ** 0.5)


@pytest.mark.parametrize(
    ("settings", "allowed"),
    [
        ({"top_k": 2}, {0, 1}), ({"top_p": 0.6}, {0}), ({"top_p": 0.7}, {0, 1}), ({"top_p": 1e-9}, {0}),
        ({"top_k": 3, "top_p": 0.99}, {0, 1, 2}), ({"top_k": 99}, {0, 1, 2, 3}),
    ],
)  # fmt: skip
def test_top_k_and_top_p_keep_what_they_say(settings: dict[str, float], allowed: set[int]) -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]])  # 0.64, 0.24, 0.09, 0.03
    drawn = {sample(logits, [Sampling(9, temperature=1.0, seed=s, **settings)], [0])[0] for s in range(300)}  # type: ignore[arg-type]
    assert drawn == allowed


def test_noise_is_standard_gumbel_and_never_infinite() -> None:
    noise = gumbel_noise(torch.full((5,), 5), torch.arange(5), 40_000)
    assert torch.isfinite(noise).all()
    assert noise.mean().item() == pytest.approx(0.5772, abs=0.02)
    assert noise.var().item() == pytest.approx(1.6449, abs=0.04)
    # No two indices may share a stretch of the stream.
    assert not set(noise[0].tolist()) & set(noise[1, :8].tolist())


def test_logprobs_are_of_the_raw_logits() -> None:
    logits = torch.tensor([0.0, 3.0, 1.0])
    told = logprobs_of(logits, 2, 2)
    expected = logits.log_softmax(-1).tolist()
    assert told.logprob == pytest.approx(expected[2])
    assert [t for t, _ in told.top] == [1, 2]
    assert logprobs_of(logits, 0, 0).top == ()
