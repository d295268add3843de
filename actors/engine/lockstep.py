"""The engines of a worker's shards, stepping together.

Every shard has a whole engine over its slice of the model. Rank 0 decides which calls and aborts enter at which step
and says so to the others; from the same inputs all of them schedule the same batches, and meet in the collectives
of the model's layers. Sampled tokens are rank 0's. A shard that fails, or finds itself in another state than
rank 0, raises: its process ends then, and with it the worker, whose calls run elsewhere.
"""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import dataclass

from laban.actors.calls import Advice, Call, WorkerInfo, WorkerLoad, WorkerReport
from laban.actors.engine.engine import Engine
from laban.actors.engine.shard_group import ShardGroup
from laban.actors.engine.tick import Tick
from laban.actors.transfers import Export, ExportRequest, FindPeer, Refused


class ShardsDiverged(RuntimeError):
    """The shards of a worker are not in the same state."""


@dataclass(frozen=True, slots=True)
class Turn:
    """What a step begins with: calls, advice and ids to abort, in order, and the load after the step before it."""

    items: Sequence[Call | Advice | str]
    load: WorkerLoad | None
    tick: Tick


class Lockstep:
    """Implements EnginePort on rank 0: what the engine does, the other shards do too."""

    def __init__(self, engine: Engine, group: ShardGroup) -> None:
        self._engine, self._group = engine, group
        self._arrived: list[Call | Advice | str] = []
        self._load: WorkerLoad | None = None

    @property
    def info(self) -> WorkerInfo:
        return self._engine.info

    def submit(self, call: Call) -> None:
        self._arrived.append(call)

    def abort(self, call_id: str) -> None:
        self._arrived.append(call_id)

    def advise(self, advice: Advice) -> None:
        self._arrived.append(advice)

    def connect(self, find_peer: FindPeer) -> None:
        """Each shard has a part of an encoding, and nothing that brings them all together: nothing is fetched."""

    def export(self, request: ExportRequest) -> None:
        request.answer(lambda: Refused("a worker of several shards lends nothing"))

    def end_export(self, export: Export) -> None:
        raise AssertionError("nothing was lent")

    def has_work(self) -> bool:
        return bool(self._arrived) or self._engine.has_work()

    def step(self) -> WorkerReport:
        """One iteration of every shard. Raises when one of them failed."""
        turn = Turn(tuple(self._arrived), self._load, self._engine.tick())
        self._arrived.clear()
        self._group.broadcast_object(turn)
        report = _take(self._engine, turn)
        self._load = report.load
        return report

    def close(self) -> None:
        """Let the others end."""
        self._group.broadcast_object(None)


def follow(engine: Engine, group: ShardGroup) -> None:
    """Step with rank 0's engine until it closes. Raises when a shard failed, as `step` does."""
    gc.collect()
    gc.freeze()  # as the thread of rank 0's engine does
    load: WorkerLoad | None = None
    while True:
        turn: Turn | None = group.broadcast_object()
        if turn is None:
            return
        if turn.load != load:
            raise ShardsDiverged(f"shard {group.rank} ended the last step with {load}, shard 0 with {turn.load}")
        load = _take(engine, turn).load


def _take(engine: Engine, turn: Turn) -> WorkerReport:
    for item in turn.items:
        if isinstance(item, str):
            engine.abort(item)
        elif isinstance(item, Advice):
            engine.advise(item)
        else:
            engine.submit(item)
    return engine.step(turn.tick)
