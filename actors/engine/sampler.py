"""The host's side of sampling: what calls ask for, as tensors for `kernels.sampling`, and what they are told."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from laban.actors.calls import Sampling, TokenLogprob
from laban.kernels.sampling import GREEDY, Allowed, Draws, SamplingParams, sample_rows


@dataclass(frozen=True, slots=True)
class Masks:
    """The tokens that some rows may take: `words` [len(rows), num_words] int32, a bit for each, on the host."""

    rows: list[int]
    words: np.ndarray


AskMasks = Callable[[], Masks | None]
"""Gives the masks of an iteration's sampled rows; asked for once its forward is under way."""


def sample(
    logits: Tensor, samplings: Sequence[Sampling], indices: Sequence[int], masks: Masks | None = None
) -> list[int]:
    """One token id a row. Row i is the `indices[i]`-th generated token of a call that samples by `samplings[i]`.

    Args:
        logits: [num_rows, vocab_size] float32. A row's result depends on that row alone.
    """
    tokens, _ = sample_rows(logits, sampling_params(samplings, indices, logits.device, masks))
    chosen: list[int] = tokens.tolist()
    return chosen


def sampling_params(
    samplings: Sequence[Sampling], indices: Sequence[int], device: torch.device, masks: Masks | None = None
) -> SamplingParams:
    """What `sample_rows` takes for these rows. A copy to a card, with masks three, which the host does not wait for."""
    params = _unmasked(samplings, indices, device)
    if masks is None:
        return params
    words = torch.from_numpy(masks.words)
    words = words.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else words
    return replace(params, allowed=Allowed(_to_device([masks.rows], device)[0], words))


def _unmasked(samplings: Sequence[Sampling], indices: Sequence[int], device: torch.device) -> SamplingParams:
    forced = [s.forced[i] if i < len(s.forced) else -1 for s, i in zip(samplings, indices, strict=True)]
    any_forced = any(token >= 0 for token in forced)
    if not any(s.temperature > 0 and token < 0 for s, token in zip(samplings, forced, strict=True)):
        return SamplingParams(None, _to_device([forced], device)[0]) if any_forced else GREEDY
    top_k = [s.top_k for s in samplings]
    floats = torch.tensor([[s.temperature for s in samplings], [s.top_p for s in samplings]], dtype=torch.float64)
    rows = _to_device(
        [[_signed(s.seed) for s in samplings], list(indices), top_k, forced, *floats.view(torch.int64).tolist()], device
    )
    temperature, top_p = rows[4:].view(torch.float64).float()
    draws = Draws(
        temperature,
        seeds=rows[0],
        indices=rows[1],
        top_k=rows[2] if max(top_k) > 0 else None,
        most_top_k=max(top_k),
        top_p=top_p if any(s.top_p < 1 for s in samplings) else None,
    )
    return SamplingParams(draws, rows[3] if any_forced else None)


def _to_device(rows: list[list[int]], device: torch.device) -> Tensor:
    """[len(rows), row length] int64"""
    table = torch.tensor(rows)
    return table.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else table


def _signed(seed: int) -> int:
    """The low 64 bits of `seed`, as an int64 holds them."""
    return (seed + 2**63) % 2**64 - 2**63


def logprobs_of(logits: Tensor, token_id: int, num_top: int) -> TokenLogprob:
    """The log-probability of `token_id` and of the `num_top` likeliest, from one row [vocab_size] of raw logits."""
    return logprobs_of_rows(logits[None], [token_id], [num_top])[0]


def logprobs_of_rows(logits: Tensor, token_ids: Sequence[int], num_tops: Sequence[int]) -> list[TokenLogprob]:
    """`logprobs_of` for each row of raw logits [num_rows, vocab_size]. Waits for the device."""
    values = torch.log_softmax(logits, dim=-1)
    top = values.topk(min(max(num_tops), values.shape[1]), dim=-1)
    chosen = values.gather(1, _to_device([list(token_ids)], logits.device).T)[:, 0]
    told = zip(token_ids, num_tops, chosen.tolist(), top.indices.tolist(), top.values.tolist(), strict=True)
    return [TokenLogprob(t, p, tuple(zip(ids[:n], ps[:n], strict=True))) for t, n, p, ids, ps in told]
