"""What the cluster is doing, gathered from those who know."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

from laban.actors.calls import WorkerInfo
from laban.cluster.dispatch import Dispatcher
from laban.cluster.records import ClusterStatus, DirectoryStatus, ModelStatus, WorkerStatus
from laban.cluster.routing.directory_view import DirectoryView


def cluster_status(
    dispatcher: Dispatcher, *, workflows_running: int, sessions_open: int, uptime_s: float
) -> ClusterStatus:
    """As of now, as far as the dispatcher and its caller know: which policies serve is for others to say."""
    workers = dispatcher.workers()
    info = dispatcher.info
    models = tuple(_model_status(pool.info, workers) for pool in dispatcher.pools)
    return ClusterStatus(
        version=laban_version(),
        ready=all(model.workers_up for model in models),
        model=info.model_name,
        max_context=info.max_context,
        workers=workers,
        workflows_running=workflows_running,
        sessions_open=sessions_open,
        uptime_s=uptime_s,
        directory=directory_status(dispatcher.directory),
        models=models,
    )


def _model_status(info: WorkerInfo, workers: Sequence[WorkerStatus]) -> ModelStatus:
    own = [worker for worker in workers if worker.model == info.model_name]
    fingerprint = info.namespace.partition("/")[0]  # before the dtype: the same files may serve in several
    return ModelStatus(info.model_name, info.max_context, len(own), sum(worker.alive for worker in own), fingerprint)


def directory_status(view: DirectoryView) -> DirectoryStatus:
    counters = view.counters
    return DirectoryStatus(
        num_shards=view.num_shards,
        num_encodings=view.num_watched,
        num_calls=counters.num_calls,
        num_wrong=counters.num_wrong,
        tokens_predicted=counters.tokens_predicted,
        tokens_missed=counters.tokens_missed,
        tokens_found=counters.tokens_found,
    )


def laban_version() -> str:
    try:
        return version("laban")
    except PackageNotFoundError:
        return "unknown"
