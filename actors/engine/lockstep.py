"""The engines of a worker's shards, stepping together.

Every shard has a whole engine over its slice of the model. Rank 0 decides which calls and aborts enter at which step
and says so to the others; from the same inputs all of them schedule the same batches, and meet in the collectives
of the model's layers. Sampled tokens are rank 0's. What a step goes by besides is rank 0's word too (`tick.py`), but
for encodings on their way below the device: each shard brings its own part, so all say how far theirs is, and a token
has come, or a file is written, once that is so everywhere. A shard that fails, or finds itself in another state than
rank 0, raises: its process ends then, and with it the worker, whose calls run elsewhere.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import astuple, dataclass, replace

from laban.actors.calls import Advice, Call, WorkerInfo, WorkerLoad, WorkerReport
from laban.actors.engine.engine import Engine
from laban.actors.engine.shard_group import ShardGroup
from laban.actors.engine.tick import Tick
from laban.actors.lending import Lending
from laban.actors.transfers import Export, ExportRequest, FindPeer, Refused
from laban.kvstore.arrivals import Standing, together
from laban.kvstore.encodings import EncodingId


class ShardsDiverged(RuntimeError):
    """The shards of a worker are not in the same state."""


@dataclass(frozen=True, slots=True)
class Lend:
    """An encoding that another worker asks for; `number` says which request."""

    number: int
    encoding_id: EncodingId


@dataclass(frozen=True, slots=True)
class TakeBack:
    """An export, by its number."""

    number: int


Item = Call | Advice | str | Lend | TakeBack


@dataclass(frozen=True, slots=True)
class Turn:
    """What a step begins with: calls, advice, ids to abort, what to lend and take back, in order, and the load after
    the step before it. The tick's standings are the first shard's; all make their own of what all say."""

    items: Sequence[Item]
    load: WorkerLoad | None
    tick: Tick


class Lockstep:
    """Implements EnginePort on rank 0: what the engine does, the other shards do too."""

    def __init__(self, engine: Engine, group: ShardGroup) -> None:
        self._engine, self._group = engine, group
        self._arrived: list[Item] = []
        self._load: WorkerLoad | None = None
        self._lending = Lending()
        self._requests: dict[int, ExportRequest] = {}
        self._num_requests = 0

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
        """From now on encodings can be fetched from other workers; the other shards connect themselves."""
        self._engine.connect(find_peer)

    def export(self, request: ExportRequest) -> None:
        self._num_requests += 1
        self._requests[self._num_requests] = request
        self._arrived.append(Lend(self._num_requests, request.encoding_id))

    def end_export(self, export: Export) -> None:
        self._arrived.append(TakeBack(export.number))

    def has_work(self) -> bool:
        return bool(self._arrived) or self._engine.has_work()

    def step(self) -> WorkerReport:
        """One iteration of every shard. Raises when one of them failed."""
        turn = Turn(tuple(self._arrived), self._load, self._engine.tick())
        self._arrived.clear()
        self._group.broadcast_object(turn)
        report = _take(self._engine, self._group, turn, self._lending, self._answered)
        self._load = report.load
        return report

    def close(self) -> None:
        """Let the others end."""
        self._group.broadcast_object(None)

    def _answered(self, number: int, answer: Export | Refused) -> None:
        """All shards have lent it, or none. If nobody waits for it any more, all take it back."""
        taken = self._requests.pop(number).answer(lambda: answer)
        if not taken and isinstance(answer, Export):
            self._arrived.append(TakeBack(answer.number))


def follow(engine: Engine, group: ShardGroup, lending: Lending | None = None) -> None:
    """Step with rank 0's engine until it closes. What is lent meanwhile can be read from `lending`. Raises when a shard
    failed, as `step` does."""
    gc.collect()
    gc.freeze()  # as the thread of rank 0's engine does
    lending = Lending() if lending is None else lending
    load: WorkerLoad | None = None
    while True:
        turn: Turn | None = group.broadcast_object()
        if turn is None:
            return
        if turn.load != load:
            raise ShardsDiverged(f"shard {group.rank} ended the last step with {load}, shard 0 with {turn.load}")
        if (own := len(engine.standings())) != (of_first := len(turn.tick.standings)):
            raise ShardsDiverged(f"shard {group.rank} has {own} encodings on their way, shard 0 has {of_first}")
        load = _take(engine, group, turn, lending, lambda number, answer: None).load


def _take(
    engine: Engine,
    group: ShardGroup,
    turn: Turn,
    lending: Lending,
    answered: Callable[[int, Export | Refused], None],
) -> WorkerReport:
    for item in turn.items:
        match item:
            case str():
                engine.abort(item)
            case Advice():
                engine.advise(item)
            case Lend():
                engine.export(_request(item, lending, answered), turn.tick.now_s)
            case TakeBack():
                engine.end_export(lending.end(item.number))
            case _:
                engine.submit(item)
    return engine.step(replace(turn.tick, standings=_standings(engine, group)))


def _request(item: Lend, lending: Lending, answered: Callable[[int, Export | Refused], None]) -> ExportRequest:
    """One that nobody cancels: whether it is answered with an export must be the same in all shards."""

    def answer(reply: Future[Export | Refused]) -> None:
        result = reply.result()
        if isinstance(result, Export):
            lending.put(result)
        answered(item.number, result)

    request = ExportRequest(item.encoding_id)
    request.reply.add_done_callback(answer)
    return request


def _standings(engine: Engine, group: ShardGroup) -> tuple[Standing, ...]:
    """Of what is under way, the same in all shards, how far it is in all of them."""
    own = engine.standings()
    if not own:
        return ()
    shards = group.gather([astuple(standing) for standing in own])
    return tuple(together([_standing(row) for row in rows]) for rows in zip(*shards, strict=True))


def _standing(row: Sequence[float]) -> Standing:
    num_tokens_done, num_bytes, seconds, ended, failed, pauses, stuck_bytes = row
    flags = bool(ended), bool(failed), bool(pauses)
    return Standing(int(num_tokens_done), int(num_bytes), seconds, *flags, int(stuck_bytes))
