"""The cluster's status, its workers and the ways of calls as protobuf messages, and back.

What is numbers and words alone has the same fields on both sides, and is taken over by its fields' names.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from laban.actors.calls import CacheCounters, WorkerRates
from laban.actors.reach import Reach
from laban.cluster import records
from laban.cluster.translate import seconds, timestamp
from laban.proto import laban_pb2 as pb


def plain(item: Any, *without: str) -> dict[str, Any]:
    """The fields of a record, but `without` some.

    >>> plain(records.DrainProgress("w0", 3, 4), "done")
    {'worker_id': 'w0', 'calls_left': 3, 'encodings_left': 4}
    """
    return {field.name: getattr(item, field.name) for field in fields(item) if field.name not in without}


def values(kind: type, message: Any, *without: str) -> dict[str, Any]:
    """The values of a record of this kind in a message that has fields of the same names."""
    return {field.name: getattr(message, field.name) for field in fields(kind) if field.name not in without}


def worker_to_pb(worker: records.WorkerStatus) -> pb.WorkerStatus:
    return pb.WorkerStatus(
        **plain(worker, "rates", "cache", "reach"),
        rates=pb.WorkerRates(**plain(worker.rates)),
        cache=pb.CacheCounters(**plain(worker.cache)),
        reach=pb.Reach(**plain(worker.reach)),
    )


def worker_from_pb(worker: pb.WorkerStatus) -> records.WorkerStatus:
    return records.WorkerStatus(
        **values(records.WorkerStatus, worker, "rates", "cache", "reach"),
        rates=WorkerRates(**values(WorkerRates, worker.rates)),
        cache=CacheCounters(**values(CacheCounters, worker.cache)),
        reach=Reach(worker.reach.machine, tuple(worker.reach.transports)),  # type: ignore[arg-type]  # texts
    )


def status_to_pb(status: records.ClusterStatus) -> pb.ClusterStatus:
    return pb.ClusterStatus(
        **plain(status, "workers", "directory", "members", "divergences", "models"),
        workers=[worker_to_pb(worker) for worker in status.workers],
        directory=pb.DirectoryStatus(**plain(status.directory)),
        members=[pb.MemberStatus(**plain(member)) for member in status.members],
        divergences=[pb.Divergence(**plain(each)) for each in status.divergences],
        models=[pb.ModelStatus(**plain(each)) for each in status.models],
    )


def status_from_pb(status: pb.ClusterStatus) -> records.ClusterStatus:
    return records.ClusterStatus(
        **values(records.ClusterStatus, status, "workers", "directory", "members", "divergences", "models"),
        workers=tuple(worker_from_pb(worker) for worker in status.workers),
        directory=records.DirectoryStatus(**values(records.DirectoryStatus, status.directory)),
        members=tuple(records.MemberStatus(**values(records.MemberStatus, member)) for member in status.members),
        divergences=tuple(records.Divergence(**values(records.Divergence, each)) for each in status.divergences),
        models=tuple(records.ModelStatus(**values(records.ModelStatus, each)) for each in status.models),
    )


def drain_to_pb(progress: records.DrainProgress) -> pb.DrainProgress:
    return pb.DrainProgress(**plain(progress))


def drain_from_pb(progress: pb.DrainProgress) -> records.DrainProgress:
    return records.DrainProgress(**values(records.DrainProgress, progress))


def explanation_to_pb(explanation: records.StepExplanation) -> pb.StepExplanation:
    return pb.StepExplanation(
        workflow_id=explanation.workflow_id,
        address=explanation.address,
        decision=decision_to_pb(explanation.decision),
        uses=[pb.NextUse(**plain(use)) for use in explanation.uses],
    )


def explanation_from_pb(explanation: pb.StepExplanation) -> records.StepExplanation:
    return records.StepExplanation(
        workflow_id=explanation.workflow_id,
        address=explanation.address,
        decision=decision_from_pb(explanation.decision),
        uses=tuple(records.NextUse(**values(records.NextUse, use)) for use in explanation.uses),
    )


def decision_to_pb(decision: records.RoutingDecision) -> pb.RoutingDecision:
    return pb.RoutingDecision(
        **plain(decision, "at", "candidates"),
        at=timestamp(decision.at),
        candidates=[pb.RoutingCandidate(**plain(candidate)) for candidate in decision.candidates],
    )


def decision_from_pb(decision: pb.RoutingDecision) -> records.RoutingDecision:
    return records.RoutingDecision(
        **values(records.RoutingDecision, decision, "at", "candidates", "key_names"),
        at=seconds(decision.at),
        key_names=tuple(decision.key_names),
        candidates=tuple(
            records.RoutingCandidate(**values(records.RoutingCandidate, candidate, "key"), key=tuple(candidate.key))
            for candidate in decision.candidates
        ),
    )
