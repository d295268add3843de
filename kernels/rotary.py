"""Turning a query instead of moving a key.

Keys stay rotated for the position `s` at which they were encoded. A query at position `p` that reads them
`d` positions further on is turned by `-d`: R(p - d) q . R(s) k = R(p) q . R(s + d) k.
"""

from __future__ import annotations

import torch
from torch import Tensor


def turn_tables(offsets: Tensor, inv_freq: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosines and sines that turn a rotated vector back by `offsets`.

    Args:
        offsets: [num_rows] int64, positions to turn back by (negative turns forward).
        inv_freq: [rotary_dim / 2] the model's inverse frequencies.
        dtype: of the result. Angles are computed in float64: an offset of thousands times a frequency
            near one leaves float32 only three decimals.

    Returns:
        cos, sin: [num_rows, 1, rotary_dim].
    """
    angles = -offsets.to(torch.float64)[:, None] * inv_freq.to(torch.float64)[None, :]
    angles = torch.cat((angles, angles), dim=-1)[:, None, :]
    return angles.cos().to(dtype), angles.sin().to(dtype)


def turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates the first rotary_dim channels of each head, in the half-split layout of Llama and its kin.

    Args:
        x: [num_rows, num_heads, head_dim].
        cos, sin: [num_rows, 1, rotary_dim].
    """
    rotary_dim = cos.shape[-1]
    rotated = x[..., :rotary_dim]
    first, second = rotated.chunk(2, dim=-1)
    turned = rotated * cos + torch.cat((-second, first), dim=-1) * sin
    if rotary_dim == x.shape[-1]:
        return turned
    return torch.cat((turned, x[..., rotary_dim:]), dim=-1)
