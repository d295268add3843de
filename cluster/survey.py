"""What there is to read off when somebody asks: workers, queues, tiers, the directory. Frozen, of one moment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from laban.actors.calls import CacheCounters, WorkerInfo, WorkerLoad, WorkerRates
from laban.actors.tallies import WorkerTallies
from laban.cluster.records import ClusterStatus


@dataclass(frozen=True, slots=True)
class Queue:
    num_calls: int = 0
    oldest_s: float = 0.0  # for how long the oldest has waited


@dataclass(frozen=True, slots=True)
class WorkerSurvey:
    """One worker that is up, as its last report had it."""

    info: WorkerInfo
    load: WorkerLoad
    rates: WorkerRates
    cache: CacheCounters
    tallies: WorkerTallies


@dataclass(frozen=True, slots=True)
class FleetSurvey:
    """What the dispatcher knows."""

    workers: tuple[WorkerSurvey, ...]
    states: Mapping[str, Mapping[str, int]]  # by model: how many workers are up, draining, lost, returning, starting
    queues: Mapping[str, Queue]  # gateway: no worker takes it yet; worker: sent and not begun
    silent_shards: int  # of the directory
    num_unconfirmed: int  # encodings expected at a worker that the directory never confirmed


@dataclass(frozen=True, slots=True)
class Survey:
    status: ClusterStatus
    fleet: FleetSurvey
    steps: Mapping[str, int]  # instances that are ready, running, external
    grants: Mapping[tuple[str, str], int] = field(default_factory=dict)  # by model and grant: workers that have it all
