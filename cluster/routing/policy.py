"""Where a call should run. Pure: frozen views of the workers in, one worker's id out, ranked by one sort key."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from laban.kvstore.encodings import EncodingId, EncodingSpec, View, dependencies


@dataclass(frozen=True, slots=True)
class WorkerView:
    """What one worker would have to do for one call, as far as the control plane knows."""

    worker_id: str
    queued_tokens: int  # to encode before this call's turn
    num_running: int  # calls that decode beside it: each takes a token's share of every iteration
    missing_tokens: int  # to encode for this call: what its view lacks here, and its own
    tokens_per_ms: float  # measured
    successor_tokens: int  # of the workflow's encodings, those that are not here: cost left to later calls
    free_pages: int


def time_to_first_token_ms(worker: WorkerView) -> float:
    """The estimate that routing ranks by: everything to be encoded until then, at the measured rate."""
    tokens = worker.queued_tokens + worker.num_running + worker.missing_tokens
    return tokens / max(worker.tokens_per_ms, 1e-6)


def choose_worker(workers: Sequence[WorkerView]) -> str:
    """The id of the best worker. Raises ValueError for none."""

    def key(worker: WorkerView) -> tuple[int, int, int, str]:
        # Whole milliseconds: what differs by less is the same, and the next criterion decides.
        eta_ms = round(time_to_first_token_ms(worker))
        return (eta_ms, worker.successor_tokens, -worker.free_pages, worker.worker_id)

    return min(workers, key=key).worker_id


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


def tokens_not_held(encodings: Iterable[EncodingSpec], held: Collection[EncodingId]) -> int:
    return sum(spec.num_tokens for spec in encodings if spec.encoding_id not in held)
