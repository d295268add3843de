"""What a worker's other shards lend: read there, while the first shard's leases say for how long."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from laban.actors.transfers import Chunk, Export, Refused, chunk_from

AWAIT_S = 5.0
"""For an export that the first shard has granted, and this one is about to hear of."""


@dataclass(slots=True, eq=False)
class _Lent:
    export: Export
    reading: threading.Lock = field(default_factory=threading.Lock)


class Lending:
    """`put` and `end` are the engine's, `read` is for any thread."""

    def __init__(self, await_s: float = AWAIT_S) -> None:
        self._await_s = await_s
        self._lent: dict[int, _Lent] = {}
        self._newest = 0
        self._came = threading.Condition()

    def put(self, export: Export) -> None:
        with self._came:
            self._lent[export.number] = _Lent(export)
            self._newest = export.number
            self._came.notify_all()

    def end(self, number: int) -> Export:
        """It is read no more; waits for the chunk that is being read."""
        with self._came:
            lent = self._lent.pop(number)
        with lent.reading:
            return lent.export

    def read(self, number: int, begin: int, end: int) -> Chunk | Refused:
        """Tokens [begin, end), of this shard's heads."""
        with self._came:
            if not self._came.wait_for(lambda: self._newest >= number, self._await_s):
                return Refused("the shard has lent no such thing")
            lent = self._lent.get(number)
        if lent is None:
            return Refused("the lease has ended")
        with lent.reading:
            with self._came:
                if number not in self._lent:
                    return Refused("the lease has ended")
            return chunk_from(lent.export, begin, end)
