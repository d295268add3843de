"""Copies between the device's pool and the host's, on a CPU: every token in its place, in order, at a given rate."""

from __future__ import annotations

import gc
import mmap
import threading
import weakref
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from laban.actors.engine.copier import Copier
from laban.actors.engine.copy_pieces import Part, cut, parts_of, pieces_of
from laban.actors.engine.host_pool import HostPool
from laban.actors.engine.layer_gates import LayerGates
from laban.actors.engine.pacing import Pacer
from laban.actors.engine.runs import Runs, length_of

LAYERS, SLOTS, KV_HEADS, DIM = 4, 48, 2, 3
LAYER_BYTES = 2 * KV_HEADS * DIM * 4


def runs_of(slots: list[int], breaks: set[int]) -> Runs:
    runs: Runs = []
    for at, slot in enumerate(slots):
        if runs and sum(runs[-1]) == slot and at not in breaks:
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((slot, 1))
    return runs


@st.composite
def slots(draw: st.DrawFn, count: int, num_slots: int) -> list[int]:
    """Distinct, in stretches."""
    size = draw(st.integers(1, 8))
    order = draw(st.permutations(range(num_slots // size)))
    return [size * page + i for page in order for i in range(size)][:count]


@st.composite
def both_runs(draw: st.DrawFn) -> tuple[Runs, Runs]:
    count = draw(st.integers(0, 40))
    sides = []
    for num_slots in (SLOTS, SLOTS + 8):
        breaks = draw(st.sets(st.integers(1, 40), max_size=4))
        sides.append(runs_of(draw(slots(count, num_slots)), breaks))
    return sides[0], sides[1]


def index(runs: Runs) -> torch.Tensor:
    return torch.tensor([slot for first, length in runs for slot in range(first, first + length)], dtype=torch.long)


class Pools:
    def __init__(self) -> None:
        self.k, self.v = torch.randn(2, LAYERS, SLOTS, KV_HEADS, DIM)
        self.host = HostPool((SLOTS + 8) // 8, 8, LAYERS, KV_HEADS, DIM, torch.float32, pinned=False)
        self.host.k.normal_()
        self.host.v.normal_()


@pytest.fixture(scope="module")
def pools() -> Pools:
    return Pools()


@pytest.fixture(scope="module")
def copier(pools: Pools) -> Iterator[Copier]:
    copier = Copier(pools.k, pools.v, pools.host)
    yield copier
    copier.close()


@given(both=both_runs())
def test_pieces_are_few_and_cover_everything_in_order(both: tuple[Runs, Runs]) -> None:
    device, host = both
    pieces = pieces_of(device, host)
    assert length_of(device) == sum(pieces[:, 2])
    for column, runs in ((0, device), (1, host)):
        assert index([(int(p[column]), int(p[2])) for p in pieces]).tolist() == index(runs).tolist()
    assert len(pieces) <= len(device) + len(host)
    assert (pieces[:, 2] > 0).all()


def test_runs_of_no_length_are_none() -> None:
    assert pieces_of([(3, 0), (5, 2)], [(7, 1), (0, 0), (1, 1)]).tolist() == [[5, 7, 1], [6, 1, 1]]
    assert pieces_of([], [(4, 0)]).tolist() == []


@given(both=both_runs(), most=st.integers(1, 9))
def test_cut_pieces_are_the_same_tokens(both: tuple[Runs, Runs], most: int) -> None:
    pieces = cut(pieces_of(*both), most)
    for column, runs in ((0, both[0]), (1, both[1])):
        assert index([(int(p[column]), int(p[2])) for p in pieces]).tolist() == index(runs).tolist()
    assert (pieces[:, 2] <= most).all()
    assert (pieces[:, 2] > 0).all()


@given(both=both_runs(), max_bytes=st.one_of(st.none(), st.integers(1, 4000)), num_groups=st.integers(1, LAYERS))
def test_parts_are_every_token_of_every_layer_once(
    both: tuple[Runs, Runs], max_bytes: int | None, num_groups: int
) -> None:
    gates = LayerGates(LAYERS, num_groups, torch.device("cpu"))
    groups: list[tuple[range, int | None]] = [(group, number) for number, group in enumerate(gates.groups)]
    seen: list[tuple[int, int, int]] = []
    opened: list[int] = []
    for part in parts_of(pieces_of(*both), groups, LAYER_BYTES, max_bytes):
        for layer in part.layers:
            for device, host, length in part.pieces.tolist():
                seen += [(layer, device + i, host + i) for i in range(length)]
        assert part.num_bytes == part.pieces[:, 2].sum() * len(part.layers) * LAYER_BYTES
        assert max_bytes is None or part.num_bytes <= max(max_bytes, len(part.layers) * LAYER_BYTES)
        if part.gate is not None:
            opened.append(part.gate)
            done = {layer for layer, _, _ in seen}
            assert not length_of(both[0]) or done == set(range(gates.groups[part.gate].stop))
    pairs = list(zip(index(both[0]).tolist(), index(both[1]).tolist(), strict=True))
    assert sorted(seen) == sorted((layer, *pair) for layer in range(LAYERS) for pair in pairs)
    assert opened == list(range(num_groups))


@given(both=both_runs(), loads=st.booleans(), first=st.integers(0, LAYERS), last=st.integers(0, LAYERS))
def test_copied_is_what_a_reference_copies_and_nothing_else_changes(
    pools: Pools, copier: Copier, both: tuple[Runs, Runs], loads: bool, first: int, last: int
) -> None:
    layers = range(first, max(first, last))
    device, host = index(both[0]), index(both[1])
    expected = [x.clone() for x in (pools.k, pools.v, pools.host.k, pools.host.v)]
    for here, there in ((0, 2), (1, 3)):
        for layer in layers:
            if loads:
                expected[here][layer, device] = expected[there][layer, host]
            else:
                expected[there][layer, host] = expected[here][layer, device]
    copy = copier.start("load" if loads else "save", *both, layers=layers)
    copy.wait()
    assert copy.done()
    assert copy.enqueued()
    assert copy.problem() is None
    assert copy.seconds is not None
    assert copy.num_bytes == len(device) * len(layers) * LAYER_BYTES
    for found, wanted in zip((pools.k, pools.v, pools.host.k, pools.host.v), expected, strict=True):
        assert torch.equal(found, wanted)


def test_what_does_not_fit_is_refused_at_once(pools: Pools, copier: Copier) -> None:
    with pytest.raises(ValueError, match="4 tokens on the device, 5 on the host"):
        copier.start("load", [(0, 4)], [(0, 5)])
    for device, host, side in ((SLOTS - 3, 0, "device"), (-1, 0, "device"), (0, SLOTS + 5, "host"), (0, -1, "host")):
        with pytest.raises(ValueError, match=side):
            copier.start("save", [(device, 4)], [(host, 4)])


def test_pools_of_two_shapes_are_refused(pools: Pools) -> None:
    with pytest.raises(ValueError, match="device's pool"):
        Copier(pools.k[:2].contiguous(), pools.v[:2].contiguous(), pools.host)


def test_one_that_fails_says_so_and_the_next_goes_on(
    pools: Pools, copier: Copier, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("laban.actors.engine.copier.HostCopy.move", lambda copy, part: 1 / 0)
        copy = copier.start("load", [(0, 4)], [(0, 4)])
        copy.wait()
        assert copy.done()
        assert copy.problem() == "ZeroDivisionError: division by zero"
        assert copy.seconds is None
    copy = copier.start("load", [(0, 4)], [(0, 4)])
    copy.wait()
    assert copy.problem() is None


def test_bfloat16_and_rows_of_odd_sizes() -> None:
    k, v = (torch.randn(2, 8, 1, 3).bfloat16() for _ in range(2))
    host = HostPool(2, 4, 2, 1, 3, torch.bfloat16, pinned=False)
    copier = Copier(k, v, host)
    copier.start("save", [(5, 3)], [(0, 3)]).wait()
    assert torch.equal(host.read([(0, 3)]), torch.stack([k[:, 5:8], v[:, 5:8]]))
    copier.close()


class Time:
    """A clock that only sleeping moves; `sleep` may be made to block."""

    def __init__(self) -> None:
        self.now = 100.0
        self.going = threading.Event()
        self.going.set()

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.going.wait(10)
        self.now += seconds


def test_a_link_of_a_given_rate_is_never_ahead_of_it() -> None:
    pacer = Pacer(1000.0)
    assert pacer.arrival(500, 10.0) == 10.5
    assert pacer.arrival(500, 10.1) == 11.0  # still busy
    assert pacer.arrival(100, 20.0) == 20.1  # idle since: what it did not use is lost
    with pytest.raises(ValueError, match="limit_bytes_per_s"):
        Pacer(0)


@pytest.mark.parametrize("rate", [1e6, 5e9])
def test_paced_copies_take_as_long_as_the_link_would(rate: float) -> None:
    """Larger than a part, so that it comes bit by bit."""
    layers, slots = 2, 20_000
    k, v = torch.randn(2, layers, slots, 1, 64)
    host = HostPool(slots // 16, 16, layers, 1, 64, torch.float32, pinned=False)
    times = Time()
    copier = Copier(k, v, host, limit_bytes_per_s=rate, clock=times.clock, sleep=times.sleep)
    times.going.clear()
    copies = [copier.start("save", [(0, slots)], [(0, slots)]), copier.start("save", [(7, 9)], [(2, 9)])]
    assert not copies[0].enqueued()
    assert not copies[1].done()
    times.going.set()
    for copy in copies:
        copy.wait()
        assert copy.seconds == pytest.approx(copy.num_bytes / rate, rel=1e-6)
    assert times.now - 100 == pytest.approx(sum(copy.num_bytes for copy in copies) / rate, rel=1e-6)
    expected = torch.stack([k, v])
    expected[:, :, 2:11] = torch.stack([k, v])[:, :, 7:16]
    assert torch.equal(host.read([(0, slots)]), expected)
    copier.close()
    assert copier.start("load", [(0, 1)], [(0, 1)]).problem() == "the copier is closed"


def test_each_direction_has_the_whole_rate() -> None:
    k, v = torch.randn(2, 1, 64, 1, 64)
    host = HostPool(4, 16, 1, 1, 64, torch.float32, pinned=False)
    slept = threading.local()  # each direction has a thread, which is to sleep for its own bytes alone

    def clock() -> float:
        return getattr(slept, "total_s", 0.0)

    def sleep(seconds: float) -> None:
        slept.total_s = clock() + seconds

    copier = Copier(k, v, host, limit_bytes_per_s=1e6, clock=clock, sleep=sleep)
    copies = [copier.start("load", [(0, 32)], [(0, 32)]), copier.start("save", [(32, 32)], [(32, 32)])]
    for copy in copies:
        copy.wait()
        assert copy.seconds == pytest.approx(copy.num_bytes / 1e6)
    copier.close()


def test_closing_does_not_wait_for_a_slow_link() -> None:
    k, v = torch.randn(2, 1, 64, 1, 64)
    host = HostPool(4, 16, 1, 1, 64, torch.float32, pinned=False)
    copier = Copier(k, v, host, limit_bytes_per_s=1.0)
    copies = [copier.start("load", [(0, 64)], [(0, 64)]) for _ in range(2)]
    copier.close()
    assert [copy.problem() for copy in copies] == ["the copier is closed"] * 2


def test_gates_are_recorded_layer_group_by_layer_group(pools: Pools) -> None:
    copier = Copier(pools.k, pools.v, pools.host)
    gates = LayerGates(LAYERS, 3, torch.device("cpu"))
    assert [list(group) for group in gates.groups] == [[0], [1], [2, 3]]
    assert [gates.group_beginning_at(layer) for layer in range(LAYERS)] == [0, 1, 2, None]
    copy = copier.start("load", [(0, 8)], [(8, 8)], gates=gates)
    copy.wait()
    assert torch.equal(pools.k[:, :8], pools.host.k[:, 8:16])
    assert copy.event(0) is None
    gates.wait(0)
    copier.close()


def test_no_copies_overtake_within_a_direction(pools: Pools, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[int] = []

    def note(copy: object, part: Part) -> None:
        order.append(int(part.pieces[0, 0]))

    monkeypatch.setattr("laban.actors.engine.copier.HostCopy.move", note)
    copier = Copier(pools.k, pools.v, pools.host)
    slots = list(np.random.default_rng(1).permutation(SLOTS - 1))
    for copy in [copier.start("load", [(int(slot), 1)], [(0, 1)]) for slot in slots]:
        copy.wait()
    assert order == slots
    copier.close()


def test_what_is_closed_gives_its_memory_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Though the copier itself is still held: another pool may be made before it is let go."""
    rooms: list[weakref.ref[mmap.mmap]] = []

    class Room(mmap.mmap):
        def __init__(self, *_: object) -> None:
            rooms.append(weakref.ref(self))

    monkeypatch.setattr(mmap, "mmap", Room)
    pools = Pools()
    copier = Copier(pools.k, pools.v, pools.host)
    copier.start("save", [(0, 8)], [(8, 8)]).wait()
    copier.close()
    pools.host.close()
    gc.collect()
    assert [room() for room in rooms] == [None]
