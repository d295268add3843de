"""Sampling on a card: the tokens that a CPU gives, and the host never waits."""

from __future__ import annotations

import pytest
import torch
from sampling_cases import check_draws_follow_the_softmax, check_rows, random_rows

from laban.actors.calls import Sampling
from laban.actors.engine.sampler import logprobs_of_rows, sample, sampling_params
from laban.kernels.noise import uniform_noise, uniform_noise_reference
from laban.kernels.sampling import GREEDY, SamplingParams, keep_top_k, keep_top_p, sample_rows

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]

CUDA = torch.device("cuda")


@pytest.mark.parametrize("vocab_size", [1, 5, 1027, 128_256])
def test_noise_has_the_same_bits(vocab_size: int) -> None:
    seeds = torch.tensor([0, 7, -1, 2**63 - 1, -(2**63), 12_345_678_901_234])
    indices = torch.tensor([0, 1, 2**33 + 5, 4, 2**31, 3])
    expected = uniform_noise_reference(seeds, indices, vocab_size)
    assert torch.equal(uniform_noise(seeds.cuda(), indices.cuda(), vocab_size).cpu(), expected)
    assert torch.equal(uniform_noise_reference(seeds.cuda(), indices.cuda(), vocab_size).cpu(), expected)


@pytest.mark.parametrize("seed", range(6))
def test_every_row_is_as_the_reference_has_it(seed: int) -> None:
    check_rows(seed, vocab_size=[3, 50, 333][seed % 3], num_rows=24, device=CUDA)


def test_draws_follow_the_softmax() -> None:
    check_draws_follow_the_softmax(CUDA, 40_000)


@pytest.mark.parametrize("seed", range(4))
def test_tokens_are_those_of_a_cpu(seed: int) -> None:
    """But where two scores are the same up to a logarithm's last bit."""
    logits, samplings, indices = random_rows(seed, 128_256, 32)
    on_cpu, on_card = sample(logits, samplings, indices), sample(logits.cuda(), samplings, indices)
    assert sum(a != b for a, b in zip(on_cpu, on_card, strict=True)) <= 1
    alone = [sample(logits[i : i + 1].cuda(), [samplings[i]], [indices[i]])[0] for i in range(32)]
    assert alone == on_card


def test_top_k_and_top_p_keep_what_they_keep_on_a_cpu() -> None:
    scores = torch.randn(8, 50_000).bfloat16().float() * 3  # equals are many
    top_k, top_p = torch.tensor([0, 1, 2, 50, 1000, 49_999, 50_000, 70_000]), torch.linspace(0.2, 1, 8)
    assert torch.equal(keep_top_k(scores.cuda(), top_k.cuda(), 70_000).cpu(), keep_top_k(scores, top_k, 70_000))
    on_cpu, on_card = keep_top_p(scores, top_p), keep_top_p(scores.cuda(), top_p.cuda()).cpu()
    assert (torch.isfinite(on_cpu) != torch.isfinite(on_card)).sum() <= 1
    assert torch.equal(on_card[-1], scores[-1])


@pytest.mark.parametrize("settings", [{}, {"temperature": 1.0}, {"temperature": 0.8, "top_k": 40, "top_p": 0.9}])
@pytest.mark.parametrize("forced", [(), (3, 4)])
def test_the_host_never_waits(settings: dict[str, float], forced: tuple[int, ...]) -> None:
    logits = torch.randn(16, 128_256, device=CUDA)
    samplings = [Sampling(9, seed=i, forced=forced if i == 2 else (), **settings) for i in range(16)]  # type: ignore[arg-type]
    expected = sample(logits, samplings, range(16))  # compiles, too
    torch.cuda.set_sync_debug_mode("error")
    try:
        tokens, sound = sample_rows(logits, sampling_params(samplings, range(16), CUDA))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert tokens.tolist() == expected
    assert sound.all()


def test_greedy_rows_are_captured_in_a_graph() -> None:
    logits, forced = torch.randn(8, 1000, device=CUDA), torch.full((8,), -1, device=CUDA)
    forced[3] = 5
    params = SamplingParams(forced=forced)
    sample_rows(logits, params)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        tokens, sound = sample_rows(logits, params)
    logits.copy_(torch.randn(8, 1000))
    logits[6, 9] = torch.nan
    graph.replay()
    expected, _ = sample_rows(logits, GREEDY)
    expected[3] = 5
    assert torch.equal(tokens, expected)
    assert sound.tolist() == [i != 6 for i in range(8)]


def test_logprobs_are_those_of_a_cpu() -> None:
    logits = torch.randn(5, 4000)
    on_cpu = logprobs_of_rows(logits, range(5), [0, 2, 7, 1, 20])
    for a, b in zip(on_cpu, logprobs_of_rows(logits.cuda(), range(5), [0, 2, 7, 1, 20]), strict=True):
        assert a.logprob == pytest.approx(b.logprob, abs=1e-4)
        assert [t for t, _ in a.top] == [t for t, _ in b.top]
