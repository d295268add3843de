"""What a worker tells of itself: what it is, and after each step how it does."""

from __future__ import annotations

from uuid import uuid4

from laban.actors.calls import CallEvent, WorkerInfo, WorkerLoad, WorkerReport
from laban.actors.engine.constraining import Constraining
from laban.actors.engine.corrections import Corrections
from laban.actors.engine.of_all_shards import counters_of_all, rates_of_all, tallies_of_all
from laban.actors.engine.runner import AnyRunner, bytes_per_token
from laban.actors.engine.scheduler import Scheduler
from laban.actors.engine.tiers import Tiers
from laban.actors.tallies import WorkerTallies
from laban.kvstore.store import EncodingStore

TALLIES_EVERY_S = 0.5


def worker_info(
    runner: AnyRunner,
    store: EncodingStore,
    tiers: Tiers,
    num_parts: int,
    *,
    worker_id: str,
    namespace: str,
    model_name: str,
    max_context: int | None,
) -> WorkerInfo:
    """In a new life, which no other of this worker or of any is the same as."""
    return WorkerInfo(
        worker_id=worker_id,
        epoch=uuid4().hex,
        namespace=namespace,
        model_name=model_name,
        max_context=max_context or runner.model.config.max_position_embeddings,
        num_pages=store.allocator.num_pages,
        page_size=store.page_size,
        bytes_per_token=bytes_per_token(runner.model.config, runner.dtype),
        vocab_size=runner.vocab_size,
        attention_backend=runner.attention_backend,
        dtype=str(runner.dtype).removeprefix("torch."),
        device=str(runner.device),
        num_shards=1 if runner.group is None else runner.group.size,
        host_bytes=num_parts * tiers.host_bytes,
        disk_bytes=num_parts * tiers.disk_bytes,
        adapters=runner.adapters.fingerprints,
    )


class Reporting:
    """Numbers the reports; they say what became of calls and encodings since the last one."""

    def __init__(
        self,
        info: WorkerInfo,
        store: EncodingStore,
        tiers: Tiers,
        scheduler: Scheduler,
        constraining: Constraining,
        corrections: Corrections,
        num_parts: int,
    ) -> None:
        """`num_parts`: into which the shards of a worker divide the keys and values of a token."""
        self._worker_id, self._epoch = info.worker_id, info.epoch
        self._store, self._tiers, self._scheduler = store, tiers, scheduler
        self._constraining, self._corrections, self._num_parts = constraining, corrections, num_parts
        self._num_reports = 0
        self._tallies_due_s = 0.0

    def report(self, events: list[CallEvent], now_s: float, *, is_busy: bool) -> WorkerReport:
        """Tallies are told now and then while the engine `is_busy`, and when it comes to rest."""
        self._num_reports += 1
        changes = (*self._store.take_changes(), *self._tiers.take_changes())
        return WorkerReport(
            self._worker_id,
            self._epoch,
            self._num_reports,
            tuple(events),
            changes,
            self._load(),
            rates_of_all(self._tiers.rates.known, self._num_parts),
            counters_of_all(self._tiers.counters.totals(), self._num_parts),
            self._tallies(now_s) if now_s >= self._tallies_due_s or not is_busy else None,
        )

    def _load(self) -> WorkerLoad:
        scheduler, allocator = self._scheduler, self._store.allocator
        return WorkerLoad(
            len(scheduler.running),
            scheduler.num_waiting + len(self._constraining),
            scheduler.queued_tokens(),
            allocator.num_free,
            allocator.num_pages,
            len(self._store),
            self._num_parts * self._tiers.host_bytes_used,
            self._num_parts * self._tiers.disk_bytes_used,
            scheduler.num_blocked,
        )

    def _tallies(self, now_s: float) -> WorkerTallies:
        self._tallies_due_s = now_s + TALLIES_EVERY_S
        pool = self._corrections.pool
        totals = tallies_of_all(self._tiers.tallying.totals(), self._num_parts)
        return totals._replace(num_anchors=pool.num_anchors, anchor_bytes=pool.num_bytes)
