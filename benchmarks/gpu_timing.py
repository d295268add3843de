"""Time of launches on a device, and medians of repetitions."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import torch

WARM_UPS = 2
REPLAYS = 20  # between two events, so that the host is ahead of the card


def median_of(once: Callable[[], float], reps: int) -> float:
    """Of `reps` results, after some that are not counted."""
    return median([once() for _ in range(WARM_UPS + reps)][WARM_UPS:])


def replayed_us(launches: Callable[[], object], device: torch.device, reps: int) -> float:
    """Microseconds of `launches` captured in a CUDA graph, so without the host; off a card they are simply run."""
    launches()  # compiles kernels, which a capture does not allow
    if device.type != "cuda":
        return looped_us(launches, device, reps)
    torch.cuda.synchronize(device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # NCCL watches its own from a thread
        launches()
    return looped_us(graph.replay, device, reps)


def looped_us(launch: Callable[[], object], device: torch.device, reps: int) -> float:
    """Microseconds of `launch`, one after another: median over `reps` loops, the first not counted."""
    loop = _loop_on_card if device.type == "cuda" else _loop_here
    return median([loop(launch) for _ in range(reps + 1)][1:])


def _loop_on_card(launch: Callable[[], object]) -> float:
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    for _ in range(REPLAYS):
        launch()
    end.record()
    end.synchronize()
    return 1000 * begin.elapsed_time(end) / REPLAYS


def _loop_here(launch: Callable[[], object]) -> float:
    began = time.perf_counter()
    launch()
    return 1e6 * (time.perf_counter() - began)
