"""What is lent under any order of calls, evictions, transfers and silences stays where it is, and nothing else does."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from engine_harness import Driver, make_engine
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from transfer_rig import Clock, Loop

from laban.actors.calls import Sampling
from laban.actors.engine.disk_folder import rows_of
from laban.actors.exporting import Exporting
from laban.actors.transfers import Chunk, Granted, Refused, checksum_of
from laban.kvstore.encodings import EncodingSpec

LEASE_S = 10.0
SIZES = (17, 40, 64)


class ExportsMachine(RuleBasedStateMachine):
    """A worker with room for about three of six messages on the device and for four on the host."""

    def __init__(self) -> None:
        super().__init__()
        self.driver, self.clock = Driver(make_engine(pool_tokens=160, host_tokens=208)), Clock()
        self.exporting = Exporting(Loop(self.driver.engine), lease_s=LEASE_S, chunk_tokens=16, clock=self.clock)
        self.exporting._watch = lambda: None  # type: ignore[method-assign]
        self.first: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}  # keys and values as they were at first
        self.specs: list[EncodingSpec] = []
        self.leases: dict[int, tuple[EncodingSpec, float]] = {}  # and until when at least

    @property
    def engine(self) -> Any:
        return self.driver.engine

    @rule(number=st.integers(0, 5))
    def encode(self, number: int) -> None:
        spec = self.driver.prefill([(number + 3 * i) % 128 for i in range(SIZES[number % 3])])
        if spec.encoding_id not in self.first:
            self.first[spec.encoding_id] = tuple(part.clone() for part in self.driver.keys_and_values(spec))
            self.specs.append(spec)

    @precondition(lambda self: self.specs)
    @rule(data=st.data())
    def read(self, data: Any) -> None:
        spec = data.draw(st.sampled_from(self.specs))
        call = self.driver.submit([1], self.driver.chain(spec), sampling=Sampling(max_tokens=2))
        self.driver.run()
        self.driver.result(call)

    @rule(device=st.booleans())
    def evict(self, device: bool) -> None:
        (self.engine.store if device else self.engine.tiers.host).evict_all()

    @precondition(lambda self: self.specs)
    @rule(data=st.data())
    def open(self, data: Any) -> None:
        spec = data.draw(st.sampled_from(self.specs))
        tiers = self.engine.tiers
        there = spec.encoding_id in self.engine.store or spec.encoding_id in tiers.host
        granted = self.exporting.open(spec.encoding_id, self.engine.info.epoch)
        assert there or isinstance(granted, Refused)
        if isinstance(granted, Granted):
            assert granted.num_tokens == spec.num_tokens
            self.leases[granted.lease_id] = spec, self.clock() + LEASE_S

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def take(self, data: Any) -> None:
        lease_id = data.draw(st.sampled_from(sorted(self.leases)))
        spec, _ = self.leases[lease_id]
        begin = data.draw(st.integers(0, spec.num_tokens - 1))
        end = data.draw(st.integers(begin + 1, spec.num_tokens))
        chunk = self.exporting.read(lease_id, begin, end)
        assert isinstance(chunk, Chunk)
        assert checksum_of(spec.encoding_id, begin, np.array(chunk.rows)) == chunk.checksum
        rows = rows_of(np.array(chunk.rows), torch.float32)
        for part, was in zip(rows, self.first[spec.encoding_id], strict=True):
            torch.testing.assert_close(part, was[:, begin:end], atol=2e-4, rtol=0)
        self.leases[lease_id] = spec, self.clock() + LEASE_S

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def close(self, data: Any) -> None:
        lease_id = data.draw(st.sampled_from(sorted(self.leases)))
        self.exporting.close(lease_id)
        del self.leases[lease_id]

    @rule(seconds=st.sampled_from([1.0, 6.0, 20.0]))
    def wait(self, seconds: float) -> None:
        self.clock.now_s += seconds
        self.exporting.sweep()
        for lease_id, (_, until_s) in list(self.leases.items()):
            if until_s <= self.clock():
                del self.leases[lease_id]
                assert isinstance(self.exporting.read(lease_id, 0, 1), Refused)

    @invariant()
    def only_what_is_lent_is_pinned(self) -> None:
        host = self.engine.tiers.host
        host.check_integrity()
        self.engine.store.check_integrity()
        assert self.exporting.num_leases == self.engine.exports.num_open == len(self.leases)
        lent = sorted(spec.encoding_id for spec, _ in self.leases.values())
        assert sorted(entry.key for entry in host.entries() for _ in range(entry.pins)) == lent
        assert not any(entry.pins for entry in self.engine.store.entries())

    def teardown(self) -> None:
        self.engine.close()


ExportsMachine.TestCase.settings = settings(max_examples=15, stateful_step_count=25, deadline=None)
TestExports = ExportsMachine.TestCase
