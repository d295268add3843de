"""Randomness that depends on a call's seed and the token's index alone, never on the batch."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def gumbel_noise(seed: int, index: int, vocab_size: int) -> Tensor:
    """Standard Gumbel noise [vocab_size] float32 for the `index`-th generated token of a call.

    argmax(logits + noise) then draws from softmax(logits). Philox is counter-based: the index is the
    counter's second word, so no two tokens share a stretch of the stream.
    """
    generator = np.random.Generator(np.random.Philox(key=seed & (2**64 - 1), counter=[0, index, 0, 0]))
    uniform = generator.random(vocab_size, dtype=np.float32)
    # random() gives [0, 1): keep away from 0, where the logarithm has no value.
    return torch.from_numpy(-np.log(-np.log(np.maximum(uniform, np.float32(1e-12)) * np.float32(1 - 1e-7))))
