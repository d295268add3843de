"""The small operations of a forward on a CPU, each one compiled call instead of six to ten of torch's.

Decoding is a few microseconds of arithmetic an operation and as many of calling it. What is swapped belongs to
the one model it is done to, and only what gives the original's result on a random input. numba compiles at
the first use and keeps what it compiled. Without numba nothing is swapped.
"""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn

try:
    from laban.kernels.compiled_loops import normalize, rotate
except ImportError:  # numba is not installed, or not for this machine
    normalize = rotate = None

ROTARY = "apply_rotary_pos_emb"  # the name it has in every transformers model that has it
Rotary = Callable[..., tuple[Tensor, Tensor]]


class CompiledNorm(nn.Module):
    """Root mean square normalization over the last dimension, from a transformers module that does it."""

    def __init__(self, norm: nn.Module, eps: float) -> None:
        super().__init__()
        self.weight: Tensor = norm.weight.detach()  # type: ignore[operator]
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """x [..., hidden_size] float32"""
        rows = x.reshape(-1, self.weight.shape[0])
        out = torch.empty_like(rows)
        normalize(rows.numpy(), self.weight.numpy(), self.eps, out.numpy())
        return out.view(x.shape)


@torch.no_grad()
def compile_norms(module: nn.Module) -> int:
    """Replaces every norm under `module` that is one. Returns how many."""
    count = 0
    for name, child in list(module.named_children()):
        if normalize is not None and (compiled := _compiled_norm(child)) is not None:
            setattr(module, name, compiled)
            count += 1
        else:
            count += compile_norms(child)
    return count


def _compiled_norm(norm: nn.Module) -> CompiledNorm | None:
    weight, eps = getattr(norm, "weight", None), getattr(norm, "variance_epsilon", getattr(norm, "eps", None))
    if not (type(norm).__name__.endswith("RMSNorm") and isinstance(weight, Tensor) and isinstance(eps, float)):
        return None
    if weight.dim() != 1 or weight.dtype != torch.float32 or weight.device.type != "cpu":
        return None
    compiled, x = CompiledNorm(norm, eps), torch.randn(3, weight.shape[0])
    return compiled if torch.allclose(compiled(x), norm(x), atol=1e-5) else None


@torch.no_grad()
def compile_rotary(module: nn.Module, head_dim: int) -> int:
    """Gives every attention under `module` a rotary embedding in one call, in place. Returns how many.

    The attention's own code is kept; what changes is the one function that it looks up by name.
    """
    if rotate is None:
        return 0
    count = 0
    for child in module.modules():
        forward = type(child).forward
        if not isinstance(forward, FunctionType) or ROTARY not in forward.__code__.co_names:
            continue
        theirs: Rotary | None = forward.__globals__.get(ROTARY)
        if theirs is None or not _is_rotary(theirs, head_dim):
            continue
        names = {**forward.__globals__, ROTARY: _compiled_rotary(theirs)}
        patched = FunctionType(forward.__code__, names, forward.__name__, forward.__defaults__, forward.__closure__)
        patched.__kwdefaults__ = forward.__kwdefaults__
        child.forward = MethodType(patched, child)
        count += 1
    return count


def _compiled_rotary(theirs: Rotary) -> Rotary:
    def rotary(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
        """q, k [1, heads, tokens, head_dim], changed in place; cos, sin [1, tokens, head_dim]."""
        rows = q[0].transpose(0, 1), k[0].transpose(0, 1)
        fits = q.shape[0] == 1 and cos.shape[-1] == q.shape[-1] and all(x.is_contiguous() for x in rows)
        if options or not fits or q.dtype != torch.float32:
            return theirs(q, k, cos, sin, **options)
        for x in rows:
            rotate(x.numpy(), cos[0].numpy(), sin[0].numpy())
        return q, k

    return rotary


def _is_rotary(theirs: Rotary, head_dim: int) -> bool:
    """Whether `theirs` rotates the two halves of a head, as `rotate` does."""
    angles = torch.randn(1, 5, head_dim // 2).repeat(1, 1, 2)
    q, k = torch.randn(2, 1, 5, 3, head_dim).transpose(2, 3).unbind(0)
    try:
        expected = theirs(q, k, angles.cos(), angles.sin())
    except (TypeError, ValueError, RuntimeError):  # one of another kind
        return False
    found = _compiled_rotary(theirs)(q, k, angles.cos(), angles.sin())
    return all(torch.allclose(a, b, atol=1e-5) for a, b in zip(found, expected, strict=True))
