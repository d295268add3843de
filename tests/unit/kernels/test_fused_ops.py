"""Every fused operation in Triton's interpreter against its definition in float64."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

import fused_checks as checks

from laban.kernels.fused_ops import Activation, gated, rotate_and_write

DTYPES = [torch.float32, torch.float16]  # to bfloat16 the interpreter cuts off, where a card rounds


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("unit_offset", [False, True])
@pytest.mark.parametrize(("num_rows", "size"), [(1, 576), (5, 24), (3, 1024)])
def test_rms_norm(num_rows: int, size: int, unit_offset: bool, dtype: torch.dtype) -> None:
    checks.check_rms_norm(num_rows, size, unit_offset, dtype, "cpu")
    checks.check_add_rms_norm(num_rows, size, unit_offset, dtype, "cpu")


@pytest.mark.parametrize(("num_rows", "heads", "dim"), [(1, 4, 96), (7, 3, 24)])
def test_rms_norm_of_heads(num_rows: int, heads: int, dim: int) -> None:
    checks.check_norm_of_heads(num_rows, heads, dim, torch.float32, "cpu")


@pytest.mark.filterwarnings("ignore:overflow")  # of exp(80), whose reciprocal is right
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
@pytest.mark.parametrize(("num_rows", "size"), [(1, 1536), (3, 96)])
def test_gated(num_rows: int, size: int, activation: Activation, dtype: torch.dtype) -> None:
    checks.check_gated(num_rows, size, activation, dtype, "cpu")


@pytest.mark.parametrize("frequencies", [torch.float32, torch.float64])
@pytest.mark.parametrize(("num_rows", "half"), [(40, 48), (1, 64), (3, 12)])
def test_turn_table(num_rows: int, half: int, frequencies: torch.dtype) -> None:
    checks.check_turn_table(num_rows, half, frequencies, "cpu")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim", "rotary_dim"), [(9, 3, 24, 24), (4, 4, 16, 8), (2, 1, 96, 32), (32, 20, 64, 64)]
)
@pytest.mark.parametrize("num_rows", [1, 5])
def test_rotate_and_write(
    num_rows: int, heads: int, kv_heads: int, dim: int, rotary_dim: int, dtype: torch.dtype
) -> None:
    checks.check_rotate_and_write(num_rows, heads, kv_heads, dim, rotary_dim, dtype, "cpu")


@pytest.mark.parametrize(("kv_heads", "dim", "rotary_dim"), [(20, 64, 64), (3, 24, 8), (1, 96, 32)])
def test_copy_mixed(kv_heads: int, dim: int, rotary_dim: int) -> None:
    checks.check_copy_mixed([(9, 3), (8, 1), (1, 4)], kv_heads, dim, rotary_dim, torch.float32, "cpu", page_size=4)


def test_no_rows_are_no_launch() -> None:
    empty, table = torch.empty(0, 2, 8), torch.empty(0, 4)
    pool = torch.zeros(3, 2, 8)
    assert rotate_and_write(empty, empty, empty, table, table, pool, pool, torch.empty(0).int()).shape == (0, 2, 8)
    assert gated(torch.empty(0, 16), "silu").shape == (0, 8)
