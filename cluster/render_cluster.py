"""What the command line shows of the cluster: its status, its workers, and why a call went where it went."""

from __future__ import annotations

from collections.abc import Iterable

from laban.cluster.records import (
    ClusterStatus,
    DrainProgress,
    MemberStatus,
    ModelStatus,
    RoutingCandidate,
    StepExplanation,
    WorkerStatus,
)
from laban.cluster.render import print_table, shown_clock, shown_ms
from laban.cluster.sizes import shown_bytes

WORKER_COLUMNS = ("worker", "state", "device", "attention", "running", "waiting", "tokens queued", "pool", "encodings")
TIER_COLUMNS = ("worker", "host", "disk", "read on device", "loaded: host", "disk", "peer", "encoded again", "waited")
USE_COLUMNS = ("worker", "prefetches: useful", "late", "wasted", "evicted: device", "host", "disk", "preempted")
MODEL_COLUMNS = ("model", "context", "workers", "")
MEMBER_COLUMNS = ("member", "", "address", "state", "workflows")
RATE_COLUMNS = ("worker", "encode", "decode", "host to device", "disk to host", "from others, by")


def print_status(status: ClusterStatus) -> None:
    """Workers, queues and pools, the tiers below them, and how fast all that is."""
    ready = "ready" if status.ready else "not ready"
    print(f"Laban {status.version}: {ready}, {status.model}, context {status.max_context} tokens")
    if len(status.models) > 1:
        print_table(MODEL_COLUMNS, map(_model, status.models))
    held = f" ({status.workflows_held} of them held back until there is memory)" if status.workflows_held else ""
    print(
        f"up {shown_ms(status.uptime_s * 1000)}, {_number(status.workflows_running, 'workflow')} running{held}, "
        f"{_number(status.sessions_open, 'session')} open"
    )
    directory = status.directory
    predicted = ""
    if directory.tokens_predicted:
        there = directory.tokens_predicted - directory.tokens_missed
        share = there / directory.tokens_predicted
        predicted = f", {there} of {directory.tokens_predicted} tokens were where they were expected ({share:.0%})"
    shards = _number(directory.num_shards, "shard")
    print(
        f"routing {status.routing_policy}, eviction {status.eviction_policy}, "
        f"directory of {shards}: {directory.num_encodings} encodings watched{predicted}"
    )
    if status.journal:
        print(f"journal: {status.journal}")
    for each in status.divergences:
        then = "; what is submitted of it is exact" if each.falls_back else ""
        whose = f" of {each.tenant}" if each.tenant else ""
        print(
            f"degraded: workflow {each.workflow}{whose} has left its tolerance {each.tolerance:g}: KL {each.kl:.3g} "
            f"over {each.num_calls} audited calls, since {shown_clock(each.since)}{then}"
        )
    for worker in status.workers:
        if worker.problem and not worker.alive:
            print(f"degraded: {worker.worker_id} is lost: {worker.problem}")
    if len(status.members) > 1:
        print_table(MEMBER_COLUMNS, map(_member, status.members), title="Labans that share the journal")
    print_workers(status.workers)
    print_table(TIER_COLUMNS, map(_tiers, status.workers), title="cache: tiers, and tokens that calls read")
    print_table(USE_COLUMNS, map(_uses, status.workers), title="cache: prefetches and evictions")
    print_table(RATE_COLUMNS, map(_rates, status.workers), title="rates")


def _number(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _model(model: ModelStatus) -> tuple[str, ...]:
    missing = "" if model.workers_up else "missing: no worker of it is up"
    return model.name, str(model.max_context), f"{model.workers_up} of {model.workers} up", missing


def print_workers(workers: Iterable[WorkerStatus]) -> None:
    workers = tuple(workers)
    several = len({worker.model for worker in workers}) > 1
    rows = []
    for worker in workers:
        used, total = worker.pages - worker.pages_free, worker.pages
        pool_mib = total * worker.page_size * worker.bytes_per_token / (1 << 20)
        rows.append(
            (
                f"{worker.worker_id} ({worker.model})" if several else worker.worker_id,
                state_of(worker),
                f"{worker.device}, {worker.dtype}",
                worker.attention_backend,
                str(worker.calls_running),
                str(worker.calls_waiting),
                str(worker.queued_tokens),
                f"{used} of {total} pages ({used / total:.0%} of {pool_mib:.0f} MiB)" if total else "",
                str(worker.encodings),
            )
        )
    print_table(WORKER_COLUMNS, rows)


def print_explanation(explanation: StepExplanation) -> None:
    """The candidates of a step's call, the chosen one first; then what is known of the messages it reads."""
    decision = explanation.decision
    attempt = f", attempt {decision.attempt}" if decision.attempt > 1 else ""
    print(
        f"{explanation.address} of {explanation.workflow_id}{attempt}: to {decision.chosen} "
        f"at {shown_clock(decision.at)}, by the policy {decision.policy}; "
        f"{_best_of(len(decision.candidates), decision.num_workers)}"
    )
    key = f"key ({', '.join(decision.key_names)})" if decision.key_names else "key"
    columns = (
        "worker",
        "",
        key,
        "queue",
        "load",
        "fetch",
        "encode",
        "tokens: device",
        "host",
        "disk",
        "peer",
        "to encode",
    )
    print_table(columns, (_candidate(each, each.worker_id == decision.chosen) for each in decision.candidates))
    if explanation.uses:
        rows = (
            (use.message, str(use.steps), shown_ms(use.in_s * 1000), f"{use.likelihood:.0%}")
            for use in explanation.uses
        )
        print_table(("message", "steps", "in", "likelihood"), rows, title="next use of what it reads")


def drain_line(progress: DrainProgress) -> str:
    """
    >>> drain_line(DrainProgress("worker-1", 1, 12))
    'worker-1: draining, 1 call to end, 12 encodings to hand over'
    """
    if progress.done:
        return f"{progress.worker_id}: gone"
    calls, encodings = progress.calls_left, progress.encodings_left
    return (
        f"{progress.worker_id}: draining, {calls} call{'' if calls == 1 else 's'} to end, "
        f"{encodings} encoding{'' if encodings == 1 else 's'} to hand over"
    )


def state_of(worker: WorkerStatus) -> str:
    if not worker.alive:
        return "lost"
    return "draining" if worker.draining else "up"


def _member(member: MemberStatus) -> tuple[str, ...]:
    return (member.member_id, "this one" if member.here else "", member.address, member.state, str(member.workflows))


def _tiers(worker: WorkerStatus) -> tuple[str, ...]:
    cache = worker.cache
    tokens = (
        cache.tokens_hit_device,
        cache.tokens_loaded_host,
        cache.tokens_loaded_disk,
        cache.tokens_loaded_peer,
        cache.tokens_encoded_again,
    )
    host, disk = _used(worker.host_bytes_used, worker.host_bytes), _used(worker.disk_bytes_used, worker.disk_bytes)
    return (worker.worker_id, host, disk, *map(str, tokens), shown_ms(cache.wait_load_s * 1000))


def _uses(worker: WorkerStatus) -> tuple[str, ...]:
    cache = worker.cache
    prefetches = (cache.prefetches_useful, cache.prefetches_late, cache.prefetches_wasted)
    evicted = (cache.num_evicted_device, cache.num_evicted_host, cache.num_evicted_disk)
    return (worker.worker_id, *map(str, prefetches), *map(str, evicted), str(cache.preemptions))


def _rates(worker: WorkerStatus) -> tuple[str, ...]:
    rates = worker.rates
    encode = f"{rates.encode_tokens_per_s:.0f} tokens/s" if rates.encode_tokens_per_s else "-"
    decode = f"{rates.iteration_s * 1000:.1f} ms" if rates.iteration_s else "-"
    links = (_gigabytes(rate) for rate in (rates.host_bytes_per_s, rates.disk_bytes_per_s))
    measured = {each: getattr(rates, f"{each}_bytes_per_s") for each in worker.reach.transports}
    others = ", ".join(f"{each} {_gigabytes(rate)}" if rate else each for each, rate in measured.items())
    return (worker.worker_id, encode, decode, *links, others)


def _gigabytes(rate: float) -> str:
    return f"{rate / 1e9:.2f} GB/s" if rate else "-"


def _used(used: int, budget: int) -> str:
    return f"{shown_bytes(used)} of {shown_bytes(budget)}" if budget else "none"


def _best_of(num_told: int, num_workers: int) -> str:
    """
    >>> _best_of(2, 2), _best_of(16, 256)
    ('of 2 workers', 'the best 16 of 256 workers')
    """
    return f"{f'the best {num_told} ' if num_told < num_workers else ''}of {num_workers} workers"


def _candidate(each: RoutingCandidate, chosen: bool) -> tuple[str, ...]:
    key = ", ".join(f"{part:.6g}" for part in each.key)
    times = (each.queue_ms, each.load_ms, each.fetch_ms, each.encode_ms)
    tokens = (each.tokens_device, each.tokens_host, each.tokens_disk, each.tokens_peer, each.tokens_encode)
    mark = "chosen" if chosen else ""
    return (each.worker_id, mark, key, *(f"{time:.1f} ms" for time in times), *map(str, tokens))
