"""The engine: iterations, batches, queues. And what it keeps: tiers, evictions, prefetches, transfers."""

from __future__ import annotations

from laban.cluster.monitoring.panels import (
    Dashboard,
    Panel,
    Query,
    Row,
    buckets,
    mean,
    now,
    quantile,
    quantiles,
    rate,
    share,
)

_HERE = 'worker=~"$worker"'
_ITL, _PREFETCHES, _READ = "laban_inter_token_seconds", "laban_prefetches_total", "laban_cache_tokens_total"
_VARIABLES = (("worker", "laban_worker_calls"),)

ENGINE = Dashboard(
    "engine",
    "Laban / Engine",
    "Workers: tokens, iterations, batches, queues.",
    variables=_VARIABLES,
    rows=(
        Row(
            "Tokens",
            (
                Panel(
                    "Tokens computed",
                    (Query(rate("laban_computed_tokens_total", "phase", _HERE), "{{phase}}"),),
                    "A second.",
                    stacked=True,
                ),
                Panel("ITL", quantiles(_ITL, where=_HERE), "From one token of a call to its next.", "s"),
                Panel("ITL heatmap", buckets(_ITL, _HERE), "From one token of a call to its next.", "s", "heatmap"),
                Panel(
                    "ITL by worker, p90",
                    (Query(quantile(0.9, _ITL, "worker", _HERE), "{{worker}}"),),
                    "Who is slow.",
                    "s",
                ),
                Panel(
                    "Tokens by worker",
                    (Query(rate("laban_computed_tokens_total", "worker", _HERE), "{{worker}}"),),
                    "Computed a second.",
                ),
                Panel(
                    "Tokens drafted",
                    (Query(rate("laban_drafted_tokens_total", "outcome", _HERE), "{{outcome}}"),),
                    "Guessed from what calls read, a second: accepted ones took no iteration of their own.",
                    stacked=True,
                ),
                Panel(
                    "Encoding speed",
                    (Query(now("laban_encode_tokens_per_second", "worker", _HERE), "{{worker}}"),),
                    "Tokens a second, as workers measure it in iterations that mostly encode.",
                ),
            ),
        ),
        Row(
            "Iterations",
            (
                Panel("Iteration time", quantiles("laban_iteration_seconds", where=_HERE), "One batched forward.", "s"),
                Panel(
                    "Batch",
                    quantiles("laban_batch_calls", where=_HERE),
                    "Calls and encodings in the making, in an iteration.",
                ),
                Panel(
                    "Mean batch by worker",
                    (Query(mean("laban_batch_calls", "worker", _HERE), "{{worker}}"),),
                    "Calls in an iteration.",
                ),
            ),
        ),
        Row(
            "Queues",
            (
                Panel(
                    "Calls",
                    (Query(now("laban_worker_calls", "state", _HERE), "{{state}}"),),
                    "At the workers.",
                    stacked=True,
                ),
                Panel(
                    "Queue by place",
                    (Query(now("laban_queue_calls", "place"), "{{place}}"),),
                    "Calls that have not begun.",
                ),
                Panel(
                    "Oldest in the queue",
                    (Query(now("laban_queue_oldest_seconds", "place"), "{{place}}"),),
                    "How long it has waited.",
                    "s",
                ),
                Panel(
                    "Time in the queue",
                    quantiles("laban_call_queue_seconds"),
                    "From ready until a worker admits the call.",
                    "s",
                ),
                Panel(
                    "Tokens queued",
                    (Query(now("laban_worker_queued_tokens", "worker", _HERE), "{{worker}}"),),
                    "Still to encode.",
                ),
                Panel(
                    "Preemptions",
                    (Query(rate("laban_preemptions_total", "worker", _HERE), "{{worker}}"),),
                    "Calls that made room for older ones.",
                    "ops",
                ),
            ),
        ),
    ),
)

KV_CACHE = Dashboard(
    "kv-cache",
    "Laban / KV cache",
    "What is kept, found, loaded, evicted and prefetched.",
    variables=_VARIABLES,
    rows=(
        Row(
            "Hits",
            (
                Panel(
                    "Hit rate",
                    (
                        Query(
                            share(rate(_READ, where=f'{_HERE}, source="device"'), rate(_READ, where=_HERE)), "device"
                        ),
                        Query(
                            share(rate(_READ, where=f'{_HERE}, source!="again"'), rate(_READ, where=_HERE)), "any tier"
                        ),
                    ),
                    "Of what calls read and had been encoded before.",
                    "percentunit",
                ),
                Panel(
                    "Where reads were",
                    (Query(rate(_READ, "source", _HERE), "{{source}}"),),
                    "Tokens a second; again: encoded again.",
                    stacked=True,
                ),
                Panel(
                    "Waiting for loads",
                    (Query(rate("laban_load_wait_seconds_total", "worker", _HERE), "{{worker}}"),),
                    "Seconds that calls wait, a second.",
                    "s",
                ),
            ),
        ),
        Row(
            "Tiers",
            (
                Panel(
                    "KV use",
                    (
                        Query(
                            share(
                                now("laban_tier_used_bytes", "tier", _HERE),
                                now("laban_tier_capacity_bytes", "tier", _HERE),
                            ),
                            "{{tier}}",
                        ),
                    ),
                    "Of each tier, over the workers chosen.",
                    "percentunit",
                ),
                Panel(
                    "KV bytes",
                    (Query(now("laban_tier_used_bytes", "tier", _HERE), "{{tier}}"),),
                    "Keys and values.",
                    "bytes",
                    stacked=True,
                ),
                Panel(
                    "Pages",
                    (Query(now("laban_pages", "tier, state", _HERE), "{{tier}} {{state}}"),),
                    "Of device and host.",
                ),
                Panel(
                    "Encodings on devices", (Query(now("laban_encodings", "worker", _HERE), "{{worker}}"),), "How many."
                ),
                Panel(
                    "Granted messages",
                    (Query(now("laban_grant_workers", "grant"), "{{grant}}"),),
                    "Workers that have all of a grant on their device.",
                ),
                Panel(
                    "Saved",
                    (Query(rate("laban_saved_bytes_total", "tier", _HERE), "{{tier}}"),),
                    "Copied down, so that it can go above.",
                    "Bps",
                ),
                Panel(
                    "Saves that failed",
                    (Query(rate("laban_saves_failed_total", "worker", _HERE), "{{worker}}"),),
                    "Could not be written to disk.",
                    "ops",
                ),
            ),
        ),
        Row(
            "Evictions",
            (
                Panel(
                    "Evictions",
                    (Query(rate("laban_evictions_total", "tier", _HERE), "{{tier}}"),),
                    "Encodings a second.",
                    "ops",
                    stacked=True,
                ),
                Panel(
                    "By distance",
                    buckets("laban_eviction_steps", f'{_HERE}, tier="device"'),
                    "Steps until somebody was to read what the device evicted: low is bad.",
                    kind="heatmap",
                ),
                Panel(
                    "Evicted though somebody will read it",
                    (
                        Query(
                            share(
                                rate("laban_eviction_steps_count", "tier", _HERE),
                                rate("laban_evictions_total", "tier", _HERE),
                            ),
                            "{{tier}}",
                        ),
                    ),
                    "Share of all evictions.",
                    "percentunit",
                ),
            ),
        ),
        Row(
            "Prefetches and transfers",
            (
                Panel(
                    "Prefetch outcome",
                    (Query(rate(_PREFETCHES, "outcome", _HERE), "{{outcome}}"),),
                    "Encodings a second.",
                    "ops",
                    stacked=True,
                ),
                Panel(
                    "Prefetches in time",
                    (
                        Query(
                            share(
                                rate(_PREFETCHES, where=f'{_HERE}, outcome="useful"'), rate(_PREFETCHES, where=_HERE)
                            ),
                            "useful",
                        ),
                    ),
                    "Share of those whose outcome is known.",
                    "percentunit",
                ),
                Panel(
                    "Transfers",
                    (Query(rate("laban_transfer_bytes_total", "link", _HERE), "{{link}}"),),
                    "Bytes a second.",
                    "Bps",
                    stacked=True,
                ),
                Panel(
                    "Transfer speed",
                    (
                        Query(
                            share(
                                rate("laban_transfer_bytes_total", "link", _HERE),
                                rate("laban_transfer_seconds_total", "link", _HERE),
                            ),
                            "{{link}}",
                        ),
                    ),
                    "Bytes a second of transfer.",
                    "Bps",
                ),
                Panel(
                    "Wait for transfers",
                    (
                        Query(
                            share(
                                rate("laban_transfer_wait_seconds_total", "link", _HERE),
                                rate("laban_transfers_total", "link", _HERE),
                            ),
                            "{{link}}",
                        ),
                    ),
                    "Seconds a transfer until another worker lent it, or refused.",
                    "s",
                ),
                Panel(
                    "Transfer count",
                    (Query(rate("laban_transfers_total", "link", _HERE), "{{link}}"),),
                    "Encodings, or pieces of them, a second.",
                    "ops",
                ),
                Panel(
                    "Transfers that failed",
                    (Query(rate("laban_transfers_failed_total", "link", _HERE), "{{link}}"),),
                    "Broke off.",
                    "ops",
                ),
            ),
        ),
    ),
)
