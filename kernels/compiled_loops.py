"""What `compiled_ops` compiles: loops over rows, in place of vectors of operations. float32 only."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
# Sums may be regrouped into vectors; infinities and not-a-numbers keep their meaning.
jit: Any = numba.njit(fastmath={"reassoc", "contract", "nsz", "arcp"}, cache=True)


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
