"""Which encodings to bring where before they are asked for, and in which order. Pure.

By expected time, for each worker: what is needed first is brought first. Something is begun

- only if it pays: likelihood times the time that the reader would wait for it is worth the trouble;
- while there is room that nobody uses, at once; else, since it drives something out, no sooner than it must be to come
  in time, its own time and that of what is brought before it counted;
- as far as the worker's budget goes: what is under way there, in seconds and in tokens.

What is under way and nobody will read any more is given up.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from laban.kvstore.encodings import EncodingId


@dataclass(frozen=True, slots=True)
class PrefetchLimits:
    min_benefit_s: float = 0.001
    min_likelihood: float = 0.1
    spare_s: float = 0.25  # how much sooner than it must: what is said of the future comes late, and is wrong
    spare_share: float = 0.5  # of the time until then, the same
    max_flight_s: float = 2.0  # of bringing, under way at one worker
    pool_share: float = 0.5  # of a worker's pool, for what is under way


@dataclass(frozen=True, slots=True)
class Lack:
    """An encoding that its reader will not find on the worker's device, and the time that bringing it takes."""

    encoding_id: EncodingId
    num_tokens: int
    bring_s: float


@dataclass(frozen=True, slots=True)
class Wanted:
    """A call to come, where it is expected to run, and what it will lack there: in the view's order."""

    reader: str
    worker_id: str
    in_s: float
    likelihood: float
    lacks: tuple[Lack, ...]


@dataclass(frozen=True, slots=True)
class Room:
    """Of one worker's device, in tokens. `pool_tokens` is all of it."""

    free_tokens: int
    pool_tokens: int


@dataclass(frozen=True, slots=True)
class Start:
    worker_id: str
    reader: str
    lack: Lack


@dataclass(frozen=True, slots=True)
class PrefetchPlan:
    """`starts` in the order in which to bring them. `cancels` are under way and not wanted."""

    starts: tuple[Start, ...] = ()
    cancels: tuple[tuple[str, EncodingId], ...] = ()


def plan_prefetches(
    wanted: Sequence[Wanted],
    rooms: Mapping[str, Room],
    flights: Mapping[tuple[str, EncodingId], Lack],
    is_used: Callable[[EncodingId], bool],
    limits: PrefetchLimits,
) -> PrefetchPlan:
    """`rooms` are of the workers that are up, `flights` what is under way; `is_used` says whether anybody is still
    expected to read an encoding, soon or late, anywhere."""
    starts: list[Start] = []
    by_worker: dict[str, list[Wanted]] = {}
    for each in sorted(wanted, key=lambda each: (each.in_s, -each.likelihood, each.reader)):
        if each.worker_id in rooms and each.likelihood >= limits.min_likelihood:
            by_worker.setdefault(each.worker_id, []).append(each)
    needed: set[tuple[str, EncodingId]] = set()
    for worker_id, readers in by_worker.items():
        here = {encoding_id: lack for (at, encoding_id), lack in flights.items() if at == worker_id}
        needed.update((worker_id, lack.encoding_id) for each in readers for lack in each.lacks)
        starts += _starts(worker_id, readers, rooms[worker_id], here, limits)
    cancels = tuple(
        flight for flight in flights if flight[0] in rooms and flight not in needed and not is_used(flight[1])
    )
    return PrefetchPlan(tuple(starts), cancels)


def _starts(
    worker_id: str, readers: Sequence[Wanted], room: Room, here: Mapping[EncodingId, Lack], limits: PrefetchLimits
) -> list[Start]:
    found: list[Start] = []
    flight_s = sum(lack.bring_s for lack in here.values())
    flight_tokens = sum(lack.num_tokens for lack in here.values())
    free_tokens = room.free_tokens - flight_tokens
    seen = set(here)
    done_s = flight_s  # from now on, when all that was begun would be there
    for each in readers:
        lacks = list({lack.encoding_id: lack for lack in each.lacks if lack.encoding_id not in seen}.values())
        lacks = [lack for lack in lacks if each.likelihood * lack.bring_s >= limits.min_benefit_s]
        latest_s = each.in_s - done_s - sum(lack.bring_s for lack in lacks)  # begun later than this it comes too late
        is_time = latest_s <= limits.spare_s + limits.spare_share * each.in_s
        for lack in lacks:
            if not is_time and lack.num_tokens > free_tokens:
                break
            flight_s += lack.bring_s
            flight_tokens += lack.num_tokens
            over = flight_s > limits.max_flight_s or flight_tokens > limits.pool_share * room.pool_tokens
            if over and (here or found):  # something larger than the budget goes alone
                return found
            free_tokens -= lack.num_tokens
            done_s += lack.bring_s
            seen.add(lack.encoding_id)
            found.append(Start(worker_id, each.reader, lack))
    return found
