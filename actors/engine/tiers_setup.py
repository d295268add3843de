"""From a configuration to the tiers below the device."""

from __future__ import annotations

import logging
from pathlib import Path

from laban.actors.engine.config import EngineConfig
from laban.actors.engine.copier import Copier
from laban.actors.engine.counters import Counters
from laban.actors.engine.direct import DirectMemory
from laban.actors.engine.disk_folder import open_disk, open_disk_of_shard
from laban.actors.engine.flights import Flights
from laban.actors.engine.host_pool import HostPool
from laban.actors.engine.measured import MeasuredRates
from laban.actors.engine.runner import AnyRunner
from laban.actors.engine.shard_group import ShardGroup
from laban.actors.engine.tallying import Tallying
from laban.actors.engine.tiers import Tiers
from laban.actors.errors import FailedPrecondition, InvalidInput
from laban.actors.models import Progress, say_nothing
from laban.kvstore.eviction import SERVING, Guarded, load_policy
from laban.kvstore.needs import Needs

log = logging.getLogger(__name__)


def make_tiers(
    runner: AnyRunner,
    config: EngineConfig,
    host_bytes: int | None,
    *,
    namespace: str = "",
    disk_folder: Path | None = None,
    progress: Progress = say_nothing,
    group: ShardGroup | None = None,
) -> Tiers:
    """`host_bytes` None, or less than a page, has no tier below the device. Of a worker's shards, which make them at
    once, each has as many, and its part of `config.disk_bytes`. Raises InvalidInput for the policy, FailedPrecondition
    for a transport that there is not."""
    if group is not None and config.transport not in ("auto", "object_store"):
        raise FailedPrecondition(
            "workers of several shards send their parts, expected auto or object_store",
            field="cache.transport", value=config.transport,
        )  # fmt: skip
    on_card = runner.device.type == "cuda"
    pool = runner.k_pool
    per_token = 2 * len(pool) * pool[0, 0].numel() * pool.itemsize
    try:
        policy = load_policy(config.eviction)
    except ValueError as error:
        raise InvalidInput(str(error), field="cache.eviction", value=config.eviction) from None
    tallying = Tallying()
    if config.eviction not in SERVING:
        policy = Guarded(policy, lambda: tallying.add("num_policy_failures", 1))
    needs = Needs(policy, per_token)
    rates, counters = MeasuredRates(on_card, config.link_bytes_per_s), Counters()
    num_pages = HostPool.num_pages_for(host_bytes or 0, config.page_size, per_token)
    if not num_pages:
        if disk_folder is not None:
            log.warning(
                "%s is not used: encodings come from disk through host memory, and of its %d bytes a page takes %d",
                disk_folder, host_bytes or 0, config.page_size * per_token,
            )  # fmt: skip
        return Tiers(None, None, needs, rates, counters, tallying=tallying)
    num_layers, _, num_kv_heads, head_dim = pool.shape
    host = HostPool(
        num_pages, config.page_size, num_layers, num_kv_heads, head_dim, pool.dtype, pinned=on_card, progress=progress
    )
    copier = Copier(runner.k_pool, runner.v_pool, host, limit_bytes_per_s=config.link_bytes_per_s)
    disk = None
    if disk_folder is not None and group is not None:
        disk = open_disk_of_shard(disk_folder, config.disk_bytes // group.size, namespace, host, group)
    elif disk_folder is not None:
        disk = open_disk(disk_folder, config.disk_bytes, namespace, host)
    # Nobody reads a part of an encoding: shards send theirs.
    direct = DirectMemory(host, config.transport if group is None else "object_store")
    return Tiers(
        host,
        Flights(copier),
        needs,
        rates,
        counters,
        tenant_share=config.tenant_share,
        disk=disk,
        direct=direct,
        tallying=tallying,
    )
