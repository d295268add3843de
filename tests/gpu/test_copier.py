"""Copies between a card and pinned memory: every way bitwise, none that waits, gates that hold a forward back."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import tier_checks as checks
import torch
from torch import Tensor

from laban.actors.engine import card_copies
from laban.actors.engine.card_copies import Path
from laban.actors.engine.copier import Copier, Direction
from laban.actors.engine.cuda_runtime import HOST_TO_DEVICE, CudaRuntime, cuda_runtime
from laban.actors.engine.host_memory import HostBlock
from laban.actors.engine.host_pool import HostPool
from laban.actors.engine.layer_gates import LayerGates
from laban.actors.engine.runs import Runs, merge_adjacent

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]
pytest.importorskip("triton")

LAYERS, PAGES, PAGE, KV_HEADS, DIM = 6, 160, 16, 8, 128
PATHS: list[Path] = ["auto", "dma", "slices", "kernel"]
DIRECTIONS: list[Direction] = ["load", "save"]
SLEEP_CYCLES = 40_000_000  # some 20 ms


@dataclass
class Pools:
    k: Tensor
    v: Tensor
    host: HostPool
    copier: Copier

    def all(self) -> list[Tensor]:
        return [self.k, self.v, self.host.k, self.host.v]


def make_pools(dtype: torch.dtype = torch.bfloat16, kv_heads: int = KV_HEADS, limit: float | None = None) -> Pools:
    shape = (LAYERS, PAGES * PAGE, kv_heads, DIM)
    k, v = (checks.poisoned(*shape, dtype=dtype, device="cuda") for _ in range(2))
    host = HostPool(PAGES, PAGE, LAYERS, kv_heads, DIM, dtype, pinned=True)
    return Pools(k, v, host, Copier(k, v, host, limit_bytes_per_s=limit))


@pytest.fixture(scope="module")
def pools() -> Iterator[Pools]:
    made = make_pools()
    yield made
    made.copier.close()
    made.host.close()


def fill(pools: Pools, direction: Direction) -> list[Tensor]:
    """Random bits on the side that is read, poison on the other; returns copies of all four on the host."""
    sources, targets = ((pools.host.k, pools.host.v), (pools.k, pools.v))[:: 1 if direction == "load" else -1]
    for source in sources:
        source.copy_(checks.random_bytes(*source.shape, dtype=source.dtype, device="cpu"))
    for target in targets:
        target.copy_(checks.poisoned(*target.shape, dtype=target.dtype, device="cpu"))
    torch.cuda.synchronize()
    return [x.cpu().clone() for x in pools.all()]


def mover_of(pools: Pools, direction: Direction) -> card_copies.CardMover:
    mover = pools.copier._ways[direction, False].mover
    assert mover is not None
    return mover


def index(runs: Runs) -> Tensor:
    return torch.cat([torch.arange(first, first + length) for first, length in runs])


def expect(before: list[Tensor], direction: Direction, device: Runs, host: Runs, layers: range) -> list[Tensor]:
    here, there = index(device), index(host)
    for k_or_v in (0, 1):
        for layer in layers:
            if direction == "load":
                before[k_or_v][layer, here] = before[2 + k_or_v][layer, there]
            else:
                before[2 + k_or_v][layer, there] = before[k_or_v][layer, here]
    return before


def check(pools: Pools, expected: list[Tensor]) -> None:
    torch.cuda.synchronize()
    for found, wanted in zip(pools.all(), expected, strict=True):
        assert checks.same_bytes(found, wanted)


def scattered(num_pages: int, seed: int, first: int = 0, spare: int = 0) -> Runs:
    """Pages in any order, the first from its token `first` on, the last without `spare` tokens."""
    runs = [(page * PAGE, PAGE) for page in random.Random(seed).sample(range(PAGES), num_pages)]
    runs[0] = (runs[0][0] + first, PAGE - first)
    runs[-1] = (runs[-1][0], runs[-1][1] - spare)
    return merge_adjacent(runs)


CASES: dict[str, tuple[Runs, Runs]] = {
    "contiguous": ([(32, 2000)], [(7, 2000)]),
    "one": ([(5, 1)], [(9, 1)]),
    "pages": (scattered(100, 1), scattered(100, 2)),
    "pages_to_run": (scattered(90, 3, first=5), [(3, 90 * PAGE - 5)]),
    "uneven": (scattered(40, 4, first=3, spare=9), scattered(40, 5, first=12)),
    "large_and_small": ([(0, 1000), *[(1024 + 32 * i, 3) for i in range(20)]], [(16, 1060)]),
    "few": ([(0, 20), (100, 7)], [(50, 27)]),
}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("layers", [range(LAYERS), range(2, 5)])
def test_every_way_is_bitwise_and_none_waits(
    pools: Pools, case: str, direction: Direction, path: Path, layers: range
) -> None:
    device, host = CASES[case]
    expected = expect(fill(pools, direction), direction, device, host, layers)
    torch.cuda.set_sync_debug_mode("error")
    try:
        copy = pools.copier.start(direction, device, host, layers=layers, path=path)
        copy.done()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert copy.enqueued()
    copy.wait()
    assert copy.done()
    assert copy.problem() is None
    assert copy.seconds is not None
    assert copy.seconds > 0
    check(pools, expected)


@pytest.mark.parametrize("by_pitch", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kv_heads", [1, 3])
def test_other_geometries(by_pitch: bool, dtype: torch.dtype, kv_heads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the runtime's copies of rectangles are not to be had."""
    if not by_pitch:
        monkeypatch.setattr(card_copies, "cuda_runtime", lambda: None)
    made = make_pools(dtype, kv_heads)
    for direction in DIRECTIONS:
        for path in PATHS:
            device, host = CASES["uneven"]
            expected = expect(fill(made, direction), direction, device, host, range(LAYERS))
            made.copier.start(direction, device, host, path=path).wait()
            check(made, expected)
    made.copier.close()
    made.host.close()


def test_the_runtimes_copy_of_rectangles_is_found(pools: Pools) -> None:
    assert cuda_runtime() is not None
    device, host = CASES["contiguous"]
    pools.copier.start("load", device, host, path="dma").wait()
    assert mover_of(pools, "load")._by_pitch


def test_a_pitch_that_is_refused_falls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    made = make_pools()
    monkeypatch.setattr(CudaRuntime, "copy_rectangle", lambda *arguments: 12)
    device, host = CASES["contiguous"]
    expected = expect(fill(made, "save"), "save", device, host, range(LAYERS))
    made.copier.start("save", device, host, path="dma").wait()
    check(made, expected)
    assert not mover_of(made, "save")._by_pitch
    made.copier.close()
    made.host.close()


def test_what_fails_leaves_no_error_for_the_next_kernel(pools: Pools) -> None:
    runtime = cuda_runtime()
    assert runtime is not None
    # a pitch less than the width
    assert runtime.copy_rectangle(pools.k.data_ptr(), 1, pools.host.k.data_ptr(), 1, 64, 2, HOST_TO_DEVICE, 0) != 0
    torch.zeros(4, device="cuda")
    torch.cuda.synchronize()


@pytest.mark.parametrize("path", PATHS)
def test_a_copy_waits_for_what_it_is_told_to(pools: Pools, path: Path) -> None:
    """The pages are written by a stream that is still busy."""
    device, host = CASES["pages"]
    fill(pools, "save")
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda._sleep(SLEEP_CYCLES)
        pools.k.fill_(1.5)
        after = torch.cuda.Event()
        after.record()
    copy = pools.copier.start("save", device, host, after=after, path=path)
    assert not copy.done() or after.query()
    copy.wait()
    assert (pools.host.k[:, index(host)] == 1.5).all()


def test_both_directions_at_once_and_many_in_a_row(pools: Pools) -> None:
    """More than there are tables, so that a table in use is not written to."""
    before = fill(pools, "load")
    torch.cuda.synchronize()
    copies = []
    for seed in range(40):
        half = [(first // 2 // PAGE * PAGE, length) for first, length in scattered(8, seed)]
        half = list({run[0]: run for run in half if run[1] == PAGE}.values())
        saved = [(first + PAGES // 2 * PAGE, length) for first, length in half]
        copies.append(pools.copier.start("load", half, half[::-1], path="kernel"))
        copies.append(pools.copier.start("save", saved, saved[::-1], path="kernel"))
        expect(before, "load", half, half[::-1], range(LAYERS))
        expect(before, "save", saved, saved[::-1], range(LAYERS))
    for copy in copies:
        copy.wait()
        assert copy.problem() is None
    check(pools, before)


def test_a_captured_forward_waits_at_the_gates(pools: Pools) -> None:
    """It copies each layer away as soon as its gate opens; launched before the load has come, it gets what came."""
    gates = LayerGates(LAYERS, 3, torch.device("cuda"))
    seen = torch.empty_like(pools.k)

    def forward() -> None:
        for layer in range(LAYERS):
            if (group := gates.group_beginning_at(layer)) is not None:
                gates.wait(group)
            seen[layer].copy_(pools.k[layer])

    forward()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        forward()
    device, host = CASES["pages"]
    for path in PATHS:
        expected = expect(fill(pools, "load"), "load", device, host, range(LAYERS))
        with torch.cuda.stream(torch.cuda.Stream()):
            torch.cuda._sleep(SLEEP_CYCLES)
            after = torch.cuda.Event()
            after.record()
        copy = pools.copier.start("load", device, host, after=after, gates=gates, path=path)
        assert copy.event(1) is gates.events[1]
        graph.replay()
        check(pools, expected)
        assert checks.same_bytes(seen, expected[0])
    graph.replay()  # nothing is under way: it passes
    torch.cuda.synchronize()


def test_a_gate_is_that_of_the_launch() -> None:
    """A forward under way is not held back by a load that is gated after it: that one may wait for the forward."""
    gates = LayerGates(2, 1, torch.device("cuda"))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        torch.cuda._sleep(SLEEP_CYCLES)
        gates.wait(0)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    ended, opened = torch.cuda.Event(), torch.cuda.Event()
    graph.replay()
    ended.record()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(10 * SLEEP_CYCLES)
        gates.events[0].record()
        opened.record()
    ended.synchronize()
    assert not opened.query()
    torch.cuda.synchronize()


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_paced_copy_takes_its_time_and_holds_nobody_up(direction: Direction) -> None:
    made = make_pools(limit=1e9)
    device, host = CASES["pages"]
    expected = expect(fill(made, direction), direction, device, host, range(LAYERS))
    gates = LayerGates(LAYERS, 3, torch.device("cuda"))
    began = time.perf_counter()
    copy = made.copier.start(direction, device, host, gates=gates)
    assert time.perf_counter() - began < 0.005
    copy.wait()
    taken_s = time.perf_counter() - began
    assert copy.num_bytes / 1e9 <= taken_s < copy.num_bytes / 1e9 + 0.05
    assert copy.seconds is not None
    assert copy.seconds >= copy.num_bytes / 1e9
    check(made, expected)
    made.copier.close()
    made.host.close()


@pytest.mark.parametrize("loads", [True, False])
@pytest.mark.parametrize(("kv_heads", "dim"), [(8, 128), (3, 64), (1, 20), (1, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_programs", [1, 16])
def test_the_kernel(kv_heads: int, dim: int, dtype: torch.dtype, loads: bool, num_programs: int) -> None:
    checks.check_copy_units(
        kv_heads, dim, dtype, "cuda", layers=range(1, 4), num_units=50, max_tokens=37, num_programs=num_programs,
        loads=loads,
    )  # fmt: skip


def test_memory_is_pinned_and_given_back() -> None:
    told: list[float] = []
    block = HostBlock(64 << 20, pinned=True, progress=told.append)
    assert block.is_pinned
    assert block.bytes.is_pinned()
    assert told == sorted(told)
    assert told[-1] == 1.0
    block.close()
    again = HostBlock(64 << 20, pinned=True)
    assert again.is_pinned
    again.close()
