"""Sampling as a plain function of one row, and what any device's must give."""

from __future__ import annotations

import math
import random

import torch
from torch import Tensor

from laban.actors.calls import Sampling
from laban.actors.engine.sampler import sampling_params
from laban.kernels.sampling import sample_rows

WORD = 0xFFFFFFFF


def philox_word(seed: int, index: int, token: int) -> int:
    """The 32 bits of one vocabulary id, in Python's integers."""
    counter = [token // 4, index & WORD, index >> 32, 0]
    key = [seed & WORD, seed >> 32 & WORD]
    for _ in range(10):
        left, right = counter[0] * 0xD2511F53, counter[2] * 0xCD9E8D57
        counter = [right >> 32 ^ counter[1] ^ key[0], right & WORD, left >> 32 ^ counter[3] ^ key[1], left & WORD]
        key = [key[0] + 0x9E3779B9 & WORD, key[1] + 0xBB67AE85 & WORD]
    return counter[token % 4]


def sample_reference(logits: Tensor, sampling: Sampling, index: int) -> tuple[int, float]:
    """One token of one row [vocab_size], and how far its score is ahead of the next."""
    if index < len(sampling.forced):
        return sampling.forced[index], math.inf
    scores = logits.double().tolist()
    if sampling.temperature > 0:
        scores = [score / sampling.temperature for score in scores]
        falling = sorted(range(len(scores)), key=lambda token: (-logits[token].item(), token))
        if sampling.top_k > 0:
            least = logits[falling[: sampling.top_k][-1]].item()
            falling = [token for token in falling if logits[token].item() >= least]
        total = math.fsum(math.exp(scores[token] - scores[falling[0]]) for token in falling)
        before, kept = 0.0, []
        for token in falling:
            if not kept or before < sampling.top_p or sampling.top_p >= 1:
                kept.append(token)
            before += math.exp(scores[token] - scores[falling[0]]) / total
        uniform = [(philox_word(sampling.seed, index, token) + 0.5) / 2**32 for token in kept]
        noisy = {token: scores[token] - math.log(-math.log1p(-u)) for token, u in zip(kept, uniform, strict=True)}
    else:
        noisy = dict(enumerate(scores))
    best = max(noisy, key=lambda token: (noisy[token], -token))
    return best, noisy.pop(best) - max(noisy.values(), default=-math.inf)


def random_rows(seed: int, vocab_size: int, num_rows: int) -> tuple[Tensor, list[Sampling], list[int]]:
    """Logits of all shapes, and samplings of all kinds."""
    draw = random.Random(seed)
    torch.manual_seed(seed)
    logits = (
        torch.randn(num_rows, vocab_size)
        * torch.tensor([draw.choice([0.3, 2.0, 8.0]) for _ in range(num_rows)])[:, None]
    )
    samplings = [
        Sampling(
            max_tokens=9,
            temperature=draw.choice([0.0, 0.5, 1.0, 1.7]),
            top_k=draw.choice([0, 0, 1, 5, vocab_size - 1, vocab_size + 3]),
            top_p=draw.choice([1.0, 1.0, 0.9, 0.5, 1e-6]),
            seed=draw.choice([draw.randrange(2**31), draw.randrange(2**64)]),
            forced=tuple(draw.randrange(vocab_size) for _ in range(draw.choice([0, 0, 0, 2]))),
        )
        for _ in range(num_rows)
    ]
    return logits, samplings, [draw.choice([0, 1, 2, 700, 2**33 + 1]) for _ in range(num_rows)]


def check_rows(seed: int, vocab_size: int, num_rows: int, device: torch.device) -> None:
    """Every row as the reference has it, but where two scores are too close to tell."""
    logits, samplings, indices = random_rows(seed, vocab_size, num_rows)
    tokens, sound = sample_rows(logits.to(device), sampling_params(samplings, indices, device))
    assert sound.all()
    assert tokens.dtype == torch.int64
    for row, token in enumerate(tokens.tolist()):
        expected, ahead = sample_reference(logits[row], samplings[row], indices[row])
        assert token == expected or ahead < 1e-5


def chi_square(tokens: Tensor, probabilities: Tensor) -> float:
    """How far draws are from their distribution, in standard deviations above what is expected. [n], [vocab_size]"""
    expected = probabilities.double().cpu() * tokens.numel()
    assert expected.min() > 5
    counts = torch.bincount(tokens.cpu(), minlength=expected.numel())
    freedom = expected.numel() - 1
    return float((((counts - expected) ** 2 / expected).sum() - freedom) / (2 * freedom) ** 0.5)


def check_draws_follow_the_softmax(device: torch.device, num_draws: int) -> None:
    """By chi-square; a temperature a tenth off would be noticed."""
    logits = torch.linspace(-2.0, 1.5, 40, device=device)[torch.randperm(40, device=device)]
    samplings = [Sampling(max_tokens=1, temperature=0.8, seed=s) for s in range(num_draws // 100)] * 100
    indices = [i // (num_draws // 100) for i in range(num_draws)]
    tokens, _ = sample_rows(logits.expand(num_draws, -1), sampling_params(samplings, indices, device))
    assert chi_square(tokens, (logits / 0.8).softmax(-1)) < 6
    assert chi_square(tokens, (logits / 0.88).softmax(-1)) > 8
