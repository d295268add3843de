"""What `compiled_ops` compiles: loops over rows, in place of vectors of operations. float32 only."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Slots = NDArray[np.int64]
# Sums may be regrouped into vectors; infinities and not-a-numbers keep their meaning.
LOOSE = {"reassoc", "contract", "nsz", "arcp"}
jit: Any = numba.njit(fastmath=LOOSE, cache=True)
threaded: Any = numba.njit(fastmath=LOOSE, cache=True, nogil=True)


@jit  # type: ignore[untyped-decorator]
def normalize(x: Floats, weight: Floats, eps: float, out: Floats) -> None:
    """out[i] = weight * x[i] / sqrt(mean(x[i] ** 2) + eps); x, out [num_rows, hidden_size]"""
    num_rows, size = x.shape
    for row in range(num_rows):
        squares = np.float32(0)
        for i in range(size):
            squares += x[row, i] * x[row, i]
        factor = np.float32(1) / np.sqrt(squares / np.float32(size) + np.float32(eps))
        for i in range(size):
            out[row, i] = weight[i] * (x[row, i] * factor)


@jit  # type: ignore[untyped-decorator]
def rotate(x: Floats, cos: Floats, sin: Floats) -> None:
    """Rotates the halves of each head against each other.

    In place: x [num_rows, num_heads, head_dim]; cos, sin [num_rows, head_dim]. The layout is that of Llama and its kin.
    """
    num_rows, num_heads, head_dim = x.shape
    half = head_dim // 2
    for row in range(num_rows):
        for head in range(num_heads):
            for i in range(half):
                a, b = x[row, head, i], x[row, head, i + half]
                x[row, head, i] = a * cos[row, i] - b * sin[row, i]
                x[row, head, i + half] = b * cos[row, i + half] + a * sin[row, i + half]


@threaded  # type: ignore[untyped-decorator]
def mix_rows(
    k_pool: Floats,
    v_pool: Floats,
    layers: NDArray[np.int32],
    sources: Slots,
    targets: Slots,
    cos: Floats,
    sin: Floats,
    weights: Floats,
) -> None:
    """What `mixed_copy.launch_mixed` does, of one copy: a row is added up in the caches, written once.

    k_pool, v_pool [num_layers, num_slots, num_kv_heads, head_dim]; sources [num_sources, num_rows]; cos, sin
    [num_sources, rotary_dim / 2]
    """
    _, _, num_heads, dim = k_pool.shape
    num_sources, num_rows = sources.shape
    half = cos.shape[1]
    for layer in layers:
        keys, values = k_pool[layer], v_pool[layer]
        for row in range(num_rows):
            to_key, to_value = keys[targets[row]], values[targets[row]]
            for i in range(num_sources):
                key, value, weight = keys[sources[i, row]], values[sources[i, row]], weights[i]
                for head in range(num_heads):
                    for j in range(half):
                        c, s = weight * cos[i, j], weight * sin[i, j]
                        a, b = key[head, j], key[head, j + half]
                        first, second = a * c - b * s, b * c + a * s
                        if i == 0:
                            to_key[head, j], to_key[head, j + half] = first, second
                        else:
                            to_key[head, j] += first
                            to_key[head, j + half] += second
                    for j in range(2 * half, dim):
                        to_key[head, j] = weight * key[head, j] + (to_key[head, j] if i else np.float32(0))
                    for j in range(dim):
                        to_value[head, j] = weight * value[head, j] + (to_value[head, j] if i else np.float32(0))
