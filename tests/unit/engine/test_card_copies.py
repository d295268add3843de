"""How copies are put on a card's stream, without a card: the runtime, streams and events are stand-ins that do at once
what a card would do later, and the kernel runs in Triton's interpreter."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from laban.actors.engine import card_copies
from laban.actors.engine.card_copies import CardCopy, CardMover, Path
from laban.actors.engine.copy_pieces import parts_of, pieces_of
from laban.actors.engine.cuda_runtime import DEVICE_TO_HOST, HOST_TO_DEVICE
from laban.actors.engine.host_pool import HostPool
from laban.actors.engine.layer_gates import LayerGates
from laban.actors.engine.pacing import Lane
from laban.actors.engine.runs import Runs
from laban.kernels.tier_copy import copy_units

pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card: see tests/gpu")

LAYERS, SLOTS, KV_HEADS, DIM = 4, 64, 2, 8
ROW = KV_HEADS * DIM * 4
log: list[str] = []


class Stream:
    cuda_stream = 77

    def __init__(self, device: torch.device, priority: int) -> None:
        assert priority == 0

    def wait_event(self, event: Event) -> None:
        log.append(f"wait {event.name}")

    def synchronize(self) -> None:
        log.append("synchronize")


@dataclass
class Event:
    enable_timing: bool = False
    external: bool = False
    name: str = ""
    recorded: bool = False
    passed: bool = True
    broken: bool = False

    def record(self, stream: object = None) -> None:
        self.recorded = True
        log.append(f"record {self.name}")

    def query(self) -> bool:
        if self.broken:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return self.passed

    def synchronize(self) -> None:
        self.query()

    def elapsed_time(self, end: Event) -> float:
        assert self.recorded
        assert end.recorded
        return 250.0


@dataclass
class Runtime:
    """cudaMemcpy2DAsync; `status` other than 0 refuses."""

    status: int = 0
    calls: list[tuple[int, int, int]] = field(default_factory=list)

    def copy_rectangle(self, target: int, target_pitch: int, source: int, source_pitch: int, *rest: int) -> int:
        width, height, kind, stream = rest
        assert stream == Stream.cuda_stream
        assert width <= min(target_pitch, source_pitch)
        if self.status == 0:
            self.calls.append((width, height, kind))
            log.append("rectangle")
            for line in range(height):
                ctypes.memmove(target + line * target_pitch, source + line * source_pitch, width)
        return self.status


@dataclass
class Table:
    device: torch.device
    free: Event = field(default_factory=lambda: Event(name="table"))

    def send(self, units: object) -> Tensor:
        return torch.tensor(units, dtype=torch.int32)


class Card:
    """Pools, and a mover for each direction."""

    def __init__(self) -> None:
        self.k, self.v = torch.randn(2, LAYERS, SLOTS, KV_HEADS, DIM)
        self.host = HostPool(5, 16, LAYERS, KV_HEADS, DIM, torch.float32, pinned=False)
        self.host.k.normal_()
        self.host.v.normal_()
        self.host.is_pinned = True
        self.lane = Lane("copies", threaded=False, pacer=None, clock=lambda: 0.0)

    def mover(self, loads: bool) -> CardMover:
        mover = CardMover(self.k, self.v, self.host, loads, 3)
        log.clear()
        return mover

    def start(
        self, mover: CardMover, both: tuple[Runs, Runs], layers: range = range(LAYERS), path: Path = "auto",
        gates: LayerGates | None = None, after: Event | None = None, least_s: float = 0.0,
    ) -> CardCopy:  # fmt: skip
        groups: list[tuple[range, int | None]] = [(layers, None)]
        if gates is not None:
            groups = [(group, number) for number, group in enumerate(gates.groups)]
        pieces = pieces_of(*both)
        num_tokens = int(pieces[:, 2].sum())
        num_bytes = num_tokens * 2 * ROW * len(layers)
        parts = parts_of(pieces, groups, 2 * ROW, None)
        copy = CardCopy(mover, parts, num_tokens, num_bytes, after, gates, path, least_s)  # type: ignore[arg-type]
        self.lane.put(copy)
        return copy

    def expected(self, both: tuple[Runs, Runs], layers: range, loads: bool) -> list[Tensor]:
        result = [x.clone() for x in (self.k, self.v, self.host.k, self.host.v)]
        for device, host, length in pieces_of(*both).tolist():
            for i in (0, 1):
                here = result[i][layers.start : layers.stop, device : device + length]
                there = result[2 + i][layers.start : layers.stop, host : host + length]
                (here if loads else there).copy_(there if loads else here)
        return result

    def check(self, expected: list[Tensor]) -> None:
        for found, wanted in zip((self.k, self.v, self.host.k, self.host.v), expected, strict=True):
            assert torch.equal(found, wanted)


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Runtime:
    runtime = Runtime()
    log.clear()
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(card_copies, "cuda_runtime", lambda: runtime)
    monkeypatch.setattr(card_copies, "_Table", Table)
    monkeypatch.setattr(card_copies, "LEAST_DMA_BYTES", 8 * ROW)
    return runtime


@pytest.fixture
def kernel_units(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Tokens of the units of each launch."""
    launched: list[int] = []

    def launch(*arguments: Tensor | range | int) -> None:
        units = arguments[4]
        assert isinstance(units, Tensor)
        launched.append(int(units[:, 2].sum()))
        copy_units(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(card_copies, "copy_units", launch)
    return launched


MIXED: tuple[Runs, Runs] = ([(0, 20), (30, 3), (40, 2), (50, 1), (60, 4), (25, 2)], [(70, 10), (3, 22)])
LARGE: tuple[Runs, Runs] = ([(7, 40)], [(33, 40)])
SMALL: tuple[Runs, Runs] = ([(60 - 4 * i, 2) for i in range(9)], [(4 * i, 2) for i in range(9)])


@pytest.mark.parametrize("path", ["auto", "dma", "slices", "kernel"])
@pytest.mark.parametrize("loads", [True, False])
@pytest.mark.parametrize("both", [MIXED, LARGE, SMALL])
@pytest.mark.parametrize("layers", [range(LAYERS), range(1, 3), range(2, 2)])
def test_every_way_moves_the_same(
    runtime: Runtime, both: tuple[Runs, Runs], layers: range, loads: bool, path: Path
) -> None:
    card = Card()
    expected = card.expected(both, layers, loads)
    copy = card.start(card.mover(loads), both, layers, path)
    card.check(expected)
    assert copy.done()
    assert copy.problem() is None
    assert copy.seconds == 0.25
    assert {kind for _, _, kind in runtime.calls} <= {HOST_TO_DEVICE if loads else DEVICE_TO_HOST}


def test_large_pieces_are_the_engines_and_the_rest_the_kernels(runtime: Runtime, kernel_units: list[int]) -> None:
    card = Card()
    mover = card.mover(True)
    kernel_units.clear()
    card.start(mover, MIXED)
    assert sorted(runtime.calls) == sorted(2 * [(10 * ROW, LAYERS, 1), (10 * ROW, LAYERS, 1)])
    assert kernel_units == [12]
    runtime.calls.clear()
    card.start(mover, LARGE)  # nothing for the kernel
    card.start(mover, ([(0, 3), (10, 2)], [(5, 5)]))  # few enough for the engines
    assert len(runtime.calls) == 2 + 4
    assert kernel_units == [12]


def test_a_refused_rectangle_is_the_last(runtime: Runtime) -> None:
    card = Card()
    runtime.status = 12
    mover = card.mover(False)
    expected = card.expected(LARGE, range(LAYERS), False)
    assert card.start(mover, LARGE).problem() is None
    card.check(expected)
    runtime.status = 0
    card.start(mover, LARGE)
    assert runtime.calls == []


def test_without_the_runtime_or_pinned_memory_it_goes_layer_by_layer(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch, kernel_units: list[int]
) -> None:
    monkeypatch.setattr(card_copies, "cuda_runtime", lambda: None)
    card = Card()
    mover = card.mover(True)
    expected = card.expected(MIXED, range(LAYERS), True)
    kernel_units.clear()
    card.start(mover, MIXED)
    assert kernel_units == [32]  # all of it is less than a slice is worth
    card.host.is_pinned = False
    mover = card.mover(True)
    card.start(mover, MIXED, path="kernel")
    assert kernel_units == [32]
    card.check(expected)


def test_more_units_than_a_table_has(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch, kernel_units: list[int]
) -> None:
    monkeypatch.setattr(card_copies, "TABLE_UNITS", 4)
    card = Card()
    mover = card.mover(True)
    kernel_units.clear()
    expected = card.expected(SMALL, range(LAYERS), True)
    card.start(mover, SMALL)
    card.check(expected)
    assert kernel_units == [8, 8, 2]


def test_a_table_in_use_is_left_alone(runtime: Runtime) -> None:
    card = Card()
    mover = card.mover(True)
    for busy in (True, True, False):
        for table in mover._tables:
            table.free.passed = not busy  # type: ignore[attr-defined]
        card.start(mover, SMALL)
    assert len(mover._tables) == 3


def named(gates: LayerGates) -> LayerGates:
    gates.events = tuple(Event(external=True, name=f"gate{i}") for i in range(len(gates.groups)))  # type: ignore[misc]
    return gates


def test_gates_are_recorded_as_their_layers_are_given(runtime: Runtime) -> None:
    card = Card()
    gates = named(LayerGates(LAYERS, 2, torch.device("cpu")))
    copy = card.start(card.mover(True), LARGE, gates=gates, after=Event(name="forward"))
    copy._began.name, copy._ended.name = "begin", "end"  # type: ignore[attr-defined]
    rectangles = ["rectangle", "rectangle"]
    assert log == ["wait forward", "record ", *rectangles, "record gate0", *rectangles, "record gate1", "record "]
    assert [height for _, height, _ in runtime.calls] == [2, 2, 2, 2]
    assert copy.event(1) is gates.events[1]
    assert card.start(card.mover(True), LARGE).event(1) is not gates.events[1]


def test_it_is_done_when_the_card_says_so(runtime: Runtime) -> None:
    card = Card()
    copy = card.start(card.mover(True), LARGE, least_s=0.7)
    ended: Event = copy._ended  # type: ignore[assignment]
    ended.passed = False
    assert copy.enqueued()
    assert not copy.done()
    assert copy.seconds is None
    ended.passed = True
    assert copy.done()
    assert copy.seconds == 0.7  # of a slower link


def test_a_card_that_fails_is_a_problem_and_raises_nothing(runtime: Runtime) -> None:
    card = Card()
    copy = card.start(card.mover(True), LARGE)
    copy._ended.broken = True  # type: ignore[attr-defined]
    copy.wait()
    assert copy.done()
    assert "illegal memory access" in str(copy.problem())
    assert copy.seconds is None


def test_what_fails_half_way_is_not_done_before_the_half(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    card = Card()
    mover = card.mover(True)

    def fail(*_: object) -> None:
        raise RuntimeError("out of resources")

    monkeypatch.setattr(card_copies, "copy_units", fail)
    events: list[Event] = []

    def make(**options: bool) -> Event:
        events.append(Event(passed=False, **options))
        return events[-1]

    make_event: Callable[..., Event] = make
    monkeypatch.setattr(torch.cuda, "Event", make_event)
    copy = card.start(mover, MIXED)
    assert copy.problem() == "RuntimeError: out of resources"
    assert not copy.done()  # the engines still write
    assert events[-1].recorded
    events[-1].passed = True
    assert copy.done()
    assert copy.seconds is None
