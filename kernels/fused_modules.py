"""A transformers model for a CUDA card: its own code, with the small operations fused and linear layers merged.

What is swapped belongs to the one model it is done to, and only what gives the original's result on a random
input. Off a card the modules compute the same in torch's operations.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn

from laban.kernels.fused_ops import is_close, rms_norm, rms_norm_reference, rotate_reference
from laban.kernels.merged_linear import merge_linears

ROTARY = "apply_rotary_pos_emb"  # the name it has in every transformers model that has it


@dataclass(frozen=True)
class Swapped:
    """How many of each: norms, and products that q, k, v or gate, up were merged into."""

    norms: int
    products: int


def install(model: nn.Module) -> Swapped:
    """Fuses the norms and gated MLPs of `model` and merges its linear layers, in place."""
    return Swapped(norms=fuse_norms(model), products=merge_linears(model))


class FusedNorm(nn.Module):
    """Root mean square normalization over the last dimension, from a transformers module that does it."""

    def __init__(self, weight: nn.Parameter, eps: float, unit_offset: bool) -> None:
        super().__init__()
        self.weight, self.eps, self.unit_offset = weight, eps, unit_offset

    def forward(self, x: Tensor) -> Tensor:
        """x [..., size]; of heads, [1, rows, heads, size] or [1, heads, rows, size] as they lie, without a copy."""
        if not x.is_cuda:
            return rms_norm_reference(x, self.weight, self.eps, self.unit_offset)
        if x.dim() == 4 and x.shape[0] == 1:
            return rms_norm(x[0], self.weight, self.eps, self.unit_offset)[None]
        rows = x.reshape(-1, x.shape[-1])
        return rms_norm(rows, self.weight, self.eps, self.unit_offset).view(x.shape)


@torch.no_grad()
def fuse_norms(module: nn.Module) -> int:
    """Replaces every norm under `module` that is one. Returns how many."""
    count = 0
    for name, child in list(module.named_children()):
        fused = _fused_norm(child)
        if fused is None:
            count += fuse_norms(child)
        else:
            setattr(module, name, fused)
            count += 1
    return count


def _fused_norm(norm: nn.Module) -> FusedNorm | None:
    """Of the kind that `norm` is, or None if it is of neither."""
    weight, eps = getattr(norm, "weight", None), getattr(norm, "variance_epsilon", getattr(norm, "eps", None))
    if not (type(norm).__name__.endswith("RMSNorm") and isinstance(weight, nn.Parameter) and isinstance(eps, float)):
        return None
    if weight.dim() != 1:
        return None
    x = torch.randn(3, weight.shape[0], generator=torch.Generator().manual_seed(0)).to(weight)
    kinds = (FusedNorm(weight, eps, unit_offset) for unit_offset in (False, True))
    return next((fused for fused in kinds if is_close(fused(x), norm(x))), None)


@torch.no_grad()
def skip_rotary(model: nn.Module) -> int:
    """Leaves the rotation of queries and keys to the attention function, which sees them as projected.

    In place: every attention's own code is kept, and the function that it looks up by name returns what it is given;
    the rotary embedding modules keep their frequencies and compute no tables. The attention function must then
    rotate in the half-split layout, as `rotate_and_write` does.

    Returns:
        How many attentions; 0, and nothing changed, if one of them rotates in another way.
    """
    attentions = [child for child in model.modules() if _rotary_of(child) is not None]
    if not all(_is_half_split(_rotary_of(child)) for child in attentions):
        return 0
    for child in attentions:
        forward: Any = type(child).forward
        names = {**forward.__globals__, ROTARY: _no_rotation}
        patched = FunctionType(forward.__code__, names, forward.__name__, forward.__defaults__, forward.__closure__)
        patched.__kwdefaults__ = forward.__kwdefaults__
        child.forward = MethodType(patched, child)
    for child in model.modules():
        if attentions and type(child).__name__.endswith("RotaryEmbedding"):
            child.forward = _no_tables
    return len(attentions)


def _rotary_of(module: nn.Module) -> Callable[..., Any] | None:
    """The rotary function that the module's code looks up."""
    forward = type(module).forward
    if not isinstance(forward, FunctionType) or ROTARY not in forward.__code__.co_names:
        return None
    return forward.__globals__.get(ROTARY)


def _is_half_split(rotary: Callable[..., Any] | None) -> bool:
    """Whether `rotary`, on a random input, rotates the two halves of a head against each other."""
    if rotary is None:
        return False
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(1, heads, 5, 16, generator=generator) for heads in (4, 2))
    angles = torch.randn(5, 8, generator=generator)
    cos, sin = (f(torch.cat((angles, angles), -1))[None] for f in (torch.cos, torch.sin))
    try:
        found = rotary(q, k, cos, sin)
    except (TypeError, ValueError, RuntimeError):  # one of another kind
        return False
    expected = (
        rotate_reference(x[0].transpose(0, 1), angles.cos(), angles.sin()).transpose(0, 1)[None] for x in (q, k)
    )
    return all(is_close(a, b) for a, b in zip(found, expected, strict=True))


def _no_rotation(q: Tensor, k: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
    return q, k


def _no_tables(x: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
    """Something for the layers to pass on."""
    return x, x
