"""Randomness keyed by (seed, token index, vocabulary id): never by the batch, the device or what was drawn before.

Philox 4x32-10 (Salmon et al., SC 2011): counter-based, so any element is computed alone. Vocabulary id v takes word
v % 4 of the block whose key is the seed and whose counter is (v // 4, the index's low word, its high word, 0). The
uniform numbers are the same bits on every device; the two logarithms after them are the device's own.
"""

from __future__ import annotations

from importlib.util import find_spec

import torch
from torch import Tensor

try:
    from laban.kernels import noise_cpu as compiled
except ImportError:  # numba is not installed, or not for this machine
    compiled = None  # type: ignore[assignment]

HAS_TRITON = find_spec("triton") is not None
WORD = 0xFFFFFFFF
HIGHEST = 1 - 2.0**-24  # 1 has no logarithm of what is left


def gumbel_noise(seeds: Tensor, indices: Tensor, vocab_size: int) -> Tensor:
    """Standard Gumbel noise, float32 [num_rows, vocab_size]: argmax(logits + noise) draws from softmax(logits).

    Args:
        seeds: [num_rows] int64, all 64 bits of them. indices: [num_rows] int64, of the tokens in their calls.
    """
    # -log(1 - u), not -log(u): it is the large values that win, and near 0 a float32 is finest.
    return uniform_noise(seeds, indices, vocab_size).neg_().log1p_().neg_().log_().neg_()


def uniform_noise(seeds: Tensor, indices: Tensor, vocab_size: int) -> Tensor:
    """Uniform in [2**-33, 1 - 2**-24], float32 [num_rows, vocab_size]. Writes it once, reads nothing."""
    if seeds.is_cuda and HAS_TRITON:
        from laban.kernels import noise_kernel  # only where there is a card for it

        return noise_kernel.uniform_noise(seeds, indices, vocab_size)
    if seeds.device.type == "cpu" and compiled is not None:
        out = torch.empty(seeds.shape[0], vocab_size)
        compiled.fill_uniform(seeds.numpy(), indices.numpy(), out.numpy())
        return out
    return uniform_noise_reference(seeds, indices, vocab_size)


def uniform_noise_reference(seeds: Tensor, indices: Tensor, vocab_size: int) -> Tensor:
    """The same in plain torch: 10 rounds of int64 operations on [num_rows, vocab_size / 4]."""
    blocks = torch.arange(-(-vocab_size // 4), device=seeds.device)[None]
    counter = (blocks, (indices & WORD)[:, None], (indices >> 32 & WORD)[:, None], torch.zeros_like(blocks))
    words = philox(counter, ((seeds & WORD)[:, None], (seeds >> 32 & WORD)[:, None]))
    bits = torch.stack(words, dim=-1).flatten(1)[:, :vocab_size]
    return bits.float().add_(0.5).mul_(2.0**-32).clamp_(max=HIGHEST)


def philox(
    counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Philox 4x32-10 on 32-bit words held in int64 tensors, which broadcast."""
    (c0, c1, c2, c3), (k0, k1) = counter, key
    for _ in range(10):
        # A product wraps beyond 63 bits; its two words are right all the same.
        left, right = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = (right >> 32 & WORD) ^ c1 ^ k0, right & WORD, (left >> 32 & WORD) ^ c3 ^ k1, left & WORD
        k0, k1 = k0 + 0x9E3779B9 & WORD, k1 + 0xBB67AE85 & WORD
    return c0, c1, c2, c3
