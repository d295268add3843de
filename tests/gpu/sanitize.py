"""Every kernel once on small inputs, for a memory checker: `make sanitize` on a machine with a card.

Compiling under the checker is slow, so this takes the fewest cases that reach each kernel's branches. One part a
process; on a CPU, to try this file, with TRITON_INTERPRET=1:

    PYTHONPATH=tests/support compute-sanitizer python tests/gpu/sanitize.py attention
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable

import fused_checks as checks
import torch
from view_checks import assert_close, random_batch, random_tensors, run_kernel

from laban.kernels.view_plan import PlanShape

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
HALF = torch.bfloat16 if DEVICE == "cuda" else torch.float16


def norms() -> None:
    for unit_offset, dtype in ((False, HALF), (True, torch.float32)):
        checks.check_rms_norm(7, 576, unit_offset, dtype, DEVICE)
        checks.check_add_rms_norm(3, 1152, unit_offset, dtype, DEVICE)
    checks.check_norm_of_heads(5, 9, 96, HALF, DEVICE)
    checks.check_gated(7, 1536, "silu", HALF, DEVICE)
    checks.check_gated(2, 100, "gelu_tanh", torch.float32, DEVICE)


def rotations() -> None:
    checks.check_turn_table(37, 48, torch.float32, DEVICE)
    for heads, kv_heads, dim, rotary_dim, dtype in ((32, 8, 128, 128, HALF), (9, 3, 96, 32, HALF)):
        checks.check_rotate_and_write(7, heads, kv_heads, dim, rotary_dim, dtype, DEVICE)
    checks.check_copy_mixed([(30, 2), (16, 1), (3, 4)], 3, 96, 32, HALF, DEVICE)


def products_and_noise() -> None:
    from laban.kernels.noise import uniform_noise_reference
    from laban.kernels.noise_kernel import uniform_noise
    from laban.kernels.row_linear import row_linear

    for num_in, num_out in ((1024, 8), (1536, 33)):
        x, weight = (torch.randn(*shape, device=DEVICE).to(HALF) for shape in ((num_in,), (num_out, num_in)))
        expected = weight.double() @ x.double()
        torch.testing.assert_close(row_linear(x, weight).double(), expected, atol=0.5, rtol=1e-2)
    seeds, indices = torch.tensor([0, -1, 2**63 - 1]), torch.tensor([0, 2**33 + 5, 3])
    found = uniform_noise(seeds.to(DEVICE), indices.to(DEVICE), 1027).cpu()
    assert torch.equal(found, uniform_noise_reference(seeds, indices, 1027))


def attention() -> None:
    from laban.kernels.view_tiles import pick_tile

    for seed, (head_dim, group, window, num_rows) in enumerate(
        [(64, 3, None, 64), (96, 1, None, 16), (128, 4, 50, 200), (256, 1, None, 1)]
    ):
        batch = random_batch(random.Random(seed), window=window, same_readers=seed % 2 == 1, lengths=(1, 5, 63, 90))
        tile = pick_tile(num_rows, head_dim, HALF)
        shape = PlanShape(tile.block_m // group, tile.block_n, 2, 4 if seed else 264, 16, window)
        x = random_tensors(
            batch, seed, group=group, kv_heads=2, head_dim=head_dim, rotary_dim=head_dim, dtype=HALF, device=DEVICE
        )
        assert_close(run_kernel(batch, x, shape, tile), x)


PARTS: dict[str, Callable[[], None]] = {
    part.__name__: part for part in (norms, rotations, products_and_noise, attention)
}

if __name__ == "__main__":
    for name in sys.argv[1:] or PARTS:
        PARTS[name]()
        print(f"{name}: done on {DEVICE}", flush=True)
