"""Checks of the fused operations: each against its definition in float64, on random inputs, its outputs poisoned.

The unit tests run them in Triton's interpreter, tests/gpu on a card. What an operation may not read or write is NaN.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor
from transformers import AttentionInterface, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface

from laban.actors.engine.layers import layer_kinds
from laban.kernels import fused_ops
from laban.kernels.fused_modules import install, skip_rotary
from laban.kernels.mixed_copy import MixedCopy, Part, Rotation, copy_mixed_reference, launch_mixed, pack

NOISE = 5e-6  # of float32 arithmetic on numbers around one


@contextmanager
def poisoned() -> Iterator[None]:
    """Whatever is allocated uninitialized is NaN."""

    def nans(*shape: Any, **options: Any) -> Tensor:
        return torch.full(shape[0] if len(shape) == 1 else shape, torch.nan, **options)

    with mock.patch.object(torch, "empty", nans):
        yield


def assert_rounded(found: Tensor, exact: Tensor, times: int = 1) -> None:
    """`found` is `exact` (float64) rounded `times` times to its dtype. NaN only where `exact` is."""
    eps = torch.finfo(found.dtype).eps
    torch.testing.assert_close(found.double(), exact, rtol=times * eps / 2 * 1.01 + NOISE, atol=NOISE, equal_nan=True)


def strided(x: Tensor, gap: int = 16) -> Tensor:
    """`x` with NaN after each row of its first dimension."""
    width = x[0].numel()
    base = torch.full((x.shape[0], width + gap), torch.nan, dtype=x.dtype, device=x.device)
    base[:, :width] = x.flatten(1)
    return base[:, :width].unflatten(1, x.shape[1:])


def check_rms_norm(num_rows: int, size: int, unit_offset: bool, dtype: torch.dtype, device: str) -> None:
    x, weight = strided(_normal(num_rows, size, dtype=dtype, device=device)), _normal(size, dtype=dtype, device=device)
    with poisoned():
        found = fused_ops.rms_norm(x, weight, 1e-5, unit_offset)
    exact = fused_ops.rms_norm_reference(x.double(), weight.double(), 1e-5, unit_offset)
    assert found.is_contiguous()
    assert_rounded(found, exact, times=1 if unit_offset else 2)


def check_norm_of_heads(num_rows: int, heads: int, dim: int, dtype: torch.dtype, device: str) -> None:
    """Heads as slices of a merged product, rows first (Qwen3) or heads first (Gemma 3)."""
    x, weight = strided(_normal(num_rows, heads, dim, dtype=dtype, device=device)), _normal(dim, device=device)
    exact = fused_ops.rms_norm_reference(x.double(), weight.double(), 1e-6, True)
    with poisoned():
        found = fused_ops.rms_norm(x, weight, 1e-6, True)
        swapped = fused_ops.rms_norm(x.transpose(0, 1), weight, 1e-6, True)
    assert_rounded(found, exact)
    assert_rounded(swapped, exact.transpose(0, 1))
    assert swapped.shape == (heads, num_rows, dim)
    assert swapped.transpose(0, 1).is_contiguous() or num_rows == 1


def check_add_rms_norm(num_rows: int, size: int, unit_offset: bool, dtype: torch.dtype, device: str) -> None:
    x, residual = (strided(_normal(num_rows, size, dtype=dtype, device=device), gap) for gap in (8, 24))
    weight = _normal(size, dtype=dtype, device=device)
    with poisoned():
        normed, total = fused_ops.add_rms_norm(x, residual, weight, 1e-5, unit_offset)
    assert_rounded(total, x.double() + residual.double())
    exact = fused_ops.rms_norm_reference(total.double(), weight.double(), 1e-5, unit_offset)
    assert_rounded(normed, exact, times=1 if unit_offset else 2)


def check_gated(num_rows: int, size: int, activation: fused_ops.Activation, dtype: torch.dtype, device: str) -> None:
    gate_up = strided(_normal(num_rows, 2 * size, dtype=dtype, device=device) * 3)
    gate_up[0, :3] = torch.tensor([-80.0, 80.0, 0.0])
    with poisoned():
        found = fused_ops.gated(gate_up, activation)
    assert_rounded(found, fused_ops.gated_reference(gate_up.double(), activation))


def check_turn_table(num_rows: int, half: int, frequencies: torch.dtype, device: str) -> None:
    offsets = torch.randint(-1_000_000, 1_000_001, (num_rows,), dtype=torch.int32)
    offsets[:3] = torch.tensor([1_000_000, -1_000_000, 0])[:num_rows]
    inv_freq = (1 / 500_000 ** (torch.arange(half).double() / half)).to(frequencies)
    exact = torch.empty(2, num_rows, half, dtype=torch.float64)
    fused_ops.turn_table_reference(offsets, inv_freq, 1.2, exact[0], exact[1])
    buffers = torch.full((2, num_rows + 2, half), torch.nan, device=device)
    cos, sin = buffers[:, 1:-1]
    fused_ops.turn_table(offsets.to(device), inv_freq.to(device), 1.2, cos, sin)
    torch.testing.assert_close(buffers[:, 1:-1].double().cpu(), exact, atol=1e-6, rtol=0)
    assert buffers[:, [0, -1]].isnan().all()


def check_rotate_and_write(
    num_rows: int, heads: int, kv_heads: int, dim: int, rotary_dim: int, dtype: torch.dtype, device: str
) -> None:
    """Slices of one merged product; some rows are padding; what lies between the slots written stays NaN."""
    width = (heads + 2 * kv_heads) * dim
    qkv = strided(_normal(num_rows, width, dtype=dtype, device=device))
    parts = qkv.split([heads * dim, kv_heads * dim, kv_heads * dim], -1)
    q, k, v = (part.unflatten(-1, (-1, dim)) for part in parts)
    angles = torch.rand(num_rows, rotary_dim // 2, device=device) * 6.3
    cos, sin = angles.cos(), angles.sin()
    slots = torch.randperm(2 * num_rows + 1, device=device)[:num_rows].int()
    slots[num_rows // 2 + 1 :: 3] = -1
    # A slot before the first: a padding row's -1 must not be written there either.
    guarded = torch.full((2, 2 * num_rows + 2, kv_heads, dim), torch.nan, dtype=dtype, device=device)
    exact_guarded = guarded.double()
    pools, exact_pools = guarded[:, 1:], exact_guarded[:, 1:]
    exact = fused_ops.rotate_and_write_reference(
        q.double(), k.double(), v.double(), cos.double(), sin.double(), exact_pools[0], exact_pools[1], slots
    )
    with poisoned():
        found = fused_ops.rotate_and_write(q, k, v, cos, sin, pools[0], pools[1], slots)
    assert found.is_contiguous()
    assert_rounded(found, exact)
    assert_rounded(guarded, exact_guarded)
    assert torch.equal(pools[1][slots[slots >= 0].long()], v[slots >= 0])


def mixed_copies(
    lengths: list[tuple[int, int]], page_size: int, num_pages: int, rng: np.random.Generator
) -> list[MixedCopy]:
    """Of so many tokens and parts each. Parts may share pages, what is written shares none; one is its only part."""
    pages = rng.permutation(num_pages).astype(np.int32)
    copies = []
    for num_tokens, num_parts in lengths:
        count = -(-num_tokens // page_size)
        own, pages = pages[:count], pages[count:]
        weights = rng.dirichlet(np.ones(num_parts)).tolist() if num_parts > 1 else [1.0]
        parts = [(rng.integers(-5000, 5000), weight) for weight in weights]
        copies.append((own, num_tokens, parts))
    return [
        MixedCopy(own, n, tuple(Part(rng.permutation(pages)[: len(own) + 1], int(at), w) for at, w in parts))
        for own, n, parts in copies
    ]


def check_copy_mixed(
    lengths: list[tuple[int, int]],
    kv_heads: int,
    dim: int,
    rotary_dim: int,
    dtype: torch.dtype,
    device: str,
    page_size: int = 16,
    **options: int,
) -> None:
    """Copies of so many tokens and parts in one launch a rotation; all other slots stay as they are."""
    layers, num_pages = 3, 2 * sum(-(-num_tokens // page_size) for num_tokens, _ in lengths) + 3
    pools = _normal(2, layers, num_pages * page_size, kv_heads, dim, dtype=dtype, device=device)
    exact = pools.double()
    copies = mixed_copies(lengths, page_size, num_pages, np.random.default_rng(len(lengths)))
    unread = torch.ones(num_pages, dtype=torch.bool)
    unread[np.concatenate([part.pages for copy in copies for part in copy.parts])] = False
    for pool in (*pools, *exact):  # of pages that nobody reads
        pool.unflatten(1, (num_pages, page_size))[:, unread.to(device)] = torch.nan
    frequencies = [base ** -(np.arange(0, rotary_dim, 2) / rotary_dim) for base in (1e4, 5e5)]
    rotations = [
        Rotation(torch.tensor(own, dtype=torch.int32, device=device), inv_freq)
        for own, inv_freq in zip(([0, 2], [1]), frequencies, strict=True)
    ]
    packed = pack(copies, frequencies, page_size).to(torch.device(device))
    for number, rotation in enumerate(rotations):
        launch_mixed(pools[0], pools[1], packed, number, rotation.layers, **options)
    copy_mixed_reference(exact[0], exact[1], copies, rotations, page_size)
    assert_rounded(pools, exact)


def fused(model: PreTrainedModel) -> PreTrainedModel:
    """A copy of `model` with everything swapped, rotating in the attention function."""
    model = copy.deepcopy(model)
    num_layers = len(model.base_model.layers)
    swapped = install(model)
    assert swapped.products == 2 * num_layers
    assert swapped.norms > 0
    assert not any(type(module).__name__.endswith("RMSNorm") for module in model.modules())
    assert skip_rotary(model) == num_layers
    model.set_attn_implementation("laban_fused_check")
    return model


@torch.inference_mode()
def logits_of_both(model: PreTrainedModel, num_tokens: int, start: int) -> tuple[Tensor, Tensor]:
    """[num_tokens, vocab_size] of `model` as it is and of its fused copy, of the same random tokens."""
    model.set_attn_implementation("eager")
    ids = torch.randint(0, model.config.vocab_size, (1, num_tokens), device=model.device)
    positions = torch.arange(start, start + num_tokens, device=model.device)[None]
    expected = model(input_ids=ids, position_ids=positions, use_cache=False).logits[0]
    swapped = fused(model)
    found = swapped(
        input_ids=ids, position_ids=positions, use_cache=False, check_kinds=layer_kinds(swapped), check_at=positions[0]
    ).logits[0]
    return found, expected


def _attention(
    module: Any,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Any,
    *,
    scaling: float,
    check_kinds: Any,
    check_at: Tensor,
    **_: Any,
) -> tuple[Tensor, None]:
    """Rotates, writes into a pool and attends over what it finds there. Off a card, by the operations' definitions."""
    q, k, v = (x[0].transpose(0, 1) for x in (q, k, v))
    n, heads = q.shape[:2]
    kinds, indices = check_kinds
    kind = kinds[indices[module.layer_idx]]
    cos, sin = torch.empty(2, n, len(kind.inv_freq), device=q.device)
    fill = fused_ops.turn_table if q.is_cuda else fused_ops.turn_table_reference
    fill(check_at.int(), kind.inv_freq, kind.attention_scaling, cos, sin)
    k_pool, v_pool = torch.full((2, n + 3, *k.shape[1:]), torch.nan, dtype=k.dtype, device=k.device)
    slots = torch.randperm(n + 3, device=q.device)[:n]
    rotate = fused_ops.rotate_and_write if q.is_cuda else fused_ops.rotate_and_write_reference
    q = rotate(q, k, v, cos, sin, k_pool, v_pool, slots.int())
    keys, values = (pool[slots].repeat_interleave(heads // k.shape[1], 1) for pool in (k_pool, v_pool))
    scores = torch.einsum("nhd,mhd->hnm", q.float(), keys.float()) * scaling
    back = check_at[:, None] - check_at
    hidden = (back < 0) | (back >= (kind.window or n))
    weights = scores.masked_fill(hidden, -torch.inf).softmax(-1)
    return torch.einsum("hnm,mhd->nhd", weights, values.float()).to(q.dtype)[None], None


AttentionInterface.register("laban_fused_check", _attention)
AttentionMaskInterface.register("laban_fused_check", lambda *a, **k: None)


def _normal(*shape: int, dtype: torch.dtype = torch.float32, device: str) -> Tensor:
    return torch.randn(*shape, device=device).to(dtype)
