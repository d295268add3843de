"""A process with a host pool that others may read: prints its window, and waits to be ended.

python pool_holder.py TRANSPORT NUM_PAGES PAGE_SIZE NUM_LAYERS NUM_KV_HEADS HEAD_DIM SEED
"""

from __future__ import annotations

import pickle
import sys
from typing import Any

import torch

from laban.actors.engine.direct import DirectMemory
from laban.actors.engine.host_pool import HostPool


def filled(seed: int, *sizes: int) -> HostPool:
    pool = HostPool(*sizes, dtype=torch.float32, pinned=False)  # type: ignore[misc,arg-type]
    draw = torch.Generator().manual_seed(seed)
    for plane in (pool.k, pool.v):
        plane.copy_(torch.rand(plane.shape, generator=draw))
    return pool


def main() -> None:
    transport: Any = sys.argv[1]
    *sizes, seed = (int(each) for each in sys.argv[2:])
    memory = DirectMemory(filled(seed, *sizes), transport)
    sys.stdout.write(pickle.dumps(memory.window(transport)).hex() + "\n")
    sys.stdout.flush()
    sys.stdin.read()


if __name__ == "__main__":
    main()
