"""Linear layers with one input, merged into one product at load.

A decoded token's products are bound by reading their weights, and a small product does not fill the card while it
reads: one product over q, k, v and one over gate and up read the same bytes in fewer, longer launches. The model's
own code stays: it asks for its parts by the names it knows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from laban.kernels.fused_ops import Activation, gated, gated_reference, is_close

QKV = ("q_proj", "k_proj", "v_proj")
GATE_UP = ("gate_proj", "up_proj")


class Product:
    """One product whose parts are asked for one after another, with the same input, in any order.

    The first to ask pays; between the first and the last, the others' parts are kept, and nothing after. A part that
    is asked for again, or with another input, begins a new product. The input is told by identity: it must not be
    changed in place in between.
    """

    def __init__(self, linear: nn.Linear, sizes: Sequence[int]) -> None:
        self.linear: nn.Module
        self.linear, self.sizes = linear, list(sizes)
        self.input: Tensor | None = None
        self.parts: dict[int, Tensor] = {}

    def part(self, index: int, x: Tensor) -> Tensor:
        """x [..., in_features] -> [..., sizes[index]], a slice of [..., sum(sizes)]."""
        if self.input is not x or index not in self.parts:
            self.input = x
            self.parts = dict(enumerate(self.linear(x).split(self.sizes, -1)))
        part = self.parts.pop(index)
        if not self.parts:
            self.input = None
        return part


class ProductPart(nn.Module):
    """Stands for the linear layer whose rows became part `index` of a product. The weights are the product's."""

    def __init__(self, product: Product, index: int) -> None:
        super().__init__()
        self.product, self.index = product, index

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in_features] -> [..., out_features], a strided view."""
        return self.product.part(self.index, x)


class GatedMLP(nn.Module):
    """down(activation(gate(x)) * up(x)) with gate and up in one product; `gated` in torch's operations off a card."""

    def __init__(self, gate_up_proj: nn.Linear, down_proj: nn.Module, activation: Activation) -> None:
        super().__init__()
        self.gate_up_proj, self.down_proj, self.activation = gate_up_proj, down_proj, activation

    def forward(self, x: Tensor) -> Tensor:
        """x [..., hidden_size] -> [..., hidden_size]"""
        out: Tensor = self.down_proj(self.inner(x))
        return out

    def inner(self, x: Tensor) -> Tensor:
        """x [..., hidden_size] -> [..., intermediate_size], what `down_proj` is given."""
        both = self.gate_up_proj(x).flatten(0, -2)
        out = gated(both, self.activation) if x.is_cuda else gated_reference(both, self.activation)
        return out.view(*x.shape[:-1], -1)


@torch.no_grad()
def merge_linears(module: nn.Module) -> int:
    """Merges q, k, v and gate, up wherever they are under `module`. Returns how many products that made.

    Layer by layer: never more than one layer's weights are held twice.
    """
    count = int(_merge_attention(module))
    for name in [name for name, _ in module.named_children()]:
        mlp = _gated_mlp(getattr(module, name))
        if mlp is None:
            count += merge_linears(getattr(module, name))
        else:
            setattr(module, name, mlp)
            _give_back(mlp.gate_up_proj.weight)
            count += 1
    return count


def _merge_attention(attention: nn.Module) -> bool:
    sizes = [part.out_features for part in _mergeable(attention, QKV)]
    if not sizes:
        return False
    attention.qkv_proj = _merge(_mergeable(attention, QKV))
    product = Product(attention.qkv_proj, sizes)
    for index, name in enumerate(QKV):
        setattr(attention, name, ProductPart(product, index))
    _give_back(attention.qkv_proj.weight)
    return True


def _gated_mlp(mlp: nn.Module) -> GatedMLP | None:
    """`mlp` with gate and up merged, or None if it is none or, on a random input, computes something else."""
    linears, down_proj = _mergeable(mlp, GATE_UP), getattr(mlp, "down_proj", None)
    activation = _activation(getattr(mlp, "act_fn", None))
    if not linears or not isinstance(down_proj, nn.Module) or activation is None:
        return None
    if linears[0].out_features != linears[1].out_features:
        return None
    merged = GatedMLP(_merge(linears), down_proj, activation)
    weight = merged.gate_up_proj.weight
    x = torch.randn(3, weight.shape[1], generator=torch.Generator().manual_seed(0)).to(weight)
    mlp.down_proj = nn.Identity()  # it stays itself, and may be one of several shards that have to be asked together
    try:
        expected = mlp(x)
    finally:
        mlp.down_proj = down_proj
    return merged if is_close(merged.inner(x), expected) else None


def _activation(function: Callable[[Tensor], Tensor] | None) -> Activation | None:
    """What `function` is, told in float32: in shorter types some kinds are hardly different."""
    if function is None:
        return None
    x = torch.linspace(-8, 8, 65)
    both = torch.cat((x[None], torch.ones(1, 65)), -1)
    kinds: tuple[Activation, ...] = ("silu", "gelu_tanh")
    return next((kind for kind in kinds if is_close(function(x), gated_reference(both, kind)[0])), None)


def _mergeable(module: nn.Module, names: Sequence[str]) -> list[nn.Linear]:
    """The linear layers called `names`, if all are there, plain, and of one input, dtype and device."""
    linears = [module._modules.get(name) for name in names]
    found = [linear for linear in linears if type(linear) is nn.Linear and not _is_hooked(linear)]
    kinds = {(x.in_features, x.weight.dtype, x.weight.device, x.bias is None) for x in found}
    return found if len(found) == len(names) and len(kinds) == 1 else []


def _is_hooked(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _merge(linears: Sequence[nn.Linear]) -> nn.Linear:
    weight = torch.cat([linear.weight.detach() for linear in linears])
    biases = [linear.bias.detach() for linear in linears if linear.bias is not None]
    merged = nn.Linear(weight.shape[1], weight.shape[0], bias=bool(biases), device="meta")
    merged.weight = nn.Parameter(weight, requires_grad=False)
    if biases:
        merged.bias = nn.Parameter(torch.cat(biases), requires_grad=False)
    return merged


def _give_back(weight: Tensor) -> None:
    """What was freed is in smaller pieces than the next merged weights need: let the card have it back."""
    if weight.is_cuda:
        torch.cuda.empty_cache()
