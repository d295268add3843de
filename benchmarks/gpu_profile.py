"""What the card does in decode iterations and in a call that reads eight reordered messages, kernel by kernel."""

from __future__ import annotations

import cProfile
import pstats
import sys
import time
from collections.abc import Callable

import torch
from gpu_model import Size
from gpu_workloads import HEADER, Desk
from torch.profiler import ProfilerActivity, profile

ITERATIONS = 5
KERNELS = 25
WARM_STEPS = 6  # of a decode, before it is profiled
HOST_STEPS, FUNCTIONS = 20, 15


def print_profiles(desk: Desk, size: Size, device: torch.device) -> None:
    """Decodes of one call and of 32 over one context, and the call over reordered messages to its first token."""
    desk.clear()
    context, parts = desk.message(size.tokens(5120)), [desk.message(size.tokens(640)) for _ in range(8)]
    desk.encode([context, *parts])
    for batch in (1, 32):
        view = desk.view([context])
        for _ in range(size.calls(batch)):
            desk.engine.submit(desk.decode(view, size.tokens(HEADER), WARM_STEPS + ITERATIONS + HOST_STEPS + 3))
        for _ in range(WARM_STEPS):
            desk.engine.step()
        name = f"decode of batch {batch} over one context of 5,120 tokens, an iteration"
        _print_profile(name, lambda: _step(desk, ITERATIONS), ITERATIONS, device)
        print(f"the host in {HOST_STEPS} such iterations; what it waits is `synchronize`")
        with cProfile.Profile() as host:
            _step(desk, HOST_STEPS)
        pstats.Stats(host, stream=sys.stdout).sort_stats("tottime").print_stats(FUNCTIONS)
        while desk.engine.has_work():
            desk.engine.step()

    def reordered() -> object:
        view = desk.view(desk.rng.sample(parts, len(parts)))
        return desk.play([desk.decode(view, size.tokens(HEADER), 1)])

    reordered()
    _print_profile("16 new tokens over 8 reordered messages of 640, to the end", reordered, 1, device)


def _step(desk: Desk, times: int) -> None:
    for _ in range(times):
        desk.engine.step()


def _print_profile(name: str, run: Callable[[], object], times: int, device: torch.device) -> None:
    """Of `run`, divided by `times`."""
    on_card = device.type == "cuda"
    if on_card:
        torch.cuda.synchronize(device)
    with profile(activities=[ProfilerActivity.CUDA if on_card else ProfilerActivity.CPU]) as profiled:
        began = time.perf_counter()
        run()
        wall_us = 1e6 * (time.perf_counter() - began)
        if on_card:
            torch.cuda.synchronize(device)
    # Only what ran on the device itself: operations of the host carry the time of their kernels once more.
    kernels = []
    for event in profiled.key_averages():
        if not on_card:
            kernels.append((event.self_cpu_time_total, event.count, event.key))
        elif event.device_type == torch.autograd.DeviceType.CUDA:
            kernels.append((event.self_device_time_total, event.count, event.key))
    kernels.sort(reverse=True)
    total_us = sum(time_us for time_us, _, _ in kernels) or 1.0
    print(f"\n{name}: {wall_us / times:,.0f} us by the clock (profiled), {total_us / times:,.0f} us of kernels")
    for time_us, count, key in kernels[:KERNELS]:
        print(f"{time_us / times:10.1f} us {100 * time_us / total_us:5.1f}% {count / times:7.1f} x  {key[:90]}")
