"""Workflows: how many, how long, and what fails."""

from __future__ import annotations

from laban.cluster.monitoring.panels import Dashboard, Panel, Query, Row, buckets, now, quantile, quantiles, rate, share

_CHOSEN = 'workflow=~"$workflow"'
_ENDED, _STEPS = "laban_workflows_ended_total", "laban_steps_ended_total"
_TTFT = "laban_time_to_first_token_seconds"

WORKFLOWS = Dashboard(
    "workflows",
    "Laban / Workflows",
    "What users see: workflows, their steps, first tokens.",
    variables=(("workflow", "laban_workflows_ended_total"),),
    rows=(
        Row(
            "Now",
            (
                Panel(
                    "Running",
                    (Query(now("laban_workflows", where='state="running"')),),
                    "Not held back.",
                    kind="stat",
                    width=4,
                ),
                Panel(
                    "Held back",
                    (Query(now("laban_workflows", where='state="held"')),),
                    "While memory is short.",
                    kind="stat",
                    width=4,
                ),
                Panel(
                    "Steps running",
                    (Query(now("laban_steps", where='state="running"')),),
                    "With a worker.",
                    kind="stat",
                    width=4,
                ),
                Panel(
                    "Steps queued",
                    (Query(now("laban_steps", where='state="ready"')),),
                    "Ready, no worker is at them yet.",
                    kind="stat",
                    width=4,
                ),
                Panel(
                    "External steps",
                    (Query(now("laban_steps", where='state="external"')),),
                    "With handlers, or offered.",
                    kind="stat",
                    width=4,
                ),
                Panel("Sessions", (Query(now("laban_sessions")),), "Choreography sessions open.", kind="stat", width=4),
            ),
        ),
        Row(
            "Workflows",
            (
                Panel(
                    "Workflows ended, by outcome",
                    (Query(rate(_ENDED, "outcome", _CHOSEN), "{{outcome}}"),),
                    "Workflows a second.",
                    "ops",
                    stacked=True,
                ),
                Panel(
                    "Share that fails",
                    (
                        Query(
                            share(
                                rate(_ENDED, "workflow", f'{_CHOSEN}, outcome="failed"'),
                                rate(_ENDED, "workflow", _CHOSEN),
                            ),
                            "{{workflow}}",
                        ),
                    ),
                    "Of those that ended.",
                    "percentunit",
                ),
                Panel(
                    "Submitted",
                    (
                        Query(rate("laban_workflows_submitted_total", "workflow", _CHOSEN), "{{workflow}}"),
                        Query(rate("laban_workflows_restored_total"), "after a restart"),
                    ),
                    "Workflows a second.",
                    "ops",
                ),
                Panel(
                    "Workflow latency",
                    quantiles("laban_workflow_seconds", where=_CHOSEN),
                    "From submission to the end.",
                    "s",
                ),
                Panel(
                    "Workflow latency by workflow, p90",
                    (Query(quantile(0.9, "laban_workflow_seconds", "workflow", _CHOSEN), "{{workflow}}"),),
                    "From submission to the end.",
                    "s",
                ),
                Panel(
                    "Workflow latency heatmap",
                    buckets("laban_workflow_seconds", _CHOSEN),
                    "From submission to the end.",
                    "s",
                    "heatmap",
                ),
            ),
        ),
        Row(
            "Steps",
            (
                Panel(
                    "Steps ended, by outcome",
                    (Query(rate(_STEPS, "outcome", _CHOSEN), "{{outcome}}"),),
                    "Step instances a second.",
                    "ops",
                    stacked=True,
                ),
                Panel(
                    "Step latency by kind",
                    quantiles("laban_step_seconds", "kind", _CHOSEN),
                    "From ready to the end.",
                    "s",
                ),
                Panel(
                    "Step latency by workflow, p90",
                    (Query(quantile(0.9, "laban_step_seconds", "workflow", _CHOSEN), "{{workflow}}"),),
                    "From ready to the end.",
                    "s",
                ),
            ),
        ),
        Row(
            "First tokens",
            (
                Panel("TTFT", quantiles(_TTFT), "From when a call is ready to its first token.", "s"),
                Panel(
                    "TTFT by fidelity, p90",
                    (Query(quantile(0.9, _TTFT, "fidelity"), "{{fidelity}}"),),
                    "What reuse saves.",
                    "s",
                ),
                Panel(
                    "First tokens of calls that failed",
                    (
                        Query(rate("laban_failed_first_token_seconds_sum"), "seconds"),
                        Query(rate("laban_failed_first_token_seconds_count"), "calls"),
                    ),
                    "Calls a second, and how long these waited for their first token, or their end if none came.",
                ),
                Panel("TTFT heatmap", buckets(_TTFT), "From when a call is ready to its first token.", "s", "heatmap"),
                Panel("Call latency", quantiles("laban_call_seconds"), "From ready to the last token.", "s"),
                Panel(
                    "Errors",
                    (Query(rate("laban_errors_total", "kind, code"), "{{kind}} {{code}}"),),
                    "A second, by where and status.",
                    "ops",
                ),
                Panel(
                    "Calls requeued", (Query(rate("laban_calls_requeued_total")),), "Because their worker died.", "ops"
                ),
            ),
        ),
    ),
)
