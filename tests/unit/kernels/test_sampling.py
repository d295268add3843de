"""Tokens of many rows at once: each as if it were alone, and distributed as asked."""

from __future__ import annotations

import pytest
import torch
from sampling_cases import check_draws_follow_the_softmax, check_rows, philox_word, random_rows

from laban.actors.calls import Sampling
from laban.actors.engine.sampler import logprobs_of, logprobs_of_rows, sample, sampling_params
from laban.kernels import noise, sampling
from laban.kernels.noise import gumbel_noise, philox, uniform_noise, uniform_noise_reference
from laban.kernels.sampling import GREEDY, keep_top_k, keep_top_p, sample_rows

CPU = torch.device("cpu")
SEEDS = torch.tensor([0, 7, -1, 2**63 - 1, -(2**63), 12_345_678_901_234])
INDICES = torch.tensor([0, 1, 2**33 + 5, 4, 2**31, 3])


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_its_published_vectors(
    counter: tuple[int, int, int, int], key: tuple[int, int], words: tuple[int, int, int, int]
) -> None:
    found = philox(tuple(map(torch.tensor, counter)), tuple(map(torch.tensor, key)))  # type: ignore[arg-type]
    assert tuple(int(word) for word in found) == words


@pytest.mark.parametrize("vocab_size", [1, 3, 4, 5, 1027])
def test_every_way_to_make_noise_gives_the_same_bits(vocab_size: int) -> None:
    expected = uniform_noise_reference(SEEDS, INDICES, vocab_size)
    assert noise.compiled is not None
    assert torch.equal(uniform_noise(SEEDS, INDICES, vocab_size), expected)
    word = philox_word(int(SEEDS[2]) % 2**64, int(INDICES[2]), vocab_size - 1)
    assert expected[2, -1].item() == pytest.approx((word + 0.5) / 2**32, rel=1e-7)


@pytest.mark.parametrize("vocab_size", [5, 1027])
def test_the_triton_kernel_gives_the_same_bits(vocab_size: int) -> None:
    pytest.importorskip("triton")
    from laban.kernels import noise_kernel

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    found = noise_kernel.uniform_noise(SEEDS.to(device), INDICES.to(device), vocab_size)
    assert torch.equal(found.cpu(), uniform_noise_reference(SEEDS, INDICES, vocab_size))


def test_noise_is_never_infinite() -> None:
    """At the two ends of what 32 bits give, which no test would draw."""
    ends = torch.tensor([0.5 * 2.0**-32, noise.HIGHEST])
    gumbel = -torch.log(-torch.log1p(-ends))
    torch.testing.assert_close(gumbel, torch.tensor([22.87, -2.81]), atol=0.01, rtol=0)
    drawn = gumbel_noise(torch.arange(20), torch.zeros(20, dtype=torch.int64), 50_000)
    assert torch.isfinite(drawn).all()
    assert 10 < drawn.max() < 22.9


@pytest.mark.parametrize("seed", range(12))
def test_every_row_is_as_the_reference_has_it(seed: int) -> None:
    check_rows(seed, vocab_size=[3, 50, 333][seed % 3], num_rows=24, device=CPU)


@pytest.mark.parametrize("seed", range(4))
def test_a_row_depends_on_itself_alone(seed: int) -> None:
    logits, samplings, indices = random_rows(seed, 500, 16)
    together = sample(logits, samplings, indices)
    assert together == [sample(logits[i : i + 1], [samplings[i]], [indices[i]])[0] for i in range(16)]
    order = torch.randperm(16).tolist()
    assert sample(logits[order], [samplings[i] for i in order], [indices[i] for i in order]) == [
        together[i] for i in order
    ]


def test_draws_follow_the_softmax() -> None:
    check_draws_follow_the_softmax(CPU, 40_000)


def test_top_p_on_any_device_is_top_p_on_a_cpu() -> None:
    """Both ways of it, where equals are many."""
    for step in (0.0, 0.5, 4.0):
        scores = torch.randn(40, 90) * 3
        if step:
            scores = (scores / step).round() * step
        top_p = torch.tensor([1.0, 0.95, 0.6, 0.3, 1e-9, 0.0, 0.999_999]).repeat(6)[:40]
        on_cpu, anywhere = keep_top_p(scores, top_p), sampling._keep_top_p_sorted(scores, top_p)
        assert torch.equal(on_cpu, anywhere)
        assert torch.equal(on_cpu[top_p == 1], scores[top_p == 1])
        assert torch.isfinite(on_cpu).any(dim=-1).all()
        assert (torch.isfinite(on_cpu).sum(dim=-1)[top_p < 1e-6] == 1).all()


def test_the_edges_of_top_k_and_top_p() -> None:
    scores = torch.tensor([[1.0, 3.0, 3.0, 0.0]]).repeat(4, 1)
    kept = torch.isfinite(keep_top_k(scores, torch.tensor([1, 0, 3, 9]), 9))
    # Equals of the last that stays do so too; 0, and more than there are, keep all.
    assert kept.int().tolist() == [[0, 1, 1, 0], [1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 1, 1]]
    equals = torch.zeros(4, 4)
    for keep in (keep_top_p, sampling._keep_top_p_sorted):
        kept = torch.isfinite(keep(equals, torch.tensor([0.5, 0.51, 1e-9, 1.0])))
        assert kept.int().tolist() == [[1, 1, 0, 0], [1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 1, 1]]


def test_what_is_not_finite_is_reported() -> None:
    logits, samplings, indices = random_rows(3, 60, 8)
    logits[1, 5], logits[2, 59], logits[4] = torch.nan, torch.inf, -torch.inf
    for params in (GREEDY, sampling_params([Sampling(9, 1.0, top_p=0.5, top_k=3)] * 8, indices, CPU)):
        tokens, sound = sample_rows(logits, params)
        assert sound.tolist() == [True, False, False, True, False, True, True, True]
        assert ((tokens >= 0) & (tokens < 60)).all()
    whole = sample(logits[[0, 3]], [samplings[0], samplings[3]], [indices[0], indices[3]])
    assert [sample(logits, samplings, indices)[i] for i in (0, 3)] == whole


def test_only_what_is_asked_for_is_computed() -> None:
    def params(*samplings: Sampling) -> sampling.SamplingParams:
        return sampling_params(samplings, [0] * len(samplings), CPU)

    assert params() is GREEDY
    assert params(Sampling(9), Sampling(9, top_k=3, top_p=0.5)) is GREEDY
    forced = params(Sampling(9), Sampling(9, 1.0, forced=(4,)))
    assert forced.draws is None
    assert forced.forced is not None
    assert forced.forced.tolist() == [-1, 4]
    drawn = params(Sampling(9), Sampling(9, 0.5, seed=2**64 - 1))
    assert drawn.forced is None
    assert drawn.draws is not None
    assert (drawn.draws.top_k, drawn.draws.top_p) == (None, None)
    assert drawn.draws.seeds.tolist() == [0, -1]
    torch.testing.assert_close(drawn.draws.temperature, torch.tensor([0.0, 0.5]))
    full = params(Sampling(9, 1.0, top_k=5, top_p=0.9), Sampling(9, 1.0))
    assert full.draws is not None
    assert full.draws.most_top_k == 5
    assert full.draws.top_p is not None


def test_logits_stay_as_they_are() -> None:
    logits, samplings, indices = random_rows(5, 40, 10)
    before = logits.clone()
    sample(logits, samplings, indices)
    assert torch.equal(logits, before)


def test_logprobs_of_rows_are_those_of_each() -> None:
    logits, num_tops = torch.randn(4, 30), [0, 3, 1, 99]
    told = logprobs_of_rows(logits, [5, 6, 7, 8], num_tops)
    assert [len(t.top) for t in told] == [0, 3, 1, 30]
    for row, one in enumerate(told):
        alone = logprobs_of(logits[row], 5 + row, num_tops[row])
        assert one.token_id == 5 + row
        assert one.logprob == pytest.approx(logits[row].log_softmax(-1)[5 + row].item())
        assert [t for t, _ in one.top] == [t for t, _ in alone.top]
