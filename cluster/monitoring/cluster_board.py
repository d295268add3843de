"""The cluster: readiness, workers, the gateway's requests."""

from __future__ import annotations

from laban.cluster.monitoring.panels import OURS, Dashboard, Panel, Query, Row, now, quantile, quantiles, rate, share

_REQUESTS = "laban_grpc_requests_total"

CLUSTER = Dashboard(
    "cluster",
    "Laban / Cluster",
    "Readiness, workers, requests.",
    rows=(
        Row(
            "Now",
            (
                Panel(
                    "Ready",
                    (Query(f"min(laban_ready{{{OURS}}})"),),
                    "1: a model is loaded and a worker is up.",
                    kind="stat",
                    width=4,
                ),
                Panel(
                    "Workers up",
                    (Query(now("laban_workers", where='state="up"')),),
                    "Taking calls.",
                    kind="stat",
                    width=4,
                ),
                Panel(
                    "Workers missing",
                    (Query(now("laban_workers", where='state=~"lost|returning"')),),
                    "Lost, or being made anew.",
                    kind="stat",
                    width=4,
                ),
                Panel(
                    "Journal",
                    (Query(f"min(laban_journal_available{{{OURS}}})"),),
                    "1: its database is there. 0: submits are refused and steps wait.",
                    kind="stat",
                    width=4,
                ),
                Panel(
                    "Open watches",
                    (Query(now("laban_grpc_open_requests", where='method=~"Workflows/(Watch|Run)"')),),
                    "Streams of events.",
                    kind="stat",
                    width=4,
                ),
                Panel(
                    "Uptime",
                    (Query(f"min(laban_uptime_seconds{{{OURS}}})"),),
                    "Of the youngest control plane.",
                    "s",
                    "stat",
                    4,
                ),
                Panel(
                    "Runs",
                    (Query(now("laban_info", "version, routing, eviction"), "{{version}} {{routing}} {{eviction}}"),),
                    "Version, policies.",
                    kind="stat",
                    width=4,
                ),
            ),
        ),
        Row(
            "Workers",
            (
                Panel("Workers", (Query(now("laban_workers", "state"), "{{state}}"),), "By state.", stacked=True),
                Panel("Workers lost", (Query(rate("laban_worker_losses_total")),), "Deaths a second.", "ops"),
                Panel(
                    "Calls ended",
                    (Query(rate("laban_calls_ended_total", "worker, code"), "{{worker}} {{code}}"),),
                    "A second.",
                    "ops",
                ),
                Panel(
                    "Calls that fail, by worker",
                    (
                        Query(
                            share(
                                rate("laban_calls_ended_total", "worker", 'code!="OK"'),
                                rate("laban_calls_ended_total", "worker"),
                            ),
                            "{{worker}}",
                        ),
                    ),
                    "Share of those that ended.",
                    "percentunit",
                ),
            ),
        ),
        Row(
            "Requests",
            (
                Panel(
                    "Requests",
                    (Query(rate(_REQUESTS, "method"), "{{method}}"),),
                    "Answered a second, streams at their end.",
                    "ops",
                    stacked=True,
                ),
                Panel(
                    "Requests by status",
                    (Query(rate(_REQUESTS, "code"), "{{code}}"),),
                    "A second.",
                    "ops",
                    stacked=True,
                ),
                Panel(
                    "Requests refused",
                    (Query(rate("laban_refused_requests_total", "reason"), "{{reason}}"),),
                    "A second: nobody known, not allowed, or over a tenant's quota.",
                    "ops",
                ),
                Panel(
                    "Open requests",
                    (Query(now("laban_grpc_open_requests", "method"), "{{method}}"),),
                    "Streams included.",
                ),
                Panel(
                    "Time to answer", quantiles("laban_grpc_request_seconds"), "Of requests that are no streams.", "s"
                ),
                Panel(
                    "Time to answer by method, p99",
                    (Query(quantile(0.99, "laban_grpc_request_seconds", "method"), "{{method}}"),),
                    "Not of streams.",
                    "s",
                ),
                Panel(
                    "Event loop lag",
                    quantiles("laban_event_loop_lag_seconds"),
                    "How late the control plane does what is due.",
                    "s",
                ),
            ),
        ),
    ),
)
