"""A fused model computes what it computed before; what is not what it seems is left alone."""

from __future__ import annotations

import copy
import weakref
from unittest import mock

import fused_checks
import pytest
import torch
from engine_reference import KINDS, random_model
from torch import Tensor, nn

from laban.kernels import merged_linear
from laban.kernels.compiled_ops import ROTARY
from laban.kernels.fused_modules import FusedNorm, Swapped, fuse_norms, install, skip_rotary
from laban.kernels.merged_linear import GatedMLP, Product, merge_linears


@pytest.mark.parametrize("kind", KINDS)
def test_a_fused_model_computes_what_it_did(kind: str) -> None:
    model = random_model(kind).eval()
    found, expected = fused_checks.logits_of_both(model, num_tokens=21, start=13)
    torch.testing.assert_close(found, expected, atol=5e-5, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_merged_and_normed_alone_for_batches_too(kind: str) -> None:
    model = random_model(kind).eval()
    for parameter in model.parameters():  # norms and biases that are not what they begin as
        nn.init.normal_(parameter, std=0.2)
    swapped = copy.deepcopy(model)
    install(swapped)
    ids = torch.randint(0, model.config.vocab_size, (3, 9))
    with torch.inference_mode():
        torch.testing.assert_close(swapped(ids).logits, model(ids).logits, atol=2e-5, rtol=1e-5)


def test_counts() -> None:
    assert install(random_model("qwen3")) == Swapped(norms=13, products=6)
    assert install(random_model("llama")) == Swapped(norms=7, products=6)


def test_weights_are_merged_layer_by_layer() -> None:
    """When a product is made, the weights of those before it are gone."""
    model = random_model("qwen2")
    names = (*merged_linear.QKV, *merged_linear.GATE_UP)
    old = [weakref.ref(x) for name, x in model.named_parameters() if name.split(".")[-2] in names]
    num_bytes = sum(x.numel() for x in model.parameters())
    alive: list[int] = []
    merge = merged_linear._merge

    def counting(linears: list[nn.Linear]) -> nn.Linear:
        alive.append(sum(ref() is not None for ref in old))
        return merge(linears)

    with mock.patch.object(merged_linear, "_merge", counting):
        merge_linears(model)
    assert alive == [24, 18, 16, 10, 8, 2]  # six parameters of an attention, two of an MLP
    assert all(ref() is None for ref in old)
    assert sum(x.numel() for x in model.parameters()) == num_bytes


def test_parts_may_be_asked_for_in_any_order_and_leave_nothing() -> None:
    linear = nn.Linear(8, 12)
    product = Product(linear, [6, 4, 2])
    forward = mock.Mock(wraps=linear.forward)
    with mock.patch.object(linear, "forward", forward), torch.inference_mode():
        for order in [(0, 1, 2), (2, 0, 1)]:
            x = torch.randn(1, 5, 8)
            expected = (x @ linear.weight.T + linear.bias).split([6, 4, 2], -1)
            forward.reset_mock()
            for index in order:
                torch.testing.assert_close(product.part(index, x), expected[index])
            forward.assert_called_once()
            assert product.input is None
            assert product.parts == {}
        # An iteration that failed half way, then another input; and one part twice.
        product.part(0, torch.randn(1, 5, 8))
        for index in (1, 0, 0):
            torch.testing.assert_close(product.part(index, x), expected[index])


class ScaledMLP(nn.Module):
    """Has the names of a gated MLP, and computes something else."""

    def __init__(self, act_fn: nn.Module, scale: float) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = nn.Linear(8, 12), nn.Linear(8, 12), nn.Linear(12, 8)
        self.act_fn, self.scale = act_fn, scale

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x) * self.scale)


@pytest.mark.parametrize(
    ("act_fn", "scale", "merged"),
    [
        (nn.SiLU(), 1.0, True),
        (nn.GELU(approximate="tanh"), 1.0, True),
        (nn.SiLU(), 1.01, False),
        (nn.GELU(), 1.0, False),
        (nn.ReLU(), 1.0, False),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_only_gated_mlps_are_merged(act_fn: nn.Module, scale: float, merged: bool, dtype: torch.dtype) -> None:
    model = nn.Sequential(ScaledMLP(act_fn, 1.1 if scale > 1 else scale).to(dtype))
    x = torch.randn(4, 8, dtype=dtype)
    expected = model(x)
    assert merge_linears(model) == merged
    assert isinstance(model[0], GatedMLP) == merged
    torch.testing.assert_close(model(x), expected, atol=4 * torch.finfo(dtype).eps, rtol=0)


def test_layers_with_hooks_stay() -> None:
    model = random_model("llama")
    model.model.layers[1].self_attn.k_proj.register_forward_hook(lambda *_: None)
    model.model.layers[2].mlp.up_proj.register_forward_pre_hook(lambda *_: None)
    assert merge_linears(model) == 4


class CenteredRMSNorm(nn.Module):
    """Named like the others, and something else."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(8)), 1e-6

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.layer_norm(x, (8,), self.weight, eps=self.eps)


def test_a_norm_that_computes_something_else_stays() -> None:
    model = nn.Sequential(CenteredRMSNorm(), nn.RMSNorm(8, eps=1e-6))
    assert fuse_norms(model) == 1
    assert isinstance(model[0], CenteredRMSNorm)
    assert isinstance(model[1], FusedNorm)


def test_other_models_keep_their_own_rotation() -> None:
    model, other = random_model("llama"), random_model("llama")
    ids = torch.randint(0, 128, (1, 9))
    expected = other(ids).logits
    assert skip_rotary(model) == 3
    torch.testing.assert_close(other(ids).logits, expected)
    assert not torch.allclose(model(ids).logits, expected, atol=1e-2)


def test_a_model_that_rotates_in_another_way_is_refused() -> None:
    """Neighbours instead of halves, in one layer of three."""
    model = random_model("llama")

    def interleaved(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        def turn(x: Tensor) -> Tensor:
            return x * cos + torch.stack((-x[..., 1::2], x[..., ::2]), -1).flatten(-2) * sin

        return turn(q), turn(k)

    class Interleaved(nn.Module):
        def forward(self, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
            return apply_rotary_pos_emb(q, k, cos, sin)  # noqa: F821  # set below

    Interleaved.forward.__globals__[ROTARY] = interleaved
    model.model.layers[1].self_attn = Interleaved()
    assert skip_rotary(model) == 0
    assert "forward" not in vars(model.model.layers[0].self_attn)
    assert "forward" not in vars(model.model.rotary_emb)
