"""Foresight over workers that are not there: what is told to each, and where calls are predicted to go."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from laban.actors.calls import Advice, Prefetch, WorkerRates
from laban.cluster.foresight import Foresight
from laban.cluster.records import WorkerStatus
from laban.cluster.routing.directory_view import DirectoryView
from laban.cluster.slots import Order
from laban.cluster.workflow.lookahead_likelihoods import Likelihoods
from laban.cluster.workflow.timing import StepHistory
from laban.kvstore.directory_messages import News
from laban.kvstore.encodings import EncodingId
from laban.kvstore.placements import PACKED_BITS, PlacementState, Tier, pack
from laban.kvstore.uses import Use


@dataclass
class FakeFleet:
    """Workers `w0`, `w1`, ... that hold what `put` says. `goes_to` is where every call is predicted to go."""

    num_workers: int = 2
    goes_to: str | None = "w0"
    now_s: float = 100.0
    pages_free: int = 1000
    rates: WorkerRates = field(default_factory=lambda: WorkerRates(encode_tokens_per_s=100.0, host_bytes_per_s=1000.0))
    advice: list[tuple[str, Advice]] = field(default_factory=list)
    predicted: list[Order] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._placed: dict[EncodingId, dict[str, int]] = {}
        self.directory = DirectoryView(expire_s=math.inf, clock=lambda: self.now_s)
        for worker in range(self.num_workers):
            self.directory.begin(f"w{worker}", "1")

    def advise(self, worker_id: str, advice: Advice) -> None:
        self.advice.append((worker_id, advice))

    def predict(self, order: Order) -> str | None:
        self.predicted.append(order)
        return self.goes_to

    def workers(self) -> tuple[WorkerStatus, ...]:
        return tuple(
            WorkerStatus(
                worker_id=worker_id,
                epoch=epoch,
                alive=True,
                device="cpu",
                dtype="float32",
                attention_backend="none",
                calls_running=0,
                calls_waiting=0,
                queued_tokens=0,
                pages=1000,
                pages_free=self.pages_free,
                page_size=16,
                bytes_per_token=1,
                encodings=0,
                rates=self.rates,
            )
            for worker_id, epoch in self.directory.epochs.items()
        )

    def put(self, worker_id: str, encoding_id: EncodingId, num_tokens: int = 10, tier: Tier = Tier.DEVICE) -> None:
        """The directory says that a worker has it, besides others that do."""
        self.directory.watch_also("test", [encoding_id])
        lives = tuple(self.directory.epochs.items())
        placed = self._placed.setdefault(encoding_id, {})
        placed[worker_id] = pack(tier, PlacementState.READY, num_tokens)
        packed = tuple(n << PACKED_BITS | placed[each] for n, (each, _) in enumerate(lives) if each in placed)
        self.directory.take(0, News(1, lives, (), ((encoding_id, packed),)))

    # What was told

    def take(self) -> list[tuple[str, Advice]]:
        advice, self.advice = self.advice, []
        return advice

    def told(self) -> dict[str, dict[EncodingId, Use | None]]:
        """The uses told to each worker since the last time, the latest of each encoding."""
        found: dict[str, dict[EncodingId, Use | None]] = {}
        for worker_id, advice in self.take():
            found.setdefault(worker_id, {}).update(advice.uses)
        return found

    def ordered(self) -> list[tuple[str, Prefetch]]:
        return [(worker_id, prefetch) for worker_id, advice in self.take() for prefetch in advice.prefetches]


def foresight_of(fleet: FakeFleet, history: StepHistory | None = None, **options) -> Foresight:
    """It looks when it is told to, in no time."""
    clocks = {"clock": lambda: fleet.now_s, "timer": lambda: 0.0}
    return Foresight(fleet, Likelihoods(), history or StepHistory(), **clocks, **options)
