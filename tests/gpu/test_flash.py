"""Every FlashAttention that is there, against float64: head sizes, types, ragged lengths, rows with no key."""

from __future__ import annotations

import pytest
import torch
from flash_checks import TOLERANCE, PlanCase, check_plan, check_varlen, random_case

from laban.kernels.flash import FlashPlan, attend_flash
from laban.kernels.flash_backends import FlashBackend, cumulated, pick_flash, varlen_reference

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]

CUDA = torch.device("cuda")
NAMES = ["flash-attention-3", "flash-attention-2", "torch-varlen", "cudnn", "torch-cuda-flash", "reference"]
half = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])


def backend_of(name: str, dtype: torch.dtype, head_dim: int) -> FlashBackend:
    try:
        return pick_flash(CUDA, dtype, head_dim, name)
    except ValueError as error:
        pytest.skip(str(error))


@half
@pytest.mark.parametrize("head_dim", [64, 96, 128, 256])
@pytest.mark.parametrize("name", NAMES)
def test_varlen_is_its_definition(name: str, head_dim: int, dtype: torch.dtype) -> None:
    backend = backend_of(name, dtype, head_dim)
    if backend.varlen is None:
        pytest.skip("goes tile by tile")
    check_varlen(backend, CUDA, dtype, head_dim, [(5, 9), (2, 0), (300, 1), (1, 2000), (0, 4), (64, 128)], False)
    check_varlen(backend, CUDA, dtype, head_dim, [(1, 1), (300, 300), (64, 64), (1000, 1000)], True)


@half
@pytest.mark.parametrize("head_dim", [64, 96, 128, 256])
@pytest.mark.parametrize("name", NAMES)
def test_plans_compute_the_definition(name: str, head_dim: int, dtype: torch.dtype) -> None:
    backend = backend_of(name, dtype, head_dim)
    for seed in range(8):
        torch.manual_seed(seed)
        case, num_slots = random_case(seed, CUDA, dtype, head_dim)
        check_plan(backend, case, num_slots, group=1 + seed % 4)


def test_float32_has_the_reference() -> None:
    backend = pick_flash(CUDA, torch.float32, 64)
    assert backend.name == "reference"
    for seed in range(4):
        case, num_slots = random_case(seed, CUDA, torch.float32, 64)
        check_plan(backend, case, num_slots, group=3)


@half
@pytest.mark.parametrize("num_tokens", [1024, 1500, 4097])
@pytest.mark.parametrize("head_dim", [64, 128])
def test_a_long_run_by_cudnn(num_tokens: int, head_dim: int, dtype: torch.dtype) -> None:
    backend = backend_of("cudnn", dtype, head_dim)
    assert backend.causal_run is not None
    q = torch.randn(num_tokens, 8, head_dim, device=CUDA, dtype=dtype)
    k, v = torch.randn(2, num_tokens, 2, head_dim, device=CUDA, dtype=dtype)
    cu = cumulated([num_tokens], CUDA)
    expected, expected_lse = varlen_reference(q, k, v, cu, cu, num_tokens, num_tokens, True, head_dim**-0.5)
    out, lse = backend.causal_run(q, k, v, head_dim**-0.5)
    torch.testing.assert_close(out, expected, atol=TOLERANCE[dtype], rtol=0)
    torch.testing.assert_close(lse, expected_lse, atol=2e-3, rtol=0)


@pytest.mark.parametrize("name", ["flash-attention-3", "flash-attention-2", "torch-varlen", "cudnn"])
def test_the_host_never_waits(name: str) -> None:
    backend = backend_of(name, torch.bfloat16, 128)
    blocks = [list(range(1100)), list(range(1100, 1200))]
    tiles = [([(0, 5), (1, 0)], list(range(1500, 1800))), ([(1, -7)], list(range(1999, 1800, -1)))]
    case = PlanCase(CUDA, torch.bfloat16, 128, blocks, tiles)
    plan = case.plan()
    q = torch.randn(1200, 8, 128, device=CUDA, dtype=torch.bfloat16)
    k, v = torch.randn(2, 1200, 2, 128, device=CUDA, dtype=torch.bfloat16)
    pools = torch.randn(2, 2000, 2, 128, device=CUDA, dtype=torch.bfloat16)
    expected = attend_flash(backend, q, k, v, *pools, FlashPlan.of(plan), 0.1)
    torch.cuda.set_sync_debug_mode("error")
    try:
        out = attend_flash(backend, q, k, v, *pools, FlashPlan.of(plan), 0.1)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(out, expected, atol=1e-2, rtol=0)
