"""How much the link is given at once: loads in pieces, by who waits for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from laban.actors.calls import WorkerRates
from laban.actors.engine.copier import GENTLE_BYTES_PER_S
from laban.actors.engine.layer_gates import LayerGates
from laban.actors.engine.loads import CHUNK_BYTES, IDLE_IN_FLIGHT_S, IN_FLIGHT_S, Load, Loads
from laban.actors.engine.sequence import Sequence
from laban.kvstore.encodings import EMPTY_VIEW, make_spec
from laban.kvstore.store import EncodingStore

PAGE_SIZE, BYTES_PER_TOKEN, NUM_TOKENS = 16, 128 << 10, 8192
RATES = WorkerRates(host_bytes_per_s=50e9, iteration_s=0.006)


@dataclass
class Link:
    """A copier that copies when it is told to."""

    bytes_in_flight: int = 0
    under_way: list[tuple[int, Callable[[], None]]] = field(default_factory=list)
    gently: list[bool] = field(default_factory=list)

    def start(
        self,
        direction: str,
        device: Any,
        host: Any,
        arrived: Callable[[], None],
        failed: Callable[[], None],
        after: Any,
        gates: Any,
        gentle: bool,
    ) -> Any:
        assert direction == "load"
        num_bytes = BYTES_PER_TOKEN * sum(length for _, length in device)
        assert num_bytes <= CHUNK_BYTES or gates is not None
        self.bytes_in_flight += num_bytes
        self.under_way.append((num_bytes, arrived))
        self.gently.append(gentle)
        return self

    def enqueued(self) -> bool:
        return True

    def problem(self) -> None: ...

    def land(self) -> None:
        num_bytes, arrived = self.under_way.pop(0)
        self.bytes_in_flight -= num_bytes
        arrived()


def loading(link: Link, *, wanted: bool, stop: int = NUM_TOKENS) -> tuple[Loads, Sequence]:
    store = EncodingStore(NUM_TOKENS // PAGE_SIZE, PAGE_SIZE)
    host = EncodingStore(NUM_TOKENS // PAGE_SIZE, PAGE_SIZE)
    spec = make_spec("test", tuple(range(NUM_TOKENS)), 0, EMPTY_VIEW, {})
    here, there = (pool.reserve(spec.encoding_id, NUM_TOKENS) for pool in (store, host))
    assert here is not None
    assert there is not None
    loads = Loads(link, BYTES_PER_TOKEN, PAGE_SIZE, lambda pages: None)  # type: ignore[arg-type]
    sequence = Sequence(here, 0, list(spec.tokens), (), (), spec)
    loads.start(sequence, Load(there, stop, wanted=wanted))
    return loads, sequence


@pytest.mark.parametrize("wanted", [False, True])
@pytest.mark.parametrize("idle", [False, True])
def test_what_nobody_waits_for_is_brought_a_little_at_a_time_while_nothing_runs(idle: bool, wanted: bool) -> None:
    link = Link()
    loads, sequence = loading(link, wanted=wanted)
    most, times = 0, 0
    while not list(loads.arrived()):
        loads.pump(RATES, idle=idle)
        most, times = max(most, link.bytes_in_flight), times + 1
        link.land()
        assert times < NUM_TOKENS
    a_little = IDLE_IN_FLIGHT_S * RATES.host_bytes_per_s + BYTES_PER_TOKEN * PAGE_SIZE
    assert (most <= a_little) == (idle and not wanted)
    assert not link.under_way
    assert sequence.load is not None
    assert sequence.load.there == 0


@pytest.mark.parametrize("wanted", [False, True])
@pytest.mark.parametrize("beside", [False, True])
def test_what_nobody_waits_for_lets_by_what_a_prefill_needs(beside: bool, wanted: bool) -> None:
    link = Link()
    loads, _ = loading(link, wanted=wanted)
    loads.pump(RATES, beside=beside)
    assert set(link.gently) == {beside or not wanted}
    gently = IN_FLIGHT_S * GENTLE_BYTES_PER_S + BYTES_PER_TOKEN * PAGE_SIZE
    assert (link.bytes_in_flight <= gently) == (beside or not wanted)


@pytest.mark.parametrize("stop", [NUM_TOKENS, NUM_TOKENS - 100])
def test_a_forward_may_only_run_into_the_gates_of_what_will_be_there_whole(stop: int) -> None:
    link = Link()
    loads, sequence = loading(link, wanted=True, stop=stop)
    loads.pump(RATES, gates=LayerGates(4, 2, torch.device("cpu")))
    assert sequence.is_computed == (stop == NUM_TOKENS)
