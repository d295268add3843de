"""What a step goes by beside its calls: the time, which copies and grammars are done, how fast things were so far."""

from __future__ import annotations

from dataclasses import dataclass, field

from laban.actors.calls import WorkerRates
from laban.kvstore.arrivals import Standing


@dataclass(frozen=True, slots=True)
class Tick:
    """The same for all shards of a worker, so that they decide alike. `landed` are numbers of copies (Flights),
    `compiled` ids of calls whose grammars are there, `draft_costs` what forwards took by their width (WidthCosts).
    `standings` are those of `Tiers.under_way`: the one thing that is not the first shard's word, but made of all of
    theirs (`together`), as each has its own part of an encoding to bring."""

    now_s: float
    landed: tuple[int, ...] = ()
    rates: WorkerRates = field(default_factory=WorkerRates)
    compiled: tuple[str, ...] = ()
    draft_costs: tuple[float, ...] = ()
    standings: tuple[Standing, ...] = ()
