"""A survey as metrics."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import accumulate

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from laban.actors.tallies import Spread
from laban.cluster.metrics import MAX_VALUES, METRICS, OTHER
from laban.cluster.records import JOURNAL_AVAILABLE
from laban.cluster.survey import Survey, WorkerSurvey

Sample = tuple[str, tuple[str, ...], float]
"""A metric's name, its labels but for the model, and its value."""
SpreadSample = tuple[str, tuple[str, ...], Spread]


class SurveyCollector(Collector):
    """Of `survey`; without one there is nothing to tell."""

    def __init__(self, model: str) -> None:
        self._model = model
        self.survey: Survey | None = None

    def describe(self) -> Iterable[Metric]:
        return []  # asked before there is a survey

    def collect(self) -> Iterator[Metric]:
        survey = self.survey
        if survey is None:
            return
        workers = _few(survey.fleet.workers)
        sums: dict[str, dict[tuple[str, ...], float]] = {}
        for model, (name, labels, value) in self._samples(survey, workers):
            of_name = sums.setdefault(name, {})
            of_name[model, *labels] = of_name.get((model, *labels), 0.0) + value
        for name, values in sums.items():
            yield self._numbers(name, values)
        spreads: dict[str, dict[tuple[str, ...], Spread]] = {}
        for worker, each in workers:
            for name, labels, spread in _spreads(worker, each):
                of_spread, key = spreads.setdefault(name, {}), (each.info.model_name, *labels)
                of_spread[key] = _added(of_spread.get(key), spread)
        for name, found in spreads.items():
            yield self._histogram(name, found)

    def _samples(self, survey: Survey, workers: list[tuple[str, WorkerSurvey]]) -> Iterator[tuple[str, Sample]]:
        """Each with the model that it is of."""
        for sample in _of_cluster(survey):
            yield self._model, sample
        for model in survey.status.models:
            yield model.name, ("laban_ready", (), float(model.workers_up > 0))
        for name, states in survey.fleet.states.items():
            for state, num in states.items():
                yield name, ("laban_workers", (state,), num)
        for (name, grant), num in survey.grants.items():
            yield name, ("laban_grant_workers", (grant,), num)
        for worker, each in workers:
            for sample in (*_of_engine(worker, each), *_of_cache(worker, each)):
                yield each.info.model_name, sample

    def _numbers(self, name: str, values: dict[tuple[str, ...], float]) -> Metric:
        metric = METRICS[name]
        kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
        family = kind(name, metric.meaning, labels=metric.label_names)
        for labels, value in values.items():
            family.add_metric(labels, value)
        return family

    def _histogram(self, name: str, spreads: dict[tuple[str, ...], Spread]) -> Metric:
        metric = METRICS[name]
        family = HistogramMetricFamily(name, metric.meaning, labels=metric.label_names)
        bounds = [*(str(bound) for bound in metric.bounds), "+Inf"]
        for labels, spread in spreads.items():
            counts = spread.counts or (0,) * len(bounds)
            buckets = list(zip(bounds, map(float, accumulate(counts)), strict=True))
            family.add_metric(labels, buckets, spread.total)
        return family


def _of_cluster(survey: Survey) -> Iterator[Sample]:
    status, fleet = survey.status, survey.fleet
    yield "laban_info", (status.version, status.routing_policy, status.eviction_policy), 1
    yield "laban_uptime_seconds", (), status.uptime_s
    if status.journal:
        yield "laban_journal_available", (), float(status.journal == JOURNAL_AVAILABLE)
    yield "laban_workflows", ("running",), status.workflows_running - status.workflows_held
    yield "laban_workflows", ("held",), status.workflows_held
    yield "laban_sessions", (), status.sessions_open
    yield "laban_diverging_workflows", (), len(status.divergences)
    for state, num in survey.steps.items():
        yield "laban_steps", (state,), num
    for place, queue in fleet.queues.items():
        yield "laban_queue_calls", (place,), queue.num_calls
        yield "laban_queue_oldest_seconds", (place,), queue.oldest_s
    directory = status.directory
    yield "laban_directory_encodings", (), directory.num_encodings
    yield "laban_directory_shards", ("up",), directory.num_shards - fleet.silent_shards
    yield "laban_directory_shards", ("silent",), fleet.silent_shards
    yield "laban_directory_unconfirmed_total", (), fleet.num_unconfirmed
    yield "laban_routing_tokens_total", ("predicted",), directory.tokens_predicted
    yield "laban_routing_tokens_total", ("missed",), directory.tokens_missed
    yield "laban_routing_tokens_total", ("found",), directory.tokens_found
    yield "laban_routing_wrong_calls_total", (), directory.num_wrong


def _of_engine(worker: str, each: WorkerSurvey) -> Iterator[Sample]:
    load, tallies = each.load, each.tallies
    yield "laban_worker_calls", (worker, "running"), load.num_running
    yield "laban_worker_calls", (worker, "waiting"), load.num_waiting - load.num_blocked
    yield "laban_worker_calls", (worker, "blocked"), load.num_blocked
    yield "laban_worker_queued_tokens", (worker,), load.queued_tokens
    yield "laban_encode_tokens_per_second", (worker,), each.rates.encode_tokens_per_s
    yield "laban_computed_tokens_total", (worker, "prefill"), tallies.tokens_prefilled
    yield "laban_computed_tokens_total", (worker, "decode"), tallies.tokens_decoded
    yield "laban_preemptions_total", (worker,), each.cache.preemptions


def _of_cache(worker: str, each: WorkerSurvey) -> Iterator[Sample]:
    info, load, cache, tallies = each.info, each.load, each.cache, each.tallies
    page_bytes = max(1, info.page_size * info.bytes_per_token)
    used_bytes = {
        "device": (info.num_pages - load.num_free_pages) * page_bytes,
        "host": load.host_bytes_used,
        "disk": load.disk_bytes_used,
    }
    capacity_bytes = {"device": info.num_pages * page_bytes, "host": info.host_bytes, "disk": info.disk_bytes}
    evicted = {"device": cache.num_evicted_device, "host": cache.num_evicted_host, "disk": cache.num_evicted_disk}
    for tier, num_bytes in used_bytes.items():
        yield "laban_tier_used_bytes", (worker, tier), num_bytes
        yield "laban_tier_capacity_bytes", (worker, tier), capacity_bytes[tier]
        yield "laban_evictions_total", (worker, tier), evicted[tier]
        if tier != "disk":
            yield "laban_pages", (worker, tier, "used"), num_bytes // page_bytes
            yield "laban_pages", (worker, tier, "free"), (capacity_bytes[tier] - num_bytes) // page_bytes
    yield "laban_encodings", (worker,), load.num_encodings
    yield "laban_cache_tokens_total", (worker, "device"), cache.tokens_hit_device
    yield "laban_cache_tokens_total", (worker, "host"), cache.tokens_loaded_host
    yield "laban_cache_tokens_total", (worker, "disk"), cache.tokens_loaded_disk
    yield "laban_cache_tokens_total", (worker, "peer"), cache.tokens_loaded_peer
    yield "laban_cache_tokens_total", (worker, "again"), cache.tokens_encoded_again
    yield "laban_saved_bytes_total", (worker, "host"), cache.bytes_saved_host
    yield "laban_saved_bytes_total", (worker, "disk"), cache.bytes_saved_disk
    yield "laban_eviction_policy_failures_total", (worker,), tallies.num_policy_failures
    yield "laban_saves_failed_total", (worker,), tallies.num_saves_failed
    yield "laban_prefetches_total", (worker, "useful"), cache.prefetches_useful
    yield "laban_prefetches_total", (worker, "late"), cache.prefetches_late
    yield "laban_prefetches_total", (worker, "wasted"), cache.prefetches_wasted
    yield "laban_load_wait_seconds_total", (worker,), cache.wait_load_s
    yield "laban_drafted_tokens_total", (worker, "accepted"), tallies.tokens_accepted
    yield "laban_drafted_tokens_total", (worker, "refused"), tallies.tokens_drafted - tallies.tokens_accepted
    yield "laban_corrected_tokens_total", (worker, "accepted"), tallies.tokens_corrected
    yield "laban_corrected_tokens_total", (worker, "refused"), tallies.tokens_not_corrected
    yield "laban_anchors", (worker,), tallies.num_anchors
    yield "laban_anchor_bytes", (worker,), tallies.anchor_bytes
    links = (
        ("host", tallies.copies_host),
        ("disk", tallies.copies_disk),
        ("cma", tallies.copies_cma),
        ("nixl", tallies.copies_nixl),
        ("object_store", tallies.copies_object_store),
    )
    for link, copies in links:
        yield "laban_transfers_total", (worker, link), copies.num
        yield "laban_transfers_failed_total", (worker, link), copies.num_failed
        yield "laban_transfer_bytes_total", (worker, link), copies.num_bytes
        yield "laban_transfer_seconds_total", (worker, link), copies.seconds
        yield "laban_transfer_wait_seconds_total", (worker, link), copies.wait_s


def _spreads(worker: str, each: WorkerSurvey) -> Iterator[SpreadSample]:
    tallies = each.tallies
    yield "laban_inter_token_seconds", (worker,), tallies.inter_token_s
    yield "laban_iteration_seconds", (worker,), tallies.iteration_s
    yield "laban_batch_calls", (worker,), tallies.batch_calls
    yield "laban_eviction_steps", (worker, "device"), tallies.evicted_steps_device
    yield "laban_eviction_steps", (worker, "host"), tallies.evicted_steps_host
    yield "laban_eviction_steps", (worker, "disk"), tallies.evicted_steps_disk


def _few(workers: Iterable[WorkerSurvey]) -> list[tuple[str, WorkerSurvey]]:
    """Each with the name that it goes by: past so many, one for all."""
    ids = [each.info.worker_id for each in workers]
    kept = set(sorted(ids, key=lambda worker_id: (len(worker_id), worker_id))[:MAX_VALUES])
    return [(each.info.worker_id if each.info.worker_id in kept else OTHER, each) for each in workers]


def _added(a: Spread | None, b: Spread) -> Spread:
    if a is None or not a.counts:
        return b
    if not b.counts:
        return a
    return Spread(tuple(x + y for x, y in zip(a.counts, b.counts, strict=True)), a.total + b.total)
