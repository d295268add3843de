"""Chooses next tokens: greedy, or by temperature, top-k and top-p with noise keyed by (seed, token index)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from laban.actors.calls import Sampling, TokenLogprob
from laban.kernels.noise import gumbel_noise


def sample(logits: Tensor, samplings: Sequence[Sampling], indices: Sequence[int]) -> list[int]:
    """One token id a row. Row i is the `indices[i]`-th generated token of a call that samples by `samplings[i]`.

    Args:
        logits: [num_rows, vocab_size] float32. A row's result depends on that row alone.
    """
    chosen: list[int] = logits.argmax(dim=-1).tolist()
    for row, (sampling, index) in enumerate(zip(samplings, indices, strict=True)):
        if index < len(sampling.forced):
            chosen[row] = sampling.forced[index]
        elif sampling.temperature > 0:
            kept = _keep(logits[row] / sampling.temperature, sampling.top_k, sampling.top_p)
            noise = gumbel_noise(sampling.seed, index, kept.shape[0]).to(kept.device)
            chosen[row] = int((kept + noise).argmax())
    return chosen


def _keep(scores: Tensor, top_k: int, top_p: float) -> Tensor:
    """`scores` [vocab_size] with -inf where top-k, then top-p, drop a token. The likeliest token always stays."""
    if 0 < top_k < scores.shape[0]:
        scores = scores.masked_fill(scores < scores.topk(top_k).values[-1], -torch.inf)
    if top_p < 1:
        ordered, order = scores.sort(descending=True)
        probabilities = ordered.softmax(dim=-1)
        # A token stays while the ones before it sum to less than top_p.
        dropped = probabilities.cumsum(dim=-1) - probabilities >= top_p
        dropped[0] = False
        scores = scores.masked_fill(torch.zeros_like(dropped).scatter(0, order, dropped), -torch.inf)
    return scores


def logprobs_of(logits: Tensor, token_id: int, num_top: int) -> TokenLogprob:
    """The log-probability of `token_id` and of the `num_top` likeliest, from one row [vocab_size] of raw logits."""
    values = torch.log_softmax(logits, dim=-1)
    top = values.topk(min(num_top, values.shape[0])) if num_top else None
    pairs = tuple(zip(top.indices.tolist(), top.values.tolist(), strict=True)) if top else ()
    return TokenLogprob(token_id, float(values[token_id]), pairs)
