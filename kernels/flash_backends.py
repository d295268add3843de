"""FlashAttention as others ship it: which one to use, and one way to call them all.

What is installed is used only after it gave the reference's result on a small problem: versions differ in what they
are asked for, in what they return, and in the log-sum-exp of a row with no key.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from laban.kernels.view_attention import attention_backend, partial_attention_reference

log = logging.getLogger(__name__)

# (q [total_q, heads, dim], k, v [total_k, kv_heads, dim], cu_q, cu_k [num_sequences + 1] int32, max_q, max_k, causal,
# scale) -> (out [total_q, heads, dim], lse float32 [total_q, heads], -inf where a row has no key).
Varlen = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, int, int, bool, float], tuple[Tensor, Tensor]]
# The same of one causal run: (q, k, v, scale).
CausalRun = Callable[[Tensor, Tensor, Tensor, float], tuple[Tensor, Tensor]]

LSE_FLAGS = ("return_softmax_lse", "return_attn_probs", "return_lse")  # one that takes none returns it anyway
MIN_RUN_TOKENS = 1024  # a run shorter than this is none of cuDNN's
RUN_MULTIPLE = 512  # cuDNN builds a plan, for tens of milliseconds, for every length that it first sees


@dataclass(frozen=True, slots=True)
class FlashBackend:
    name: str
    varlen: Varlen | None  # None: tile by tile, as `attend` does
    causal_run: CausalRun | None = None  # what takes long causal runs, one by one, in place of `varlen`


def pick_flash(device: torch.device, dtype: torch.dtype, head_dim: int, name: str | None = None) -> FlashBackend:
    """The best backend that works here, or the one called `name`. Runs a small problem on the device: for start only.

    Raises:
        ValueError: there is no `name`, or it does not work here.
    """
    if name == "reference":
        return REFERENCE
    names = []
    for backend in _installed(device, dtype):
        if name in (None, backend.name) and works(backend, device, dtype, head_dim):
            return backend
        names.append(backend.name)
    raise ValueError(f"no attention backend {name!r} works with {dtype} heads of {head_dim} on {device}: {names}")


def varlen_reference(
    q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor, max_q: int, max_k: int, causal: bool, scale: float
) -> tuple[Tensor, Tensor]:
    """The definition of a `Varlen` in plain torch, in float32, a sequence at a time. Waits for the device."""
    out, lse = torch.zeros_like(q), q.new_full(q.shape[:2], -torch.inf, dtype=torch.float32)
    group = q.shape[1] // k.shape[1]
    precise = torch.promote_types(q.dtype, torch.float32)
    for (q_begin, q_end), (k_begin, k_end) in zip(pairwise(cu_q.tolist()), pairwise(cu_k.tolist()), strict=True):
        if k_begin == k_end:
            continue
        queries = q[q_begin:q_end].transpose(0, 1).to(precise)
        keys, values = (x[k_begin:k_end].transpose(0, 1).repeat_interleave(group, dim=0).to(precise) for x in (k, v))
        part, part_lse = partial_attention_reference(queries[None], keys[None], values[None], causal, scale)
        out[q_begin:q_end], lse[q_begin:q_end] = part[0].transpose(0, 1), part_lse[0].T
    return out, lse


REFERENCE = FlashBackend("reference", varlen_reference)


def works(backend: FlashBackend, device: torch.device, dtype: torch.dtype, head_dim: int) -> bool:
    """Whether `backend` gives the reference's results, rows without a key included."""
    if backend.varlen is None or backend is REFERENCE:
        return True
    generator = torch.Generator(device).manual_seed(0)

    def normal(tokens: int, heads: int) -> Tensor:
        return torch.randn(tokens, heads, head_dim, generator=generator, device=device, dtype=dtype)

    scale = head_dim**-0.5
    try:
        # As many rows as heads in the first: a log-sum-exp that lies the other way must not pass by its shape.
        for lengths_q, lengths_k, causal in (
            ([3, 1], [5, 140], False),
            ([5, 2, 3], [9, 0, 130], False),
            ([70, 5], [70, 5], True),
        ):
            q, k, v = normal(sum(lengths_q), 4), normal(sum(lengths_k), 2), normal(sum(lengths_k), 2)
            cu_q, cu_k = cumulated(lengths_q, device), cumulated(lengths_k, device)
            given = (cu_q, cu_k, max(lengths_q), max(lengths_k), causal, scale)
            _same(backend.varlen(q, k, v, *given), varlen_reference(q, k, v, *given))
        if backend.causal_run is not None:
            length = MIN_RUN_TOKENS + 1
            q, k, v, cu = normal(length, 4), normal(length, 2), normal(length, 2), cumulated([length], device)
            expected = varlen_reference(q, k, v, cu, cu, length, length, True, scale)
            _same(backend.causal_run(q, k, v, scale), expected)
    except Exception as error:  # whatever others' code raises, it is not to be used
        log.warning("attention backend %s is installed but does not work here: %s", backend.name, error)
        return False
    return True


def _same(found: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> None:
    """Within what 8 bits of mantissa leave of a sum of unit normals."""
    torch.testing.assert_close(found[0], expected[0], atol=0.03, rtol=0)
    torch.testing.assert_close(found[1], expected[1], atol=0.03, rtol=0)


def _installed(device: torch.device, dtype: torch.dtype) -> Iterator[FlashBackend]:
    """What may work here, the best first."""
    if _capability(device) and dtype in (torch.float16, torch.bfloat16):
        if _capability(device)[0] == 9 and (function := _function("flash_attn_interface", "flash_attn_varlen_func")):
            yield FlashBackend("flash-attention-3", _adapt_flash(function))
        if function := _function("flash_attn", "flash_attn_varlen_func"):
            yield FlashBackend("flash-attention-2", _adapt_flash(function))
        if function := _function("torch.nn.attention.varlen", "varlen_attn"):
            varlen = _adapt_torch(function, _function("torch.nn.attention.varlen", "AuxRequest"))
            yield FlashBackend("torch-varlen", varlen)
            yield FlashBackend("cudnn", varlen, _cudnn_run)
    elif device.type == "cuda":
        yield REFERENCE
    yield FlashBackend(attention_backend(device, dtype), None)


def _capability(device: torch.device) -> tuple[int, ...]:
    """Of a CUDA card: (9, 0) is a Hopper. Empty for anything else."""
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else ()


def _function(module: str, name: str) -> Callable[..., Any] | None:
    try:
        found: Callable[..., Any] | None = getattr(import_module(module), name, None)
    except (ImportError, OSError, RuntimeError) as error:  # not installed, or built for another torch or driver
        log.debug("no %s: %s", module, error)
        return None
    return found


def _parameters(function: Callable[..., Any]) -> frozenset[str]:
    try:
        return frozenset(inspect.signature(function).parameters)
    except (TypeError, ValueError):  # a builtin that does not say
        return frozenset()


def _adapt_flash(function: Callable[..., Any]) -> Varlen:
    """Of FlashAttention 2, or of 3 and its kin."""
    options = {flag: True for flag in LSE_FLAGS if flag in _parameters(function)}

    def varlen(
        q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor, max_q: int, max_k: int, causal: bool, scale: float
    ) -> tuple[Tensor, Tensor]:
        out, lse, *_ = function(
            q,
            k,
            v,
            cu_seqlens_q=cu_q,
            cu_seqlens_k=cu_k,
            max_seqlen_q=max_q,
            max_seqlen_k=max_k,
            softmax_scale=scale,
            causal=causal,
            **options,
        )
        return out, _by_row(lse)

    return varlen


def _adapt_torch(function: Callable[..., Any], aux_request: Callable[..., Any] | None) -> Varlen:
    """Of torch itself. 2.10 has `is_causal`, later ones a window instead; 2.12 wants grouped heads announced."""
    known = _parameters(function)
    options: dict[str, Any] = {"return_aux": aux_request(lse=True)} if aux_request else {}
    if "enable_gqa" in known:
        options["enable_gqa"] = True
    causal_option = {"is_causal": True} if "is_causal" in known else {"window_size": (-1, 0)}

    def varlen(
        q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor, max_q: int, max_k: int, causal: bool, scale: float
    ) -> tuple[Tensor, Tensor]:
        more = options | causal_option if causal else options
        out, lse, *_ = function(q, k, v, cu_q, cu_k, max_q, max_k, scale=scale, **more)
        return out, _by_row(lse)

    return varlen


def _by_row(lse: Tensor) -> Tensor:
    """[heads, total_q] as they return it -> [total_q, heads], with -inf for what has no key, where some have +inf."""
    return lse.nan_to_num_(nan=torch.nan, posinf=-torch.inf, neginf=-torch.inf).T


def _cudnn_run(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """One causal run by cuDNN. What is added at the end to get a length that it knows, no row before it sees."""
    num_tokens, num_heads, _ = q.shape
    added = -num_tokens % RUN_MULTIPLE
    group = num_heads // k.shape[1]
    q4, k4, v4 = (
        pad(x, (0, 0, 0, 0, 0, added)).transpose(0, 1)[None]
        for x in (q, k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1))
    )
    out, lse, *_ = torch.ops.aten._scaled_dot_product_cudnn_attention(
        q4, k4, v4, None, True, 0.0, True, False, scale=scale
    )
    return out[0, :, :num_tokens].transpose(0, 1), lse.reshape(num_heads, -1)[:, :num_tokens].T


def cumulated(lengths: Sequence[int], device: torch.device) -> Tensor:
    """[0, l0, l0 + l1, ...] int32"""
    sums = torch.tensor(list(accumulate(lengths, initial=0)), dtype=torch.int32)
    return sums.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else sums
