"""The fused operations on a card: every type and head size against float64, whole models, and under capture."""

from __future__ import annotations

import copy

import fused_checks as checks
import pytest
import torch
from engine_reference import KINDS, random_model
from torch import Tensor

from laban.kernels.fused_ops import Activation, add_rms_norm, gated, rms_norm, rotate_and_write, turn_table

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]
pytest.importorskip("triton")

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
# head_dim, rotary_dim
HEADS = [(64, 64), (96, 96), (128, 128), (256, 256), (96, 32), (128, 96)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("unit_offset", [False, True])
@pytest.mark.parametrize("size", [576, 1152, 4096, 8192])
@pytest.mark.parametrize("num_rows", [1, 7, 513])
def test_rms_norm(num_rows: int, size: int, unit_offset: bool, dtype: torch.dtype) -> None:
    checks.check_rms_norm(num_rows, size, unit_offset, dtype, "cuda")
    checks.check_add_rms_norm(num_rows, size, unit_offset, dtype, "cuda")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [64, 96, 128, 256])
@pytest.mark.parametrize(("num_rows", "heads"), [(1, 32), (512, 9)])
def test_rms_norm_of_heads(num_rows: int, heads: int, dim: int, dtype: torch.dtype) -> None:
    checks.check_norm_of_heads(num_rows, heads, dim, dtype, "cuda")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
@pytest.mark.parametrize(("num_rows", "size"), [(1, 1536), (7, 14336), (513, 6912)])
def test_gated(num_rows: int, size: int, activation: Activation, dtype: torch.dtype) -> None:
    checks.check_gated(num_rows, size, activation, dtype, "cuda")


@pytest.mark.parametrize("frequencies", [torch.float32, torch.float64])
@pytest.mark.parametrize("half", [12, 48, 64, 128])
@pytest.mark.parametrize("num_rows", [1, 4097])
def test_turn_table(num_rows: int, half: int, frequencies: torch.dtype) -> None:
    checks.check_turn_table(num_rows, half, frequencies, "cuda")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("dim", "rotary_dim"), HEADS)
@pytest.mark.parametrize(("heads", "kv_heads"), [(32, 8), (9, 3), (4, 1)])
@pytest.mark.parametrize("num_rows", [1, 7, 512])
def test_rotate_and_write(
    num_rows: int, heads: int, kv_heads: int, dim: int, rotary_dim: int, dtype: torch.dtype
) -> None:
    checks.check_rotate_and_write(num_rows, heads, kv_heads, dim, rotary_dim, dtype, "cuda")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("dim", "rotary_dim"), HEADS)
@pytest.mark.parametrize("kv_heads", [8, 3])
@pytest.mark.parametrize("lengths", [[(300, 4)], [(5, 2), (320, 1), (77, 3)]])
def test_copy_mixed(
    kv_heads: int, dim: int, rotary_dim: int, lengths: list[tuple[int, int]], dtype: torch.dtype
) -> None:
    checks.check_copy_mixed(lengths, kv_heads, dim, rotary_dim, dtype, "cuda")


@pytest.mark.parametrize("kind", KINDS)
def test_a_fused_model_computes_what_it_did(kind: str) -> None:
    model = random_model(kind).eval().cuda()
    found, expected = checks.logits_of_both(model, num_tokens=40, start=3000)
    torch.testing.assert_close(found, expected, atol=2e-3, rtol=0)  # its float32 angles are off by some 1e-4


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_fused_model_is_no_further_from_the_truth(kind: str, dtype: torch.dtype) -> None:
    model = random_model(kind).eval().to(dtype)
    exact = copy.deepcopy(model).float().cuda()
    torch.manual_seed(0)
    truth = checks.logits_of_both(exact, num_tokens=200, start=0)[0]
    torch.manual_seed(0)
    found, theirs = checks.logits_of_both(model.cuda(), num_tokens=200, start=0)
    error, error_of_theirs = ((x.float() - truth).square().mean().sqrt() for x in (found, theirs))
    assert error <= 1.2 * error_of_theirs


def test_captured_in_a_graph() -> None:
    """Replayed on other data than it was captured with, all of it gives what it gives eagerly, bit for bit."""
    heads, kv_heads, dim, num_rows = 32, 8, 128, 5
    width = (heads + 2 * kv_heads) * dim
    weight = torch.randn(width, device="cuda").bfloat16()
    inv_freq = 1 / 500_000 ** (torch.arange(64, device="cuda") / 64)
    state = {
        "qkv": torch.empty(num_rows, width, device="cuda", dtype=torch.bfloat16),
        "offsets": torch.zeros(num_rows, device="cuda", dtype=torch.int32),
        "slots": torch.zeros(num_rows, device="cuda", dtype=torch.int32),
        "pools": torch.empty(2, 2, 20, kv_heads, dim, device="cuda", dtype=torch.bfloat16),
        "tables": torch.empty(2, num_rows, 64, device="cuda"),
    }

    def refill() -> None:
        state["qkv"].normal_()
        state["pools"].normal_()
        state["offsets"].random_(-100_000, 100_000)
        state["slots"].copy_(torch.randperm(10)[:num_rows])
        state["slots"][-1] = -1

    def forward() -> list[Tensor]:
        normed, total = add_rms_norm(rms_norm(state["qkv"], weight, 1e-5), state["qkv"], weight, 1e-5)
        cos, sin = state["tables"]
        turn_table(state["offsets"], inv_freq, 1.0, cos, sin)
        q, k, v = (x.unflatten(-1, (-1, dim)) for x in normed.split([heads * dim, kv_heads * dim, kv_heads * dim], -1))
        pools = state["pools"]
        rotated = rotate_and_write(q, k, v, cos, sin, pools[0, 1], pools[1, 1], state["slots"])
        return [normed, total, rotated, gated(total, "silu")]

    refill()
    forward()  # compiles
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = forward()
    refill()
    before = {name: x.clone() for name, x in state.items()}
    graph.replay()
    replayed = [x.clone() for x in (*captured, state["pools"], state["tables"])]
    for name, x in before.items():
        state[name].copy_(x)
    eager = [*forward(), state["pools"], state["tables"]]
    assert all(torch.equal(a, b) for a, b in zip(replayed, eager, strict=True))
