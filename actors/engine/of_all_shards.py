"""What one shard measured and counted, as its worker's: all do the same at once, each with its part of the heads.

Parts are counted, not shards: bytes of a head that several shards have count once.
"""

from __future__ import annotations

from dataclasses import replace

from laban.actors.calls import CacheCounters, WorkerRates
from laban.actors.tallies import WorkerTallies


def rates_of_all(rates: WorkerRates, num_parts: int) -> WorkerRates:
    return replace(
        rates,
        host_bytes_per_s=num_parts * rates.host_bytes_per_s,
        disk_bytes_per_s=num_parts * rates.disk_bytes_per_s,
        peer_bytes_per_s=num_parts * rates.peer_bytes_per_s,
        object_store_bytes_per_s=num_parts * rates.object_store_bytes_per_s,
    )


def counters_of_all(counters: CacheCounters, num_parts: int) -> CacheCounters:
    return replace(
        counters,
        bytes_saved_host=num_parts * counters.bytes_saved_host,
        bytes_saved_disk=num_parts * counters.bytes_saved_disk,
    )


def tallies_of_all(tallies: WorkerTallies, num_parts: int) -> WorkerTallies:
    host, disk, sent = (
        each._replace(num_bytes=num_parts * each.num_bytes)
        for each in (tallies.copies_host, tallies.copies_disk, tallies.copies_object_store)
    )
    return tallies._replace(copies_host=host, copies_disk=disk, copies_object_store=sent)
