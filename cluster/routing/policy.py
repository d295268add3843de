"""What a routing policy is: one sort key over frozen views of a worker and a call."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple, Protocol

from laban.cluster.routing.call_view import CallView
from laban.kvstore.encodings import EncodingId, EncodingSpec, View, dependencies


class WorkerView(NamedTuple):
    """What one worker would have to do for one call, as far as the control plane knows.

    `tokens_host` and `tokens_disk` are loaded from its own lower tiers, `tokens_peer` fetched from other workers,
    `tokens_encode` encoded: what is nowhere, or cheaper to encode than to bring, and the call's own. `cost_ms` is
    `ttft_ms` with the time that bringing `left_tokens` will take later calls, if it is known that they will read them,
    less what copying a message that many read will save its next readers (replication.py), and with what encoding the
    missing once more takes from whoever waits for the worker meanwhile: all of it where there are as many calls as
    workers, next to nothing in an idle fleet.
    """

    worker_id: str
    ttft_ms: int  # estimated time to first token
    cost_ms: int
    left_tokens: int  # what later calls of the workflow will read, and lies elsewhere
    num_calls: int  # sent to it and not ended
    queue_ms: int  # before this call's turn
    turns: int  # until its own, of all workers taken in turn; 0: it is next
    free_pages: int
    load_ns: int  # whole nanoseconds: sums of these are the same in any order
    fetch_ns: int
    encode_ns: int
    tokens_host: int
    tokens_disk: int
    tokens_peer: int
    tokens_encode: int

    @property
    def tokens_missing(self) -> int:
        """On its device."""
        return self.tokens_host + self.tokens_disk + self.tokens_peer + self.tokens_encode


RANKABLE = (*WorkerView._fields[1:], "tokens_missing")
"""What workers can be ranked by: all numbers of a view."""


class RoutingPolicy(Protocol):
    """A class of your own needs nothing but `key`. A tuple `key_names`, if it has one, says what each part is.

    A policy whose key is nothing but numbers of the worker's view can name these as a tuple `ranked_by`: then `key` is
    called to explain a choice, not to make it, which in a large fleet is ten times as fast.
    """

    def key(self, worker: WorkerView, call: CallView) -> tuple[float, ...]:
        """The lowest wins, ties by worker id. Pure: called for every open worker."""
        ...


def ranking(policy: RoutingPolicy) -> tuple[str, ...]:
    """What the policy ranks workers by; nothing if it has to be asked. ValueError for what no view says."""
    names = tuple(getattr(policy, "ranked_by", ()))
    for name in names:
        if name not in RANKABLE:
            expected = ", ".join(RANKABLE)
            raise ValueError(f"{type(policy).__name__}.ranked_by has {name!r}, expected some of {expected}")
    return names


def missing_encodings(
    view: View, specs: Mapping[EncodingId, EncodingSpec], held: Collection[EncodingId]
) -> dict[EncodingId, int]:
    """What a worker holding `held` must encode before a call under `view` can run: id -> tokens.

    An encoding that is placed (the prefix's chain included) must be there; one that is missing needs
    everything placed in its own view as well, and so on down. KeyError for a view that names unknown specs.
    """
    missing: dict[EncodingId, int] = {}
    walked: set[EncodingId] = set()  # prefixes whose own view has been looked at
    views = [view]
    while views:
        current = views.pop()
        for encoding_id in dependencies(current):
            is_prefix = encoding_id == current.prefix_id
            if encoding_id not in held and encoding_id not in missing:
                missing[encoding_id] = specs[encoding_id].num_tokens
            elif not is_prefix:
                continue
            # A prefix stands for its whole chain; a placement stands for itself alone, unless it is missing.
            if encoding_id not in walked:
                walked.add(encoding_id)
                views.append(specs[encoding_id].view)
    return missing
