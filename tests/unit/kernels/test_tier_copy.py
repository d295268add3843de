"""The kernel that moves fragments between tiers, in Triton's interpreter: bitwise what its reference moves."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

import tier_checks as checks

from laban.kernels.tier_copy import max_unit_tokens


@pytest.mark.parametrize("layers", [range(4), range(1, 3), range(3, 4)])
@pytest.mark.parametrize(("kv_heads", "dim"), [(1, 64), (3, 64), (1, 20)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_copy_units(kv_heads: int, dim: int, dtype: torch.dtype, layers: range) -> None:
    checks.check_copy_units(kv_heads, dim, dtype, "cpu", layers=layers)


@pytest.mark.parametrize(("kv_heads", "dim", "dtype"), [(1, 3, torch.bfloat16), (1, 7, torch.float8_e4m3fn)])
def test_rows_of_odd_sizes(kv_heads: int, dim: int, dtype: torch.dtype) -> None:
    checks.check_copy_units(kv_heads, dim, dtype, "cpu", layers=range(4))


def test_units_of_several_blocks_and_more_programs_than_units() -> None:
    checks.check_copy_units(4, 256, torch.float32, "cpu", layers=range(2), num_units=2, num_programs=99)


@pytest.mark.parametrize("layers", [range(0), range(2, 2)])
def test_nothing_to_copy(layers: range) -> None:
    checks.check_copy_units(1, 8, torch.float32, "cpu", layers=layers)


def test_units_have_a_token_at_least() -> None:
    assert [max_unit_tokens(size) for size in (2048, 32 << 10, 1 << 20)] == [16, 1, 1]
