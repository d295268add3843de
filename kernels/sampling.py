"""Next tokens of many rows on the device, with no word to the host: greedy, or by temperature, top-k and top-p.

A row's result depends on that row alone. What any row asks for is known on the host, and what none asks for
is not computed. Shapes depend on no value on a device other than the CPU, so nothing waits for a card.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from laban.kernels.noise import gumbel_noise


@dataclass(frozen=True, slots=True)
class Draws:
    """How rows draw: from softmax(logits / temperature) without what top-k, then top-p, drop. All on one device.

    A temperature of 0 is greedy; `top_k` 0 and `top_p` 1 keep every token, and are None if all rows' are.
    """

    temperature: Tensor  # [num_rows] float32
    seeds: Tensor  # [num_rows] int64
    indices: Tensor  # [num_rows] int64: which token of its call it is
    top_k: Tensor | None = None  # [num_rows] int64
    most_top_k: int = 0  # the greatest of `top_k`
    top_p: Tensor | None = None  # [num_rows] float32


@dataclass(frozen=True, slots=True)
class Allowed:
    """The only tokens that some rows may take: token t of row `rows[i]` if bit t % 32 of `words[i, t // 32]` is set."""

    rows: Tensor  # [num_constrained] int64, each once
    words: Tensor  # [num_constrained, at least vocab_size / 32] int32


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the next token of each row is chosen. `forced` ids of 0 and more are taken whatever the logits say.

    Top-k and top-p are of what is `allowed`.
    """

    draws: Draws | None = None  # None: every row is greedy
    forced: Tensor | None = None  # [num_rows] int64; -1 forces nothing
    allowed: Allowed | None = None  # None: every row may take any token


GREEDY = SamplingParams()


def sample_rows(logits: Tensor, params: SamplingParams) -> tuple[Tensor, Tensor]:
    """The next tokens. Without draws it reads the logits twice, and may be captured in a CUDA graph.

    Args:
        logits: [num_rows, vocab_size] float32, left as they are.

    Returns:
        tokens [num_rows] int64, and sound [num_rows] bool: whether the row's logits are finite numbers. The
        token of a row that is not sound means nothing, but is below vocab_size.
    """
    given = logits
    if params.allowed is not None:
        logits = keep_allowed(logits, params.allowed)
    tokens = logits.argmax(dim=-1)
    if params.draws is not None:
        drawn = _draw(logits, params.draws).argmax(dim=-1)
        tokens = torch.where(params.draws.temperature > 0, drawn, tokens)
    if params.forced is not None:
        tokens = torch.where(params.forced >= 0, params.forced, tokens)
    return tokens, torch.isfinite(given.sum(dim=-1))


def keep_allowed(logits: Tensor, allowed: Allowed) -> Tensor:
    """A copy of `logits` [num_rows, vocab_size] with -inf for what its rows may not take."""
    spread = _biases(logits.device).index_select(0, allowed.words.view(torch.uint8).flatten().int())
    return logits.index_add(0, allowed.rows, spread.view(len(allowed.rows), -1)[:, : logits.shape[1]])


@cache
def _biases(device: torch.device) -> Tensor:
    """[256, 8] float32: for each byte of a mask 0 where its bits are set, lowest first, and -inf elsewhere."""
    bits = torch.arange(256, device=device)[:, None] >> torch.arange(8, device=device)
    return torch.where(bits & 1 == 1, 0.0, -torch.inf)


def _draw(logits: Tensor, draws: Draws) -> Tensor:
    """Scores [num_rows, vocab_size] whose greatest is the draw. Anything for greedy rows."""
    scores = logits / torch.where(draws.temperature > 0, draws.temperature, 1)[:, None]
    if draws.top_k is not None:
        scores = keep_top_k(scores, draws.top_k, draws.most_top_k)
    if draws.top_p is not None:
        scores = keep_top_p(scores, draws.top_p)
    return scores.add_(gumbel_noise(draws.seeds, draws.indices, logits.shape[1]))


def keep_top_k(scores: Tensor, top_k: Tensor, most_top_k: int) -> Tensor:
    """`scores` [num_rows, vocab_size] with -inf below each row's `top_k`-th greatest; its equals stay. 0 keeps all."""
    size = min(most_top_k, scores.shape[1])
    at = top_k.clamp(1, size) - 1
    least = scores.topk(size).values.gather(1, at[:, None])
    return scores.masked_fill((scores < least) & (top_k > 0)[:, None], -torch.inf)


def keep_top_p(scores: Tensor, top_p: Tensor) -> Tensor:
    """`scores` [num_rows, vocab_size] with -inf where the likelier tokens sum to `top_p`. 1 keeps all.

    The likeliest token always stays; of equals the lower id counts as the likelier.
    """
    if scores.device.type == "cpu":
        return _keep_top_p_cpu(scores, top_p)
    return _keep_top_p_sorted(scores, top_p)


def _keep_top_p_sorted(scores: Tensor, top_p: Tensor) -> Tensor:
    ordered, order = scores.sort(dim=-1, descending=True, stable=True)
    dropped = _past(ordered.softmax(dim=-1, dtype=torch.float64), top_p[:, None]) & (top_p < 1)[:, None]
    return scores.masked_fill(torch.zeros_like(dropped).scatter_(1, order, dropped), -torch.inf)


def _past(ordered: Tensor, top_p: Tensor) -> Tensor:
    """For probabilities in falling order: whether those before sum to `top_p`. Never the first.

    They are in float64: in what order a scan adds is the device's choice, and in float32 that would show.
    """
    past = ordered.cumsum(dim=-1) - ordered >= top_p
    past[..., 0] = False
    return past


def _keep_top_p_cpu(scores: Tensor, top_p: Tensor) -> Tensor:
    """The same, sorting only what can stay: a fifth of the time."""
    kept = scores.clone()
    for row, share in enumerate(top_p.tolist()):
        if share >= 1:
            continue
        probabilities = scores[row].softmax(dim=-1, dtype=torch.float64)
        # Less likely than this, a token and all below it sum to less than 1 - top_p. Half of it: roundings.
        likely = (probabilities > (1 - share) / (2 * scores.shape[1])).nonzero()[:, 0]
        if likely.numel() == 0:  # the scores are no numbers
            continue
        likely = likely[scores[row, likely].sort(descending=True, stable=True).indices]
        stays = likely[~_past(probabilities[likely], top_p[row])]
        kept[row].fill_(-torch.inf)
        kept[row, stays] = scores[row, stays]
    return kept
