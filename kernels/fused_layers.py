"""The decoder layers of a transformers model, with every residual addition part of the norm that follows it.

Between attention and MLP a layer adds what came out to what went in, and normalizes the sum: two launches that
`add_rms_norm` does in one, of the same bytes less one reading of the sum. The norm after a layer's last addition is
the next layer's first, or the model's last, so the additions can only be fused by walking the whole stack. Attentions
and MLPs stay the model's own modules.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from laban.kernels.fused_modules import FusedNorm
from laban.kernels.fused_ops import add_rms_norm, add_rms_norm_reference, is_close


@dataclass(frozen=True, slots=True, eq=False)
class FusedLayer:
    """One decoder layer: its module, and the norms around what it calls."""

    module: Any  # its `self_attn` and `mlp` are called
    before_attention: FusedNorm
    after_attention: FusedNorm | None  # of the output, before it is added (Gemma 3)
    before_mlp: FusedNorm
    after_mlp: FusedNorm | None
    layer_type: tuple[str, ...]  # that the rotary embedding wants to know, or nothing

    @classmethod
    def of(cls, module: nn.Module, layer_type: tuple[str, ...]) -> FusedLayer | None:
        """By the names of the children of `module`, or None. What it computes is for `FusedStack.of` to check."""
        norms = {name: child for name, child in module.named_children() if isinstance(child, FusedNorm)}
        first, second = norms.get("input_layernorm"), norms.get("post_attention_layernorm")
        before_mlp, after_mlp = norms.get("pre_feedforward_layernorm"), norms.get("post_feedforward_layernorm")
        if first is None or second is None or not hasattr(module, "self_attn") or not hasattr(module, "mlp"):
            return None
        if before_mlp is None:
            return cls(module, first, None, second, after_mlp, layer_type)
        return cls(module, first, second, before_mlp, after_mlp, layer_type)


@dataclass(frozen=True, slots=True, eq=False)
class FusedStack:
    """A base model's forward without a cache and without masks, from token ids to the last norm."""

    base: Any  # its embeddings are called
    layers: tuple[FusedLayer, ...]
    norm: FusedNorm

    @classmethod
    @torch.inference_mode()
    def of(cls, base: nn.Module) -> FusedStack | None:
        """The stack of `base`, whose norms are fused; None if it computes, on a random input, something else.

        Attentions and MLPs are not run (they may be shards that have to be asked together).
        """
        stack = cls._named(base)
        return stack if stack is not None and _agrees(stack) else None

    @classmethod
    def _named(cls, base: Any) -> FusedStack | None:
        modules, norm, rotary = (getattr(base, name, None) for name in ("layers", "norm", "rotary_emb"))
        if not isinstance(modules, nn.ModuleList) or not isinstance(norm, FusedNorm) or rotary is None:
            return None
        types: list[tuple[str, ...]] = [()] * len(modules)
        if "layer_type" in inspect.signature(type(rotary).forward).parameters:
            types = [(layer_type,) for layer_type in base.config.layer_types]
        layers = [FusedLayer.of(module, key) for module, key in zip(modules, types, strict=False)]
        found = tuple(layer for layer in layers if layer is not None)
        return cls(base, found, norm) if 0 < len(found) == len(modules) else None

    def forward(self, input_ids: Tensor, position_ids: Tensor, **arguments: Any) -> Tensor:
        """The last layer's hidden states, normalized.

        Args:
            input_ids, position_ids: [num_tokens] int32 or int64.
            arguments: passed on to the attention function.

        Returns:
            [num_tokens, hidden_size].
        """
        position_ids = position_ids[None]
        residual = self.base.get_input_embeddings()(input_ids[None])
        types = dict.fromkeys(layer.layer_type for layer in self.layers)
        tables = {key: self.base.rotary_emb(residual, position_ids, *key) for key in types}
        x = self.layers[0].before_attention(residual)
        next_norms = [*(layer.before_attention for layer in self.layers[1:]), self.norm]
        for layer, next_norm in zip(self.layers, next_norms, strict=True):
            attended = layer.module.self_attn(
                hidden_states=x,
                attention_mask=None,
                position_ids=position_ids,
                position_embeddings=tables[layer.layer_type],
                **arguments,
            )[0]
            x, residual = _add(attended, layer.after_attention, residual, layer.before_mlp)
            x, residual = _add(layer.module.mlp(x), layer.after_mlp, residual, next_norm)
        hidden: Tensor = x[0]
        return hidden


def _add(x: Tensor, own_norm: FusedNorm | None, residual: Tensor, norm: FusedNorm) -> tuple[Tensor, Tensor]:
    """The sum of `x` (normalized by `own_norm`) and `residual`, normalized, and the sum; all [1, num_tokens, size]."""
    if own_norm is not None:
        x = own_norm(x)
    add = add_rms_norm if x.is_cuda else add_rms_norm_reference
    normed, total = add(x[0], residual[0], norm.weight, norm.eps, norm.unit_offset)
    return normed[None], total[None]


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """What an attention or an MLP was given."""

    probe: Probe
    hidden: Tensor
    arguments: dict[str, Any]

    def is_like(self, other: Call) -> bool:
        same = self.probe is other.probe and _is_same(self.arguments, other.arguments)
        return same and is_close(self.hidden, other.hidden)


class Probe(nn.Module):
    """Stands for an attention or an MLP: notes what it is given, and returns what does not depend on it.

    So a difference in one place is not carried on to the next, and rounding does not add up.
    """

    def __init__(self, out: Tensor, is_attention: bool, calls: list[Call]) -> None:
        super().__init__()
        self.out, self.is_attention, self.calls = out, is_attention, calls

    def forward(self, hidden_states: Tensor, **arguments: Any) -> Tensor | tuple[Tensor, None]:
        # An argument that is None or False may as well not be there.
        said = {name: value for name, value in arguments.items() if value is not None and value is not False}
        self.calls.append(Call(self, hidden_states, said))
        return (self.out, None) if self.is_attention else self.out


def _agrees(stack: FusedStack) -> bool:
    """Whether the model's own forward gives its attentions, its MLPs and its caller what `stack` does."""
    generator, embedding = torch.Generator().manual_seed(0), stack.base.get_input_embeddings()
    ids = torch.randint(embedding.weight.shape[0], (3,), generator=generator).to(embedding.weight.device)
    position_ids = torch.tensor([7, 2, 30], device=ids.device)
    hidden = embedding(ids[None])
    # As large as the embeddings, so that what is added to what is seen in the sum.
    outs = torch.randn(2 * len(stack.layers), *hidden.shape, generator=generator).to(hidden)
    outs *= hidden.std().clamp(min=0.01)
    token = object()  # that it arrives says that other arguments would
    with _probed(stack, outs) as calls:
        try:
            expected = stack.base(
                input_ids=ids[None], position_ids=position_ids[None], use_cache=False, laban_check=token
            ).last_hidden_state[0]
        except (AttributeError, TypeError, ValueError, RuntimeError):  # a model of another kind
            return False
        expected_calls = calls.copy()
        calls.clear()
        found = stack.forward(ids, position_ids, laban_check=token)
    if len(calls) != len(expected_calls) or not is_close(found, expected):
        return False
    return all(call.is_like(other) for call, other in zip(calls, expected_calls, strict=True))


@contextmanager
def _probed(stack: FusedStack, outs: Tensor) -> Iterator[list[Call]]:
    """The model with probes, which return `outs`, in place of attentions and MLPs; gives the list of their calls."""
    calls: list[Call] = []
    kept = [(layer.module, layer.module.self_attn, layer.module.mlp) for layer in stack.layers]
    try:
        for (module, _, _), attended, computed in zip(kept, outs[::2], outs[1::2], strict=True):
            module.self_attn, module.mlp = Probe(attended, True, calls), Probe(computed, False, calls)
        yield calls
    finally:
        for module, self_attn, mlp in kept:
            module.self_attn, module.mlp = self_attn, mlp


def _is_same(found: Any, expected: Any) -> bool:
    """Of arguments: tensors of the same values, and else the same objects."""
    if type(found) is not type(expected):
        return False
    if isinstance(found, Tensor):
        return torch.equal(found, expected)
    if isinstance(found, dict):
        return found.keys() == expected.keys() and all(_is_same(found[name], expected[name]) for name in found)
    if isinstance(found, tuple):
        return len(found) == len(expected) and all(map(_is_same, found, expected))
    return found is expected
