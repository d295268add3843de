"""Copies of several encodings of the same tokens, each moved to one place, as their weighted mean.

One pass over the pool for all that is to be copied: every source's page is read once, turned to the place that is
written, and added up in float32. What there is to do goes to the card in one piece, and nothing waits for it.
Attention turns queries, so an encoding that is only read elsewhere is never copied; what is mixed has to be.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from laban.kernels.fused_ops import BLOCK_ELEMENTS, head_blocks, kernels, rotate_reference

try:
    from laban.kernels.compiled_loops import mix_rows
except ImportError:  # numba is not installed, or not for this machine
    mix_rows = None

MAX_PARTS = 4
ROW_INTS = 8
"""Of a page that is written: a page of each part (-1 for none), itself, its tokens, and which copy it is of."""
TARGET, TOKENS, COPY = MAX_PARTS, MAX_PARTS + 1, MAX_PARTS + 2

Pages = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Part:
    """An encoding, the positions that it is moved by, of either sign, and its weight."""

    pages: Pages  # [num_pages or more]
    offset: int
    weight: float


@dataclass(frozen=True, slots=True)
class MixedCopy:
    """The weighted mean of 1 to MAX_PARTS encodings of the same tokens, none of which is written by any copy.

    Their weights add up to 1; of a single one it is 1, and its values are copied bit by bit.
    """

    pages: Pages  # [num_pages or more], written
    num_tokens: int
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class Rotation:
    """Layers that rotate alike."""

    layers: Tensor  # [num_layers_alike] int32, on the pool's device
    inv_freq: NDArray[np.float64]  # [rotary_dim / 2]


@dataclass(frozen=True, slots=True)
class Packed:
    """Copies as the kernel takes them, one after another in a buffer: rows, weights, and the turns of each rotation."""

    buffer: Tensor  # int32
    num_rows: int
    num_copies: int
    halves: tuple[int, ...]  # rotary_dim / 2 of each rotation
    page_size: int

    def to(self, device: torch.device) -> Packed:
        """The same on a device. From pinned memory, which torch keeps until it was read, the host does not wait."""
        return replace(self, buffer=self.buffer.to(device, non_blocking=True))

    def of(self, rotation: int) -> tuple[Tensor, Tensor, Tensor]:
        """Rows [num_rows, ROW_INTS] int32, weights [num_copies, MAX_PARTS] float32, and the rotation's turns
        [num_copies, MAX_PARTS, 2, rotary_dim / 2] float32: weighted cosines, then sines. Flat."""
        rest, num_parts = ROW_INTS * self.num_rows, MAX_PARTS * self.num_copies
        first = rest + num_parts * (1 + 2 * sum(self.halves[:rotation]))
        size = 2 * num_parts * self.halves[rotation]
        floats = self.buffer.view(torch.float32)
        return self.buffer[:rest], floats[rest : rest + num_parts], floats[first : first + size]


def copy_mixed(
    k_pool: Tensor, v_pool: Tensor, copies: Sequence[MixedCopy], rotations: Sequence[Rotation], page_size: int
) -> None:
    """key[copy] = sum_i weight_i R(offset_i) key[part_i]; values without R. In float32, rounded once.

    On a card it is one launch a rotation, which the host does not wait for. Bytes of each copy:
    2 * num_layers * num_tokens * num_kv_heads * head_dim * itemsize, once for each part and once to write.

    Args:
        k_pool, v_pool: [num_layers, num_slots, num_kv_heads, head_dim], dense; a page is `page_size` slots.
        rotations: of all layers, each in one of them.
    """
    if not copies:
        return
    if k_pool.is_cuda:
        packed = pack(copies, [rotation.inv_freq for rotation in rotations], page_size, pinned=True).to(k_pool.device)
        for number, rotation in enumerate(rotations):
            launch_mixed(k_pool, v_pool, packed, number, rotation.layers)
    elif mix_rows is not None and k_pool.dtype == torch.float32:
        _mix_in_threads(k_pool, v_pool, copies, rotations, page_size)
    else:
        copy_mixed_reference(k_pool, v_pool, copies, rotations, page_size)


def pack(
    copies: Sequence[MixedCopy], inv_freqs: Sequence[NDArray[np.float64]], page_size: int, *, pinned: bool = False
) -> Packed:
    """`copies` in one buffer, on the host. `inv_freqs` are those of the rotations. Angles are computed in float64."""
    counts = [-(-copy.num_tokens // page_size) for copy in copies]
    num_rows, halves = sum(counts), tuple(len(inv_freq) for inv_freq in inv_freqs)
    num_ints = ROW_INTS * num_rows + MAX_PARTS * len(copies) * (1 + 2 * sum(halves))
    packed = Packed(
        torch.empty(num_ints, dtype=torch.int32, pin_memory=pinned), num_rows, len(copies), halves, page_size
    )
    rows = packed.of(0)[0].numpy().reshape(num_rows, ROW_INTS)
    rows[:], rows[:, TOKENS] = -1, page_size
    offsets, weights = np.zeros((2, len(copies), MAX_PARTS))
    first = 0
    for number, (copy, count) in enumerate(zip(copies, counts, strict=True)):
        assert 1 <= len(copy.parts) <= MAX_PARTS
        own = rows[first : first + count]
        own[:, TARGET], own[:, COPY] = copy.pages[:count], number
        own[-1, TOKENS] = copy.num_tokens - (count - 1) * page_size
        for i, part in enumerate(copy.parts):
            own[:, i] = part.pages[:count]
            offsets[number, i], weights[number, i] = part.offset, part.weight
        first += count
    for number, inv_freq in enumerate(inv_freqs):
        angles = offsets[..., None] * inv_freq
        _, all_weights, turns = (each.numpy() for each in packed.of(number))
        all_weights[:] = weights.reshape(-1)
        turned = turns.reshape(*weights.shape, 2, len(inv_freq))
        turned[:, :, 0], turned[:, :, 1] = weights[..., None] * np.cos(angles), weights[..., None] * np.sin(angles)
    return packed


def launch_mixed(k_pool: Tensor, v_pool: Tensor, packed: Packed, number: int, layers: Tensor, **options: int) -> None:
    """`layers` [num_layers_alike] int32 are those of rotation `number`; all on one device. `options` are for tuning."""
    _, _, num_kv_heads, dim = k_pool.shape
    assert k_pool.is_contiguous()
    assert v_pool.is_contiguous()
    sizes = {**_sizes(packed.page_size, num_kv_heads, dim, packed.halves[number]), **options}
    blocks = -(-sizes["UNITS_PER_PAGE"] // sizes["UNITS"])
    kernels().copy_mixed[(packed.num_rows * blocks, len(layers))](
        k_pool, v_pool, layers, *packed.of(number), k_pool.stride(0), **sizes
    )


@cache
def _sizes(page_size: int, num_kv_heads: int, dim: int, half: int) -> dict[str, int]:
    """What the kernel is compiled for. Not to be changed."""
    blocks = head_blocks(num_kv_heads, dim, half)
    del blocks["HEADS"]
    # A unit is one token's head: all of a page lie in one piece. With fewer warps a program's parts meet at barriers.
    units = max(1, 2 * BLOCK_ELEMENTS // blocks["DIM_BLOCK"])
    own = {"UNITS_PER_PAGE": page_size * num_kv_heads, "PARTS": MAX_PARTS, "ROW_INTS": ROW_INTS, "UNITS": units}
    return {**own, **blocks, "num_warps": 4}


def slots_of(pages: Pages, num_tokens: int, page_size: int) -> NDArray[np.int64]:
    """[num_tokens] of the first tokens in `pages`."""
    count = -(-num_tokens // page_size)
    slots = pages[:count, None].astype(np.int64) * page_size + np.arange(page_size)
    return slots.reshape(-1)[:num_tokens]


def _mix_in_threads(
    k_pool: Tensor, v_pool: Tensor, copies: Sequence[MixedCopy], rotations: Sequence[Rotation], page_size: int
) -> None:
    """The layers shared out over as many threads as torch has."""
    count = torch.get_num_threads()
    keys, values = k_pool.numpy(), v_pool.numpy()
    tasks = []
    for copy, rotation in product(copies, rotations):
        arrays = _arrays(copy, rotation, page_size)
        parts = np.array_split(rotation.layers.numpy(), min(count, len(rotation.layers)))
        tasks += [(keys, values, layers, *arrays) for layers in parts]
    under_way = [_threads(count).submit(mix_rows, *task) for task in tasks[1:]]
    mix_rows(*tasks[0])
    for done in under_way:
        done.result()


def _arrays(copy: MixedCopy, rotation: Rotation, page_size: int) -> tuple[NDArray[Any], ...]:
    """What `mix_rows` takes after the pools and layers."""
    angles = np.array([part.offset for part in copy.parts], np.float64)[:, None] * rotation.inv_freq
    return (
        np.stack([slots_of(part.pages, copy.num_tokens, page_size) for part in copy.parts]),
        slots_of(copy.pages, copy.num_tokens, page_size),
        np.cos(angles).astype(np.float32),
        np.sin(angles).astype(np.float32),
        np.array([part.weight for part in copy.parts], np.float32),
    )


@cache
def _threads(count: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count, "mix")


def copy_mixed_reference(
    k_pool: Tensor, v_pool: Tensor, copies: Sequence[MixedCopy], rotations: Sequence[Rotation], page_size: int
) -> None:
    """Layer by layer in float64. Arguments as `copy_mixed`."""
    device = k_pool.device
    for copy in copies:
        target = torch.from_numpy(slots_of(copy.pages, copy.num_tokens, page_size)).to(device)
        for rotation in rotations:
            inv_freq = torch.from_numpy(rotation.inv_freq).to(device)
            for layer in rotation.layers.tolist():
                keys, values = k_pool[layer], v_pool[layer]
                mixed_k = torch.zeros(keys[target].shape, dtype=torch.float64, device=device)
                mixed_v = torch.zeros_like(mixed_k)
                for part in copy.parts:
                    slots = torch.from_numpy(slots_of(part.pages, copy.num_tokens, page_size)).to(device)
                    angles = torch.full((len(slots), 1), part.offset, device=device).double() * inv_freq
                    mixed_k += part.weight * rotate_reference(keys[slots].double(), angles.cos(), angles.sin())
                    mixed_v += part.weight * values[slots].double()
                keys[target], values[target] = mixed_k.to(keys.dtype), mixed_v.to(values.dtype)
