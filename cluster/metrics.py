"""Every metric that Laban exports: name, type, labels, meaning. docs/metrics.md is made from this table.

Names end in their unit, always a base one: seconds, bytes, tokens. Labels are bounded: none ever holds an id of a
workflow or a session, or anything of a message's text. `model` comes first in all of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from laban.actors.tallies import BOUNDS

Kind = Literal["counter", "gauge", "histogram"]

QUOTAS = ("requests_per_s", "max_calls", "max_workflows", "max_sessions", "tokens_per_minute")
REFUSALS = ("unauthenticated", "denied", *QUOTAS)
MAX_VALUES = 100
"""Of one label that users choose, such as a workflow's name: further ones count as OTHER."""
OTHER = "other"

# From a prefix found whole on a GPU to a long prompt on two cores.
TTFT_S = (0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.15, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0)
CALL_S = (0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 3.0, 5.0, 7.5, 10.0, 15.0, 20.0, 30.0, 60.0, 120.0, 300.0)
WORKFLOW_S = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0, 640.0, 1280.0, 3600.0, 14400.0)
QUEUE_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
INSTANT_S = (0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05)
REQUEST_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
KL_NATS = (0.001, 0.003, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0)
LAG_S = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 3.0, 5.0, 10.0)

LABELS: Mapping[str, str] = {
    "model": "name of the model; where it is no single one's, of the default model",
    "workflow": f"name of the workflow; the first {MAX_VALUES} seen, then `{OTHER}`",
    "outcome": "how it ended",
    "state": "what it is doing",
    "kind": "of a step: `generate`, `external`, `workflow`; of an error: `request`, `call`, `step`, `workflow`",
    "fidelity": "of the step's or the session's reads: `exact`, `corrected`, `blended`, `direct`, `mixed`",
    "code": "name of the gRPC status; `OK` where nothing went wrong",
    "method": "of the API, as `Service/Method`",
    "policy": "of routing, or of eviction",
    "worker": f"id of the worker; of more than {MAX_VALUES} added workers the rest count as `{OTHER}`",
    "tier": "`device`, `host`, `disk`",
    "link": "`host`: from host memory to the device; `disk`, `peer`: from disk or another worker to host memory",
    "source": "where what a call reads was: `device`, `host`, `disk`, `peer`, or `again` where it was encoded again",
    "phase": "`prefill`, `decode`",
    "place": "`gateway`: no worker takes it yet; `worker`: sent, and not begun",
    "reason": f"`unauthenticated`, `denied`, or the quota: {', '.join(f'`{quota}`' for quota in QUOTAS)}",
    "grant": "its name in the configuration",
    "version": "of Laban",
    "routing": "the policy `routing.policy`",
    "eviction": "the policy `cache.eviction`",
}


@dataclass(frozen=True, slots=True)
class Metric:
    """`name` as it is exported, but for the `_bucket`, `_sum` and `_count` of a histogram. `labels` leaves out `model`.

    `told` says who counts: `events` are counted as they happen, a `survey` is read off when somebody asks.
    """

    name: str
    kind: Kind
    meaning: str
    labels: tuple[str, ...] = ()
    bounds: tuple[float, ...] = ()
    told: Literal["events", "survey"] = "survey"

    @property
    def label_names(self) -> tuple[str, ...]:
        return ("model", *self.labels)

    @property
    def unit(self) -> str:
        """
        >>> Metric("laban_saved_bytes_total", "counter", "").unit
        'bytes'
        """
        last = self.name.removesuffix("_total").rpartition("_")[2]
        return last if last in ("seconds", "bytes", "tokens", "pages", "steps", "calls", "nats") else ""


def _counted(name: str, meaning: str, *labels: str) -> Metric:
    return Metric(name, "counter", meaning, labels, told="events")


def _timed(name: str, bounds: tuple[float, ...], meaning: str, *labels: str) -> Metric:
    return Metric(name, "histogram", meaning, labels, bounds, "events")


def _now(name: str, meaning: str, *labels: str) -> Metric:
    return Metric(name, "gauge", meaning, labels)


def _sum(name: str, meaning: str, *labels: str) -> Metric:
    return Metric(name, "counter", meaning, labels)


def _spread(name: str, tally: str, meaning: str, *labels: str) -> Metric:
    return Metric(name, "histogram", meaning, labels, BOUNDS[tally])


SECTIONS: Mapping[str, tuple[Metric, ...]] = {
    "Workflows": (
        _counted("laban_workflows_submitted_total", "Workflows taken in.", "workflow"),
        _counted("laban_workflows_restored_total", "Workflows that went on after a restart: not taken in again."),
        _counted(
            "laban_workflows_ended_total",
            "Workflows that have ended; `outcome` is succeeded, failed or cancelled.",
            "workflow",
            "outcome",
        ),
        _timed("laban_workflow_seconds", WORKFLOW_S, "From a workflow's submission to its end.", "workflow"),
        _counted(
            "laban_steps_ended_total",
            "Step instances that have ended; `outcome` is succeeded, failed, cancelled or skipped.",
            "workflow",
            "outcome",
        ),
        _timed(
            "laban_step_seconds",
            WORKFLOW_S,
            "Of steps that succeeded, from when they were ready to their end.",
            "workflow",
            "kind",
        ),
        _now("laban_workflows", "Workflows now; `state` is running, or held (back while memory is short).", "state"),
        _now(
            "laban_steps",
            "Step instances now; `state` is ready (queued), running, or external (with a handler, or offered to one).",
            "state",
        ),
        _now("laban_sessions", "Choreography sessions open now."),
    ),
    "Calls": (
        _timed(
            "laban_time_to_first_token_seconds",
            TTFT_S,
            "Of calls that succeeded, from when the call was ready to its first token; of a prefill, to its end.",
            "fidelity",
        ),
        _timed(
            "laban_failed_first_token_seconds",
            TTFT_S,
            "Of calls that failed, from when the call was ready to its first token, or to its end if none came.",
        ),
        _timed("laban_call_seconds", CALL_S, "Of calls that succeeded, from ready to the last token.", "fidelity"),
        _timed(
            "laban_call_queue_seconds",
            QUEUE_S,
            "From ready until the worker tells, an iteration later, that it admitted the call.",
        ),
        _counted(
            "laban_calls_ended_total", "Calls that a worker ended, by the status they ended with.", "worker", "code"
        ),
        _counted("laban_calls_requeued_total", "Calls that ran again because their worker was lost."),
        _counted("laban_read_tokens_total", "Tokens that calls attended to, in all attempts: their views.", "fidelity"),
        _counted(
            "laban_reused_tokens_total", "Of the tokens read, those found encoded, by whoever made them.", "fidelity"
        ),
        _counted(
            "laban_loaded_tokens_total",
            "Of the tokens reused, those brought from host memory, disk or a peer.",
            "fidelity",
        ),
        _counted(
            "laban_encoded_tokens_total",
            "Tokens computed by prefill for calls, in all attempts: what was missing, and their own.",
            "fidelity",
        ),
        _counted("laban_generated_tokens_total", "Tokens sampled, in all attempts.", "fidelity"),
        _counted("laban_errors_total", "Errors, by where they were and their status.", "kind", "code"),
        _now("laban_queue_calls", "Calls that wait now.", "place"),
        _now("laban_queue_oldest_seconds", "For how long the oldest of them has waited; 0 if none does.", "place"),
    ),
    "Engine": (
        _spread(
            "laban_inter_token_seconds",
            "inter_token_s",
            "From one token of a call to its next, in the engine; tokens that come together share their time.",
            "worker",
        ),
        _spread("laban_iteration_seconds", "iteration_s", "One batched forward.", "worker"),
        _spread("laban_batch_calls", "batch_calls", "Calls, and encodings in the making, in an iteration.", "worker"),
        _sum("laban_computed_tokens_total", "Tokens computed by iterations, prefetches included.", "worker", "phase"),
        _sum(
            "laban_drafted_tokens_total",
            "Tokens guessed from what calls read; `outcome` is accepted (came into a text) or refused.",
            "worker",
            "outcome",
        ),
        _now(
            "laban_worker_calls",
            "Calls at a worker; `state` is running, waiting or blocked (waits for others to end).",
            "worker",
            "state",
        ),
        _now("laban_worker_queued_tokens", "Tokens still to encode, of its running and waiting calls.", "worker"),
        _sum("laban_preemptions_total", "Running calls that made room for older workflows, to go on later.", "worker"),
        _now(
            "laban_encode_tokens_per_second",
            "How fast the worker encodes, as it measures itself; 0: not known yet.",
            "worker",
        ),
    ),
    "KV cache": (
        _now("laban_pages", "Pages of a tier; `state` is used or free. The disk has none.", "worker", "tier", "state"),
        _now("laban_tier_used_bytes", "Keys and values in a tier.", "worker", "tier"),
        _now("laban_tier_capacity_bytes", "What a tier may hold; 0 if there is none.", "worker", "tier"),
        _now("laban_encodings", "Encodings on the device.", "worker"),
        _now("laban_grant_workers", "Workers that have all that a grant shares on their device.", "grant"),
        _sum("laban_cache_tokens_total", "What calls read, by where it was found.", "worker", "source"),
        _sum("laban_evictions_total", "Encodings evicted.", "worker", "tier"),
        _spread(
            "laban_eviction_steps",
            "evicted_steps_device",
            "Steps-to-execution of what was evicted, where anybody was known to read it: the larger the better.",
            "worker",
            "tier",
        ),
        _sum("laban_saved_bytes_total", "Copied down to a tier, so that it can be evicted above.", "worker", "tier"),
        _sum(
            "laban_eviction_policy_failures_total",
            "Keys that an eviction policy of your own did not give, so that `cost` gave them.",
            "worker",
        ),
        _sum("laban_saves_failed_total", "Encodings that could not be written to disk.", "worker"),
        _sum(
            "laban_prefetches_total",
            "Encodings brought before they were asked for; `outcome` is useful (there in time), late (asked for on the "
            "way) or wasted (never read).",
            "worker",
            "outcome",
        ),
        _sum("laban_load_wait_seconds_total", "Time that calls waited for loads alone.", "worker"),
        _sum(
            "laban_corrected_tokens_total",
            "Of `corrected` reads that were not there; `outcome` is accepted (predicted) or refused (encoded).",
            "worker",
            "outcome",
        ),
        _now("laban_anchors", "Encodings that corrected reads are predicted from.", "worker"),
        _now("laban_anchor_bytes", "What is kept of them beside their keys and values.", "worker"),
        _sum(
            "laban_transfers_total",
            "Copies over a link: host (to the device, those at full rate), disk, and from other workers by transport: "
            "cma, nixl, object_store.",
            "worker",
            "link",
        ),
        _sum("laban_transfer_bytes_total", "Bytes of these.", "worker", "link"),
        _sum(
            "laban_transfer_seconds_total",
            "Seconds that these took, summed though some went side by side.",
            "worker",
            "link",
        ),
        _sum(
            "laban_transfer_wait_seconds_total",
            "Seconds before that, until the other worker lent them, between two of its iterations, or refused.",
            "worker",
            "link",
        ),
        _sum("laban_transfers_failed_total", "Of these, those that broke off.", "worker", "link"),
    ),
    "Routing": (
        _counted("laban_routing_decisions_total", "Calls sent to a worker.", "policy", "worker"),
        _counted(
            "laban_routing_policy_failures_total",
            "Calls for which a routing policy of your own had no key, or was too slow, so that `cost` decided.",
        ),
        _timed("laban_routing_seconds", INSTANT_S, "Time to decide where a call goes.", "policy"),
        _sum(
            "laban_routing_tokens_total",
            "Of what calls read; `outcome` is predicted (expected to be encoded at the worker), missed (expected and "
            "not there) or found (there, expected or not).",
            "outcome",
        ),
        _sum("laban_routing_wrong_calls_total", "Calls of which a token was missed."),
        _timed(
            "laban_directory_lag_seconds",
            LAG_S,
            "From when a call left an encoding at a worker until the directory said so, if it did so later.",
        ),
        _sum("laban_directory_unconfirmed_total", "Encodings expected at a worker that the directory never confirmed."),
        _now("laban_directory_encodings", "Encodings whose places are watched."),
        _now("laban_directory_shards", "Shards of the directory; `state` is up or silent.", "state"),
    ),
    "Audits": (
        _counted(
            "laban_audits_total",
            "Audits in service that ended; `outcome` is done, dropped (for other work, or too old) or failed.",
            "outcome",
        ),
        _timed(
            "laban_audit_divergence_nats",
            KL_NATS,
            "KL of audited calls from `exact`, the mean over a call's tokens, by the level compared.",
            "workflow",
            "fidelity",
        ),
        _counted(
            "laban_audited_tokens_total",
            "Tokens of audited calls; `outcome` is agrees (both levels like the same one best) or differs.",
            "workflow",
            "outcome",
        ),
        _counted("laban_audit_seconds_total", "Time that workers spent on audits in service.", "worker"),
        _now("laban_diverging_workflows", "Workflows, by name, whose audited calls have left their tolerance."),
    ),
    "Cluster": (
        _now("laban_info", "1; its labels say what runs.", "version", "routing", "eviction"),
        _now("laban_ready", "1 if a model is loaded and a worker is up and registered, else 0."),
        _now(
            "laban_journal_available",
            "1 if the journal's database is there, else 0; nothing where there is no journal.",
        ),
        _now("laban_uptime_seconds", "Since the control plane started."),
        _now("laban_workers", "Workers; `state` is up, draining, lost, returning or starting.", "state"),
        _counted("laban_worker_losses_total", "Workers that died."),
        _counted("laban_grpc_requests_total", "Requests answered, streams at their end.", "method", "code"),
        _counted("laban_refused_requests_total", "Requests refused for who made them, or for a quota.", "reason"),
        _timed("laban_grpc_request_seconds", REQUEST_S, "Time to answer a request that is no stream.", "method"),
        Metric(
            "laban_grpc_open_requests",
            "gauge",
            "Requests open now: of Watch and Run, the watches.",
            ("method",),
            told="events",
        ),
        _timed("laban_event_loop_lag_seconds", REQUEST_S, "How late the control plane's event loop ran what was due."),
    ),
}

METRICS: Mapping[str, Metric] = {metric.name: metric for metrics in SECTIONS.values() for metric in metrics}


def series_names(metric: Metric) -> tuple[str, ...]:
    """What can be asked for.

    >>> series_names(Metric("laban_x_seconds", "histogram", ""))
    ('laban_x_seconds_bucket', 'laban_x_seconds_sum', 'laban_x_seconds_count')
    """
    if metric.kind == "histogram":
        return tuple(f"{metric.name}_{part}" for part in ("bucket", "sum", "count"))
    return (metric.name,)
