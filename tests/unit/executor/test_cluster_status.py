"""What a worker last reported, and what the directory's view counted, is what the status says."""

from __future__ import annotations

from dataclasses import replace

from executor_rig import rig
from executor_workflows import asynchronous

from laban.actors.calls import CacheCounters, WorkerLoad, WorkerRates, WorkerReport
from laban.cluster.records import DirectoryStatus

RATES = WorkerRates(1200.0, 0.01, 2e10, 3e9, 1e9)
CACHE = CacheCounters(tokens_hit_device=9, tokens_loaded_disk=4, prefetches_late=2, wait_load_s=0.5)


@asynchronous
async def test_a_workers_last_report() -> None:
    async with rig() as r:
        info = r.worker.info
        load = WorkerLoad(num_pages=info.num_pages, host_bytes_used=5, disk_bytes_used=6)
        report = WorkerReport(info.worker_id, info.epoch, 1, load=load, rates=RATES, cache=CACHE)
        r.dispatcher.reported(r.dispatcher._slots[info.worker_id], report)
        [status] = r.executor.status().workers
        assert (status.rates, status.cache) == (RATES, CACHE)
        assert (status.host_bytes_used, status.disk_bytes_used) == (5, 6)
        assert (status.host_bytes, status.disk_bytes) == (info.host_bytes, info.disk_bytes)
        assert not status.draining


@asynchronous
async def test_predictions_are_counted() -> None:
    async with rig() as r:
        view = r.dispatcher.directory
        before = r.executor.status().directory
        assert before == DirectoryStatus(num_shards=view.num_shards)
        view.count(100, 90)
        view.count(10, 30)
        view.watch("wf-x", ["a", "b"])
        assert r.executor.status().directory == replace(
            before,
            num_encodings=2,
            num_calls=2,
            num_wrong=1,
            tokens_predicted=110,
            tokens_missed=10,
            tokens_found=120,
        )
