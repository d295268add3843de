"""The row kernel for a CPU, compiled by numba at its first use and kept in numba's cache. float32 only.

It runs on one thread. A second one would have to take its core from OpenMP's, which waits for the next
operation by spinning: tried, that gains nothing, and without the spinning every other operation is slower.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import numpy as np
from numpy.typing import NDArray

from laban.kernels.compiled_loops import Floats, jit

Ints = NDArray[np.int64]


@cache
def make_fill_rows(num_kv_heads: int, group: int, head_dim: int) -> Callable[..., None]:
    """The kernel for one model's heads: loops of known length are a fifth faster."""
    num_heads = num_kv_heads * group

    @jit  # type: ignore[untyped-decorator]
    def fill_rows(
        q: Floats,  # [num_tokens, num_heads, head_dim]
        k_pool: Floats,  # [num_slots, num_kv_heads, head_dim]
        v_pool: Floats,
        tokens: Ints,
        starts: Ints,
        first: Ints,
        length: Ints,
        turns: Ints,
        turn_cos: Floats,  # [num_turns, 1, rotary_dim]
        turn_sin: Floats,
        out: Floats,  # [num_rows, num_heads, head_dim]
        lse: Floats,  # [num_rows, num_heads]
        scale: float,
    ) -> None:
        """Fills `out` and `lse`."""
        half = turn_cos.shape[2] // 2
        most = 0
        for row in range(len(tokens)):
            count = 0
            for run in range(starts[row], starts[row + 1]):
                count += length[run]
            most = max(most, count)
        weights = np.empty((num_heads, most), np.float32)
        exponents = np.empty(most, np.int32)
        powers = exponents.view(np.float32)
        query = np.empty((num_heads, head_dim), np.float32)
        highest = np.empty(num_heads, np.float32)

        for row in range(len(tokens)):
            highest[:] = -np.inf
            turned_by = -2
            num_keys = 0
            for run in range(starts[row], starts[row + 1]):
                if turns[run] != turned_by:
                    turned_by = turns[run]
                    for head in range(num_heads):
                        for d in range(head_dim):
                            query[head, d] = q[tokens[row], head, d] * np.float32(scale)
                        if turned_by >= 0:
                            for d in range(half):
                                a, b = query[head, d], query[head, d + half]
                                query[head, d] = a * turn_cos[turned_by, 0, d] - b * turn_sin[turned_by, 0, d]
                                query[head, d + half] = (
                                    b * turn_cos[turned_by, 0, d + half] + a * turn_sin[turned_by, 0, d + half]
                                )
                for slot in range(first[run], first[run] + length[run]):
                    for kv_head in range(num_kv_heads):
                        key = k_pool[slot, kv_head]
                        for head in range(kv_head * group, (kv_head + 1) * group):
                            score = np.float32(0)
                            for d in range(head_dim):
                                score += query[head, d] * key[d]
                            weights[head, num_keys] = score
                            highest[head] = max(highest[head], score)
                    num_keys += 1
            for head in range(num_heads):
                scores = weights[head]
                for i in range(num_keys):
                    # e^x = 2^n e^r with |r| < ln 2 / 2: n becomes the exponent's bits, e^r a polynomial (Cephes' expf).
                    x = scores[i] - highest[head]
                    x = np.float32(-87) if x < np.float32(-87) else x  # what is no number stays none
                    n = np.floor(x * np.float32(1.4426950408889634) + np.float32(0.5))
                    exponents[i] = (np.int32(n) + np.int32(127)) << np.int32(23)
                    r = x - n * np.float32(0.693359375) + n * np.float32(2.12194440e-4)
                    p = np.float32(1.9875691500e-4)
                    p = p * r + np.float32(1.3981999507e-3)
                    p = p * r + np.float32(8.3334519073e-3)
                    p = p * r + np.float32(4.1665795894e-2)
                    p = p * r + np.float32(1.6666665459e-1)
                    p = p * r + np.float32(5.0000001201e-1)
                    scores[i] = p * r * r + r + np.float32(1)
                total = np.float32(0)
                for i in range(num_keys):
                    scores[i] *= powers[i]
                    total += scores[i]
                lse[row, head] = highest[head] + math.log(total)
                share = np.float32(1) / total
                for i in range(num_keys):
                    scores[i] *= share
                out[row, head] = 0
            done = 0
            for run in range(starts[row], starts[row + 1]):
                for kv_head in range(num_kv_heads):
                    i = 0
                    # Four keys at a time: a quarter of the loads and stores of the sum.
                    while i + 4 <= length[run]:
                        v0 = v_pool[first[run] + i, kv_head]
                        v1 = v_pool[first[run] + i + 1, kv_head]
                        v2 = v_pool[first[run] + i + 2, kv_head]
                        v3 = v_pool[first[run] + i + 3, kv_head]
                        for head in range(kv_head * group, (kv_head + 1) * group):
                            w0, w1 = weights[head, done + i], weights[head, done + i + 1]
                            w2, w3 = weights[head, done + i + 2], weights[head, done + i + 3]
                            summed = out[row, head]
                            for d in range(head_dim):
                                summed[d] += w0 * v0[d] + w1 * v1[d] + w2 * v2[d] + w3 * v3[d]
                        i += 4
                    while i < length[run]:
                        value = v_pool[first[run] + i, kv_head]
                        for head in range(kv_head * group, (kv_head + 1) * group):
                            weight = weights[head, done + i]
                            summed = out[row, head]
                            for d in range(head_dim):
                                summed[d] += weight * value[d]
                        i += 1
                done += length[run]

    kernel: Callable[..., None] = fill_rows
    return kernel
