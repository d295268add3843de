"""Routing and fidelity: where calls go, how right that was, and what reuse saves."""

from __future__ import annotations

from laban.cluster.monitoring.panels import Dashboard, Panel, Query, Row, buckets, mean, now, quantiles, rate, share

_TOKENS, _LAG = "laban_routing_tokens_total", "laban_directory_lag_seconds"

ROUTING = Dashboard(
    "routing-and-fidelity",
    "Laban / Routing and fidelity",
    "Where calls go, how stale what routing knows is, and what reuse saves.",
    rows=(
        Row(
            "Decisions",
            (
                Panel(
                    "Calls by worker",
                    (Query(rate("laban_routing_decisions_total", "worker"), "{{worker}}"),),
                    "Sent a second.",
                    "ops",
                    stacked=True,
                ),
                Panel(
                    "Decisions by policy",
                    (Query(rate("laban_routing_decisions_total", "policy"), "{{policy}}"),),
                    "A second.",
                    "ops",
                ),
                Panel("Time to decide", quantiles("laban_routing_seconds"), "Of the control plane's event loop.", "s"),
                Panel(
                    "Predicted and actual hits",
                    (Query(rate(_TOKENS, "outcome"), "{{outcome}}"),),
                    "Tokens a second: predicted to be there, missed of these, found in all.",
                ),
                Panel(
                    "Predictions that were wrong",
                    (
                        Query(
                            share(rate(_TOKENS, where='outcome="missed"'), rate(_TOKENS, where='outcome="predicted"')),
                            "tokens",
                        ),
                        Query(
                            share(rate("laban_routing_wrong_calls_total"), rate("laban_routing_decisions_total")),
                            "calls",
                        ),
                    ),
                    "Share of what was predicted that was not there.",
                    "percentunit",
                ),
                Panel(
                    "Failures of policies of your own",
                    (
                        Query(rate("laban_routing_policy_failures_total"), "routing"),
                        Query(rate("laban_eviction_policy_failures_total", "worker"), "eviction, {{worker}}"),
                    ),
                    "A second; the built-in one decided.",
                    "ops",
                ),
            ),
        ),
        Row(
            "Staleness",
            (
                Panel("Directory lag", quantiles(_LAG), "Until the directory says what a call left at a worker.", "s"),
                Panel(
                    "Directory lag heatmap",
                    buckets(_LAG),
                    "Until the directory says what a call left at a worker.",
                    "s",
                    "heatmap",
                ),
                Panel(
                    "Never confirmed",
                    (Query(rate("laban_directory_unconfirmed_total")),),
                    "Encodings expected at a worker, a second.",
                    "ops",
                ),
                Panel(
                    "Shards",
                    (Query(now("laban_directory_shards", "state"), "{{state}}"),),
                    "Of the directory; silent: their news do not come.",
                ),
                Panel(
                    "Encodings watched",
                    (Query(now("laban_directory_encodings")),),
                    "Of runs and sessions, and former ones.",
                ),
            ),
        ),
        Row(
            "Reuse",
            (
                Panel(
                    "Reuse by fidelity",
                    (
                        Query(
                            share(
                                rate("laban_reused_tokens_total", "fidelity"),
                                rate("laban_read_tokens_total", "fidelity"),
                            ),
                            "{{fidelity}}",
                        ),
                    ),
                    "Of the tokens read, those found encoded.",
                    "percentunit",
                ),
                Panel(
                    "Tokens read",
                    (Query(rate("laban_read_tokens_total", "fidelity"), "{{fidelity}}"),),
                    "A second.",
                    stacked=True,
                ),
                Panel(
                    "Tokens reused",
                    (Query(rate("laban_reused_tokens_total", "fidelity"), "{{fidelity}}"),),
                    "A second.",
                    stacked=True,
                ),
                Panel(
                    "Tokens loaded",
                    (Query(rate("laban_loaded_tokens_total", "fidelity"), "{{fidelity}}"),),
                    "Of those reused: from below, or a peer.",
                    stacked=True,
                ),
                Panel(
                    "Tokens encoded",
                    (Query(rate("laban_encoded_tokens_total", "fidelity"), "{{fidelity}}"),),
                    "A second.",
                    stacked=True,
                ),
                Panel(
                    "Tokens generated",
                    (Query(rate("laban_generated_tokens_total", "fidelity"), "{{fidelity}}"),),
                    "A second.",
                    stacked=True,
                ),
            ),
        ),
        Row(
            "Corrected reads",
            (
                Panel(
                    "Tokens that could be predicted",
                    (Query(rate("laban_corrected_tokens_total", "outcome"), "{{outcome}}"),),
                    "A second. Refused: encoded, as nothing was known to be good enough.",
                    stacked=True,
                ),
                Panel(
                    "Anchors",
                    (Query(now("laban_anchors", "worker"), "{{worker}}"),),
                    "Encodings that reads are predicted from.",
                ),
                Panel(
                    "Memory of the pool",
                    (Query(now("laban_anchor_bytes", "worker"), "{{worker}}"),),
                    "Beside keys and values.",
                    "bytes",
                ),
            ),
        ),
        Row(
            "Audits in service",
            (
                Panel(
                    "Divergence by workflow",
                    (Query(mean("laban_audit_divergence_nats", "workflow, fidelity"), "{{workflow}} {{fidelity}}"),),
                    "Mean KL from exact of audited calls, nats a token.",
                ),
                Panel(
                    "Divergence by level",
                    quantiles("laban_audit_divergence_nats", "fidelity"),
                    "Of audited calls, each one's mean, nats a token.",
                ),
                Panel(
                    "Tokens that both like best",
                    (
                        Query(
                            share(
                                rate("laban_audited_tokens_total", "workflow", 'outcome="agrees"'),
                                rate("laban_audited_tokens_total", "workflow"),
                            ),
                            "{{workflow}}",
                        ),
                    ),
                    "Of audited tokens.",
                    "percentunit",
                ),
                Panel(
                    "Workflows outside their tolerance",
                    (Query(now("laban_diverging_workflows"), "workflows"),),
                    "`laban status` names them.",
                ),
                Panel(
                    "Audits",
                    (Query(rate("laban_audits_total", "outcome"), "{{outcome}}"),),
                    "A second, by how they ended.",
                    "ops",
                    stacked=True,
                ),
                Panel(
                    "Time spent on audits",
                    (Query(rate("laban_audit_seconds_total", "worker"), "{{worker}}"),),
                    "Of each worker's time: at most `audit.budget`.",
                    "percentunit",
                ),
            ),
        ),
    ),
)
